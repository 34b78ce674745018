"""Random changes of training images: small shifts, mirroring, an erased square. uint8 in, uint8 out.

A whole batch is changed by one gather, on whatever device it is on; every image draws its own shift and side from
torch's default generator, so that the engine's seed for a step decides them. Labels are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.holes import holes
from fathom.core.mirror import mirrors_alike
from fathom.core.types import Augment, Batch, DataSpec, Field

REFERENCE = "Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural Networks, 2012"


@dataclass(frozen=True)
class AugmentConfig:
    shift: float = option(0.08, "farthest shift in each direction, as a share of the image's side; 0: none")
    border: Literal["black", "reflect", "edge"] = option("reflect", "what stands where the image was shifted from")
    flip: Literal["auto", "yes", "no"] = option(
        "auto", "mirror half of the images, left to right; auto: unless the classes look like signs or sides"
    )
    erase: float = option(0.0, "side of a square painted grey, as a share of the image's side; 0: none")

    def __post_init__(self) -> None:
        for name, highest in (("shift", 0.5), ("erase", 1.0)):
            given = getattr(self, name)
            if not 0 <= given <= highest:
                raise ConfigError(f"Option 'augment.{name}' was given {given}; expected a share from 0 to {highest}.")


def build(spec: DataSpec, config: AugmentConfig) -> Augment | None:
    """Return what varies the images of such data, or None where nothing would be varied."""
    flip = config.flip == "yes" or (config.flip == "auto" and mirrors_alike(spec.targets))
    changes = {f.key: change for f in spec.images if (change := _ImageChange(f, config, flip)).changes_anything}
    return _Changes(changes) if changes else None


class _Changes:
    """Each image column by its own change."""

    def __init__(self, changes: dict[str, _ImageChange]) -> None:
        self.changes = changes

    def __call__(self, batch: Batch) -> Batch:
        return {key: self.changes[key](value) if key in self.changes else value for key, value in batch.items()}


class _ImageChange:
    """Shift, mirror and erase [B, C, H, W]."""

    def __init__(self, field: Field, config: AugmentConfig, flip: bool) -> None:
        height, width = field.shape[1:]
        self.shifts = tuple(min(round(config.shift * side), side - 1) for side in (height, width))
        self.hole = tuple(round(config.erase * side) for side in (height, width))
        self.flip, self.border = flip, config.border
        mean = field.stats.mean if field.stats else (127.5,)
        self.grey = torch.tensor(mean).round().to(torch.uint8).expand(field.shape[0]).reshape(1, -1, 1, 1)

    @property
    def changes_anything(self) -> bool:
        return self.flip or any(self.shifts) or all(self.hole)

    def __call__(self, images: Tensor) -> Tensor:
        size, _, height, width = images.shape
        device = images.device
        rows = _shifted(size, height, self.shifts[0], device)  # [B, H]
        columns = _shifted(size, width, self.shifts[1], device)  # [B, W]
        if self.flip:
            mirrored = torch.rand(size, 1, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        fold = _reflect if self.border == "reflect" else _clamp
        place = fold(rows, height)[:, :, None] * width + fold(columns, width)[:, None]  # [B, H, W]
        moved = images.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, images.shape[1], -1))
        images = moved.view_as(images)  # [B, C, H, W]
        if self.border == "black":
            inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None]  # [B, H, W]
            images = images * inside[:, None]
        if all(self.hole):
            covered = holes(size, (height, width), self.hole, device)
            images = torch.where(covered, self.grey.to(images), images)
        return images


def _shifted(size: int, side: int, most: int, device: torch.device) -> Tensor:
    """Return, for each image, where each of its rows (or columns) is taken from: [B, side], also outside of it."""
    return torch.arange(side, device=device) + torch.randint(-most, most + 1, (size, 1), device=device)


def _inside(place: Tensor, side: int) -> Tensor:
    return (place >= 0) & (place < side)


def _clamp(place: Tensor, side: int) -> Tensor:
    return place.clamp(0, side - 1)


def _reflect(place: Tensor, side: int) -> Tensor:
    last = side - 1
    return last - (last - place.abs()).abs()
