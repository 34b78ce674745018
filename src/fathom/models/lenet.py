"""LeNet: the convolutional network that read cheques, and the pattern of all that followed.

    image [B, C, H, W]                          1×28×28, with 2 grey pixels around it as 1×32×32
      C1  5×5 convolution, 6 maps               6×28×28
      S2  every 2×2 pixels to one               6×14×14
      C3  5×5 convolution, 16 maps              16×10×10
      S4  every 2×2 pixels to one               16×5×5        larger images: their means over a 5×5 grid
      C5  fully connected, 120 units            [B, 120]
      F6  fully connected, 84 units             [B, 84]       the features
      read-out of the objective                 [B, classes]

`lenet5` is the paper's network in the form that became common: with its scaled tanh and its subsampling by means, and
61,706 weights, those of a read-out of ten classes among them. Three things of the paper are not taken: C3 there sees
chosen groups of S2's maps only (1,516 weights rather than 2,416), each subsampled map has a factor and a bias that are
learned and a sigmoid on top, and the read-out measures the distance to drawn 7×12 prototypes of the ten digits (radial
basis functions). `lenet` itself takes what was found later: rectified units, and the maximum of 2×2 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.config import option
from fathom.core.conventions import batch_size
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.image import Normalize

REFERENCE = "LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998"
PROVEN = "the paper's layer shapes and parameter count"
KERNEL = 5
PADDED = 32  # pixels; smaller images get a frame, so that strokes near the border are seen by as many units as others
FRAME = 2
GRID = 5  # side of what C5 sees, at most


@dataclass(frozen=True)
class Config:
    activation: Literal["relu", "tanh"] = option("relu", "tanh: the paper's, 1.7159 · tanh(2x/3)")
    subsampling: Literal["max", "mean"] = option("max", "what stands for 2×2 pixels; mean: about the paper's")
    maps: tuple[int, int] = option((6, 16), "maps of C1 and C3")
    units: tuple[int, int] = option((120, 84), "units of C5 and F6")
    frame: int | None = option(None, "grey pixels around the image; by default 2 where a side is below 32 pixels")


presets: dict[str, Config] = {"lenet5": Config(activation="tanh", subsampling="mean")}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("image")


def example() -> DataSpec:
    """Return small grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 16, 16), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return handwritten digits, as in the paper."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(33.3,), std=(78.6,))),),
        targets=(Field(name="digit", kind="category", classes=tuple("0123456789"), counts=(6000,) * 10),),
        rows=60_000,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: so small a network gains from many passes, and from images that move little."""
    batch = batch_size(spec.rows)
    epochs = max(20, min(100, round(20 * (60_000 / max(spec.rows, 1)) ** 0.5)))
    return {
        "engine": {
            "optimizer": "adamw",
            "learning_rate": 3e-3,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup": 0.05,
            "epochs": epochs,
            "batch_size": batch,
            "average": 0.99,
        },
        "augment": {"shift": 0.04, "flip": "no"},  # mirrored as well is more than it can hold
    }


def build(config: Config, spec: DataSpec) -> LeNet:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'lenet' cannot be used: {why}.")
    for name, given in (("maps", min(config.maps)), ("units", min(config.units))):
        if given < 1:
            raise ConfigError(f"Option 'model.{name}' was given {given}; expected 1 or more.")
    if config.frame is not None and not 0 <= config.frame < KERNEL:
        raise ConfigError(f"Option 'model.frame' was given {config.frame}; expected 0 to {KERNEL - 1}.")
    field = spec.inputs[0]
    frame, least = _frame(config, field), 1
    for _ in range(2):
        least = 2 * least + KERNEL - 1
    if min(field.shape[1:]) + 2 * frame < least:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; LeNet's layers need "
            f"{least - 2 * frame} a side with a frame of {frame}: enlarge them by "
            f"prepare.image_size={least - 2 * frame} or more."
        )
    return LeNet(config, field)


class LeNet(nn.Module):
    """The network; `width` is D, the units of F6."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key, self.width = field.key, config.units[1]
        self.normalize = Normalize(field)
        frame = _frame(config, field)
        self.c1 = nn.Conv2d(field.shape[0], config.maps[0], KERNEL, padding=frame)
        self.c3 = nn.Conv2d(config.maps[0], config.maps[1], KERNEL)
        self.subsample = nn.MaxPool2d(2) if config.subsampling == "max" else nn.AvgPool2d(2)
        self.squash = ScaledTanh() if config.activation == "tanh" else nn.ReLU()
        rows, columns = (min(GRID, _subsampled(_subsampled(side + 2 * frame))) for side in field.shape[1:])
        self.grid = nn.AdaptiveAvgPool2d((rows, columns))  # nothing to do for images of up to 32 pixels
        self.c5 = nn.Linear(config.maps[1] * rows * columns, config.units[0])
        self.f6 = nn.Linear(config.units[0], config.units[1])
        for layer in (self.c1, self.c3, self.c5, self.f6):
            _start(layer, config.activation)

    def forward(self, batch: Batch) -> Features:
        x = self.normalize(batch[self.key])  # [B, C, H, W]
        fine = self.subsample(self.squash(self.c1(x)))  # S2: [B, 6, 14, 14]
        coarse = self.subsample(self.squash(self.c3(fine)))  # S4: [B, 16, 5, 5]
        x = self.squash(self.c5(self.grid(coarse).flatten(1)))  # [B, 120]
        return Features(pooled=self.squash(self.f6(x)), maps=(fine, coarse))


class ScaledTanh(nn.Module):
    """1.7159 · tanh(2x/3), which leaves ±1 at ±1 and bends most there, so that units seldom saturate."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


def _frame(config: Config, field: Field) -> int:
    return config.frame if config.frame is not None else FRAME if min(field.shape[1:]) < PADDED else 0


def _subsampled(side: int) -> int:
    """Return what a convolution and the subsampling after it leave of a side."""
    return (side - KERNEL + 1) // 2


def _start(layer: nn.Conv2d | nn.Linear, activation: str) -> None:
    """Draw first weights of a size that keeps signals as they are: 1/√inputs for the scaled tanh (LeCun, Bottou, Orr,
    Müller, Efficient BackProp, 1998), √(2/inputs) for rectified units (He et al., 2015)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if activation == "relu" else "linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
