"""Resizing and blurring as matrices: one for the rows of an image and one for its columns, A · image · Bᵀ.

resize_matrix     a stretch of a row brought to another length, of each image its own
stretch_matrix    a whole row, the same for all
blur_matrix       a Gaussian
"""

from __future__ import annotations

import torch
from torch import Tensor


def resize_matrix(side: int, out: int, start: Tensor, length: Tensor) -> Tensor:
    """Return the weights by which `out` pixels are made of those of a stretch of a row: [B, out, side].

    Each is a mean of the pixels about its centre, weighted by a triangle as wide as the new pixel, or as an old one
    where the stretch is enlarged: linear interpolation that does not skip pixels when it shrinks.

    Args:
        start, length: [B], where the stretch begins and how long it is, in pixels.
    """
    scale = (length / out)[:, None, None]
    pixel = torch.arange(side, device=start.device, dtype=start.dtype)  # [side]
    centre = start[:, None, None] + (torch.arange(out, device=start.device)[:, None] + 0.5) * scale - 0.5  # [B, out, 1]
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1.0)).clamp(min=0.0)  # [B, out, side]
    first, end = start[:, None, None], (start + length)[:, None, None]
    weight = weight * ((pixel > first - 1) & (pixel < end))
    return weight / weight.sum(2, keepdim=True)


def blur_matrix(side: int, spread: Tensor) -> Tensor:
    """Return the weights of a Gaussian with standard deviations `spread` [B], in pixels: [B, side, side]."""
    pixel = torch.arange(side, device=spread.device, dtype=spread.dtype)
    weight = torch.exp(-((pixel[:, None] - pixel) / spread[:, None, None]).square() / 2)
    return weight / weight.sum(2, keepdim=True)


def stretch_matrix(side: int, out: int, like: Tensor) -> Tensor:
    """Return the weights by which `out` pixels are made of a row of `side`, [out, side], in the kind of `like`."""
    ends = like.new_tensor([[0.0], [float(side)]])
    return resize_matrix(side, out, ends[0], ends[1])[0]
