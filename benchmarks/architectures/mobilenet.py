"""MobileNets beside transformers' MobileNetV1 and MobileNetV2; it has no third."""

from __future__ import annotations

from collections.abc import Iterator

from case import Case
from resnet import beside

from fathom.models import mobilenet


def cases() -> Iterator[Case]:
    """Yield the papers' networks and narrower ones, padded as their published weights are, and evenly."""
    yield beside(mobilenet, "MobileNetV1", "mobilenet_v1", 16, 64)
    yield beside(mobilenet, "MobileNetV1", "mobilenet_v1, a quarter as wide", 32, 64, depth_multiplier=0.25)
    yield beside(mobilenet, "MobileNetV2", "mobilenet_v2", 16, 64)
    yield beside(mobilenet, "MobileNetV2", "mobilenet_v2, padded evenly", 16, 64, tf_padding=False)
    yield beside(mobilenet, "MobileNetV2", "mobilenet_v2, 0.35 times as wide", 32, 64, depth_multiplier=0.35)
