"""EfficientNet beside transformers' EfficientNet, neither skipping blocks, for theirs drops single numbers instead."""

from __future__ import annotations

from collections.abc import Iterator

from case import Case
from resnet import beside

from fathom.models import efficientnet

B0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "drop_connect_rate": 0.0}
B2 = {"width_coefficient": 1.1, "depth_coefficient": 1.2, "hidden_dim": 1408, "drop_connect_rate": 0.0}
HALF = {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "drop_connect_rate": 0.0}


def cases() -> Iterator[Case]:
    """Yield two of the paper's networks, and one half as wide and as deep."""
    yield beside(efficientnet, "EfficientNet", "efficientnet_b0", 16, 64, **B0)
    yield beside(efficientnet, "EfficientNet", "efficientnet_b0", 4, 128, **B0)
    yield beside(efficientnet, "EfficientNet", "efficientnet_b2", 8, 64, **B2)
    yield beside(efficientnet, "EfficientNet", "half as wide and as deep", 16, 64, **HALF)
