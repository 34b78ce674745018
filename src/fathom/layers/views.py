"""Random views of images: what two glances at the same thing may differ in.

    crop      a rectangle of random area, shape and place, brought to the wanted size
    flip      mirrored, left to right
    turn      turned about the middle, and sheared along the rows
    jitter    brightness, contrast and, of colours, saturation
    grey      without colour
    blur      a Gaussian
    erase     a grey square

A whole batch is varied at once, on whatever device it is on, and each image draws its own from torch's default
generator. Cropping, resizing, mirroring and blurring all act on rows and on columns apart: each is a matrix for the
rows and one for the columns, so that all of them together are two matrix products an image,

    view = A · image · Bᵀ,    A [h, H],  B [w, W].

Turning and shearing mix rows with columns: where asked for, what comes out is read once more at turned places.

Sources: Szegedy et al., Going Deeper with Convolutions, 2015 (random crops); Chen, Kornblith, Norouzi, Hinton, A Simple
Framework for Contrastive Learning of Visual Representations, 2020, appendix A (jitter, grey, blur); DeVries, Taylor,
Improved Regularization of Convolutional Neural Networks with Cutout, 2017 (erase); Cubuk, Zoph, Shlens, Le,
RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, 2019 (turn, shear).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fathom.core.holes import holes
from fathom.layers.resize import blur_matrix, resize_matrix

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, in grey
PAPER_SIDE, PAPER_SPREAD = 224, 2.0  # the widest blur of the paper, in pixels of images of that side
LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class Views:
    """How far views differ from their image. Called, it draws one of each: uint8 or float [B, C, H, W] -> float.

    Attributes:
        crop: smallest and largest area of the rectangle, as a share of the image's; (1, 1): all of it.
        shape: the longest side of the rectangle against the shorter, relative to the image's own.
        flip: chance of a mirror image.
        turn: angle in degrees, to either side, that an image is turned by at the most.
        shear: how far rows are moved against each other at the most, as a share of their distance.
        jitter: by how much brightness, contrast and saturation are multiplied at the most: by 1 − jitter to 1 + jitter.
        jitter_chance, grey, blur: chance of each.
        erase: side of the erased square at the most, as a share of the image's.
    """

    crop: tuple[float, float] = (0.2, 1.0)
    shape: float = 4 / 3
    flip: float = 0.5
    turn: float = 0.0
    shear: float = 0.0
    jitter: float = 0.4
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    erase: float = 0.0

    @torch.no_grad()
    def __call__(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return a view of each image, [B, C, h, w] float in the scale of 0–255, with `size` (h, w) or that of before.

        Mixed precision is not used: half of the bits would not hold the 256 shades.
        """
        with torch.autocast(images.device.type, enabled=False):
            images = images if images.dtype == torch.float64 else images.float()
            rows, columns = self._matrices(images, size or (images.shape[2], images.shape[3]))
            views = rows[:, None] @ images @ columns[:, None].transpose(2, 3)  # [B, C, h, w]
            if (self.turn > 0 or self.shear > 0) and len(views):
                views = self._turned(views)
            if self.jitter > 0:
                views = self._jittered(views)
            if self.grey > 0 and views.shape[1] == 3:
                views = torch.where(_chance(self.grey, views), _luminance(views), views)
            return self._erased(views) if self.erase > 0 else views

    def _matrices(self, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the matrices for rows [B, h, H] and for columns [B, w, W]."""
        count, sides = len(images), images.shape[2:]
        area = _between(*self.crop, images)  # [B]
        root = (self.shape ** _between(-1.0, 1.0, images)).sqrt()
        parts = [(area.sqrt() / root).clamp(max=1.0), (area.sqrt() * root).clamp(max=1.0)]
        found = []
        for side, part, out in zip(sides, parts, size, strict=True):
            length = part * side
            start = torch.rand_like(part) * (side - length)
            found.append(resize_matrix(side, out, start, length))
        if self.blur > 0:
            chosen = _chance(self.blur, images).view(count, 1, 1)
            widest = max(1.0, PAPER_SPREAD * min(size) / PAPER_SIDE)
            spread = _between(LEAST_SPREAD, widest, images)
            found = [torch.where(chosen, blur_matrix(m.shape[1], spread) @ m, m) for m in found]
        rows, columns = found
        if self.flip > 0:
            columns = torch.where(_chance(self.flip, images).view(count, 1, 1), columns.flip(1), columns)
        return rows, columns

    def _turned(self, views: Tensor) -> Tensor:
        """Return the views turned and sheared about their middles; their edges reach on outside."""
        height, width = views.shape[2:]
        angle = _between(-self.turn, self.turn, views) * math.pi / 180
        shear = _between(-self.shear, self.shear, views)
        cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # Places are given in halves of a side: what is turned in pixels is stretched where sides differ.
        across = torch.stack([cos, (shear * cos - sin) * height / width, none], dim=1)
        down = torch.stack([sin * width / height, shear * sin + cos, none], dim=1)
        places = functional.affine_grid(torch.stack([across, down], dim=1), list(views.shape), align_corners=False)
        return functional.grid_sample(views, places, padding_mode="border", align_corners=False)

    def _jittered(self, views: Tensor) -> Tensor:
        chosen = _chance(self.jitter_chance, views)

        def factor() -> Tensor:
            drawn = _between(max(0.0, 1 - self.jitter), 1 + self.jitter, views).view(-1, 1, 1, 1)
            return torch.where(chosen, drawn, torch.ones_like(drawn))

        views = (views * factor()).clamp(0, 255)
        mean = _luminance(views).mean((2, 3), keepdim=True) if views.shape[1] == 3 else views.mean((1, 2, 3), True)
        views = torch.lerp(mean, views, factor()).clamp(0, 255)
        if views.shape[1] == 3:
            views = torch.lerp(_luminance(views).expand_as(views), views, factor()).clamp(0, 255)
        return views

    def _erased(self, views: Tensor) -> Tensor:
        sides = views.shape[2:]
        lengths = tuple(max(1, round(self.erase * side)) for side in sides)
        covered = holes(len(views), tuple(sides), lengths, views.device)  # [B, 1, h, w]
        return torch.where(covered, torch.full_like(views, 127.5), views)


def _chance(share: float, images: Tensor) -> Tensor:
    """Return true for that share of the images, [B, 1, 1, 1]."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) < share


def _between(low: float, high: float, images: Tensor) -> Tensor:
    """Return evenly drawn numbers [B]."""
    drawn = torch.rand(len(images), device=images.device, dtype=images.dtype)
    return low + (high - low) * drawn


def _luminance(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMINANCE, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)  # [B, 1, H, W]
