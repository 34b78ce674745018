"""ConvNeXt beside transformers' ConvNext."""

from __future__ import annotations

from collections.abc import Iterator

from case import Case
from resnet import beside

from fathom.models import convnext


def cases() -> Iterator[Case]:
    """Yield the paper's smallest network, and narrower ones."""
    yield beside(convnext, "ConvNext", "convnext_tiny", 16, 64)
    yield beside(convnext, "ConvNext", "convnext_tiny", 2, 128)
    narrow = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
    yield beside(convnext, "ConvNext", "40 to 320 channels, 12 blocks", 16, 64, **narrow)
    yield beside(convnext, "ConvNext", "the same, without layer scale", 16, 64, layer_scale_init_value=0.0, **narrow)
