"""How an image enters a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.core.types import Field


class Normalize(nn.Module):
    """Centre and scale each channel by the training images' statistics: uint8 [B, C, H, W] -> float [B, C, H, W].

    The statistics are in units of 0–255; without them every channel is brought to −1 … 1. They come from the data's
    description, so they are no part of the weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, field: Field) -> None:
        super().__init__()
        channels = field.shape[0]
        mean = field.stats.mean if field.stats else (127.5,)
        std = field.stats.std if field.stats else (127.5,)
        scale = [1 / s if s > 0 else 1.0 for s in std]
        self.register_buffer("mean", torch.tensor(mean).expand(channels).reshape(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer(
            "scale", torch.tensor(scale).expand(channels).reshape(1, -1, 1, 1).clone(), persistent=False
        )

    def forward(self, image: Tensor) -> Tensor:
        return (image.to(self.mean.dtype) - self.mean) * self.scale  # [B, C, H, W]
