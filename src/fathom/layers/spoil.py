"""Images made worse on purpose, so that a network can learn to mend them. All are [B, C, H, W] in −1 … 1.

upscale     shrunk by a factor, each pixel the mean of those it stands for, and brought back by cubic interpolation
denoise     with normal noise on top
colourise   of its colours only how light they are
inpaint     a square cut out at a random place and painted mid-grey
keep        as they are: for what shall be changed rather than mended
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core.holes import holes

What = Literal["upscale", "denoise", "colourise", "inpaint", "keep"]
LUMA = (0.299, 0.587, 0.114)  # how light red, green and blue look (ITU-R BT.601)


def spoiled(image: Tensor, what: What, factor: int = 2, noise: float = 0.1, hole: float = 0.4) -> Tensor:
    """Return worse images, in the shape of `image`.

    Args:
        factor: that images are shrunk by. noise: standard deviation, as a share of the range of pixels.
        hole: side of the square, as a share of the image's sides.
    """
    if what == "upscale":
        small = (-(-image.shape[2] // factor), -(-image.shape[3] // factor))
        return enlarged(F.adaptive_avg_pool2d(image, small), image.shape)
    if what == "denoise":
        return image + 2 * noise * torch.randn_like(image)
    if what == "colourise":
        light = (image * image.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return light.expand_as(image)
    if what == "inpaint":
        sides = image.shape[2:]
        lengths = tuple(max(1, round(hole * side)) for side in sides)
        return image.masked_fill(holes(len(image), tuple(sides), lengths, image.device), 0.0)
    return image


def enlarged(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return images [B, C, h, w] brought to [B, C, H, W] by cubic interpolation, within −1 … 1."""
    return F.interpolate(image, size=tuple(shape[2:]), mode="bicubic", align_corners=False).clamp(-1, 1)
