"""How an image enters a network.

Normalize        centred and scaled
PatchEmbedding   cut into square patches, each of them a token
cut, joined      into patches of pixels, and the way back
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def picture(self, values: Tensor) -> Tensor:
        """Return what values of that scale look like, the way back: [B, C, H, W] -> the same in 0 … 1."""
        return ((values.to(self.mean.dtype) / self.scale + self.mean) / 255).clamp(0, 1)


class PatchEmbedding(nn.Module):
    """Cut images into square patches and map each linearly to a vector: [B, C, H, W] -> [B, N, D].

    Patches stand row by row, N = ⌈H / patch⌉ · ⌈W / patch⌉; where they do not divide a side, zeros fill it up. The
    weights are those of a convolution by strides of its kernel, [D, C, patch, patch]; as one matrix product over the
    patches laid out side by side it is quicker.

    Source: Dosovitskiy et al., An Image Is Worth 16x16 Words, 2021, section 3.1.

    Args:
        channels: C.
        width: D.
        patch: pixels of a patch's side.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, channels, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=(channels * patch * patch) ** -0.5)  # keeps the variance of the pixels

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return how many patches such an image has from top to bottom and from left to right."""
        return -(-height // self.patch), -(-width // self.patch)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(cut(x, self.patch), self.weight.flatten(1), self.bias)


def cut(image: Tensor, side: int) -> Tensor:
    """Return square patches, row by row, [B, C, H, W] -> [B, N, C·side²]; zeros fill up what they do not divide."""
    rows, columns = -(-image.shape[2] // side), -(-image.shape[3] // side)
    below, right = rows * side - image.shape[2], columns * side - image.shape[3]
    if below or right:
        image = F.pad(image, (0, right, 0, below))
    x = image.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # [B, C, rows, side, columns, side]
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def joined(patches: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return the images that `cut` makes such patches of, [B, N, C·side²] -> [B, C, height, width]."""
    rows, columns = -(-height // side), -(-width // side)
    x = patches.unflatten(2, (-1, side, side)).unflatten(1, (rows, columns))  # [B, rows, columns, C, side, side]
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)[:, :, :height, :width]
