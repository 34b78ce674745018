"""Where images are covered by a rectangle at a random place: data and views of it are both varied so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def holes(count: int, sides: tuple[int, ...], lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return where each of `count` images is covered, [B, 1, H, W] bool; a hole may stand over the image's edge.

    Args:
        sides: (H, W). lengths: of the hole, from top to bottom and from left to right.
    """
    import torch

    found = []
    for side, length in zip(sides, lengths, strict=True):
        first = torch.randint(1 - length, side, (count, 1), device=device)
        step = torch.arange(side, device=device) - first
        found.append((step >= 0) & (step < length))  # [B, side]
    return (found[0][:, :, None] & found[1][:, None])[:, None]
