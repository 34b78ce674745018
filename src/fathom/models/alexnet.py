"""AlexNet: deep convolutional networks begin to win.

    image [B, C, H, W]                            3×224×224
      11×11 convolution, stride 4, 64 maps        64×55×55    then a pool of 3×3 by 2: 64×27×27
      5×5 convolution, 192 maps                   192×27×27   then a pool of 3×3 by 2: 192×13×13
      3×3 convolutions, 384, 256, 256 maps        256×13×13   then a pool of 3×3 by 2: 256×6×6
      two fully connected layers of 4,096         [B, 4096]   half of their inputs dropped in training; the features
      read-out of the objective                   [B, classes]

What it brought together: rectified units, dropout, much data with random shifts and mirror images, and two GPUs. Of
those GPUs speak the two halves into which `alexnet_2012` splits its second, fourth and fifth convolution, each reading
one half of the maps only; it also has the paper's 96, 256, 384, 384, 256 maps, and divides each answer by those of its
neighbours (local response normalisation): 60,965,224 weights with a read-out of 1,000 classes. `alexnet_2014` is the
same author's later version for one GPU, drawn above, which became the common one: no halves, no such normalisation,
61,100,840 weights. `alexnet` itself is a narrow one for small images on a CPU: below 96 pixels it begins with a 3×3
convolution of stride 1, and the mean over pixels takes the place of the fully connected layers, where nineteen of
twenty weights were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.image import Normalize

REFERENCE = (
    "Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural Networks, 2012; "
    "Krizhevsky, One Weird Trick for Parallelizing Convolutional Neural Networks, 2014"
)
PROVEN = "the papers' parameter counts and layer shapes"
LARGE = 96  # pixels of the shorter side from which the paper's first layer, which divides it by four, is used
LEAST_LARGE = 63  # pixels that the paper's layers need
GRID = 6  # side of what the fully connected layers see, at most
KERNELS = (11, 5, 3, 3, 3)
POOLED = (0, 1, 4)  # convolutions that a pool follows


@dataclass(frozen=True)
class Config:
    widths: tuple[int, int, int, int, int] = option((32, 64, 96, 96, 128), "maps of each convolution")
    stem: Literal["auto", "small", "large"] = option(
        "auto", "first layer; small: 3×3; large: 11×11 by strides of 4, from 96 pixels on"
    )
    groups: int = option(1, "parts that the second, fourth and fifth convolution are split into")
    response_norm: bool = option(False, "divide by the answers of neighbouring maps, after the first two convolutions")
    hidden: int = option(0, "units of each fully connected layer; 0: none, the mean over pixels is the features")
    dropout: float = option(0.5, "share dropped of what enters a fully connected layer, in training")


presets: dict[str, Config] = {
    "alexnet_2012": Config((96, 256, 384, 384, 256), "large", groups=2, response_norm=True, hidden=4096),
    "alexnet_2014": Config((64, 192, 384, 256, 256), "large", hidden=4096),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("image")


def example() -> DataSpec:
    """Return small grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 12, 12), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return photographs of a thousand things, as in the paper."""
    return imagenet()


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with. The fully connected layers get the paper's optimiser, and its weight decay."""
    shared = {"batch_size": batch_size(spec.rows), "warmup": 0.1}
    if config.hidden:
        sgd = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 90}
        return {"engine": {**sgd, **shared}, "augment": {"shift": 0.08, "flip": "auto"}}
    epochs = max(10, min(100, round(10 * (60_000 / max(spec.rows, 1)) ** 0.5)))
    adamw = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05, "epochs": epochs, "average": 0.99}
    return {"engine": {**adamw, **shared}, "augment": {"shift": 0.08, "flip": "auto"}}


def build(config: Config, spec: DataSpec) -> AlexNet:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'alexnet' cannot be used: {why}.")
    for name, given, least in (("widths", min(config.widths), 1), ("groups", config.groups, 1)):
        if given < least:
            raise ConfigError(f"Option 'model.{name}' was given {given}; expected {least} or more.")
    at_least(config, {"hidden": 0})
    below_one(config, "dropout")
    indivisible = [width for width in config.widths if width % config.groups]
    if indivisible:
        raise ConfigError(
            f"Option 'model.groups' was given {config.groups}, which does not divide {indivisible[0]} of model.widths; "
            "take widths that are its multiples."
        )
    field = spec.inputs[0]
    if _large(config, field) and min(field.shape[1:]) < LEAST_LARGE:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; the paper's first layers "
            f"need {LEAST_LARGE} a side: set model.stem=small, or enlarge the images by prepare.image_size=224."
        )
    return AlexNet(config, field)


class AlexNet(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        large = _large(config, field)
        self.key = field.key
        self.normalize = Normalize(field)
        inputs, stages = field.shape[0], []
        layers: list[nn.Module] = []
        for index, width in enumerate(config.widths):
            layers += [_convolution(config, index, inputs, width, large), nn.ReLU(inplace=True)]
            if config.response_norm and index in (0, 1):
                layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # the paper's 1e-4, times its 5
            if index in POOLED:
                layers.append(nn.MaxPool2d(3, 2, padding=0 if large else 1))
                stages.append(nn.Sequential(*layers))
                layers = []
            inputs = width
        self.stages = nn.ModuleList(stages)
        grid = [min(GRID, _left(side, large)) for side in field.shape[1:]]
        self.read = _fully_connected(config, grid) if config.hidden else None
        self.width = config.hidden or config.widths[-1]

    def forward(self, batch: Batch) -> Features:
        x = self.normalize(batch[self.key])  # [B, C, H, W]
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        pooled = x.mean((2, 3)) if self.read is None else self.read(x)  # [B, D]
        return Features(pooled=pooled, maps=tuple(maps))


def _large(config: Config, field: Field) -> bool:
    return config.stem == "large" or (config.stem == "auto" and min(field.shape[1:]) >= LARGE)


def _left(side: int, large: bool) -> int:
    """Return what the convolutions and pools leave of a side."""
    if large:
        side = (side + 4 - 11) // 4 + 1
    for _ in POOLED:
        side = (side - 3) // 2 + 1 if large else (side - 1) // 2 + 1
    return side


def _convolution(config: Config, index: int, inputs: int, width: int, large: bool) -> nn.Conv2d:
    """Return one convolution, its first weights of a size at which rectified units keep that of the signal."""
    groups = config.groups if index in (1, 3, 4) else 1
    if index == 0:
        conv = nn.Conv2d(inputs, width, 11, 4, padding=2) if large else nn.Conv2d(inputs, width, 3, padding=1)
    else:
        kernel = KERNELS[index]
        conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, groups=groups)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _fully_connected(config: Config, grid: list[int]) -> nn.Sequential:
    """Return the layers from maps [B, C, h, w] to features [B, D]."""
    first = nn.Linear(config.widths[-1] * grid[0] * grid[1], config.hidden)
    second = nn.Linear(config.hidden, config.hidden)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    drop = config.dropout
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((grid[0], grid[1])),  # nothing to do at 224 pixels
        nn.Flatten(),
        nn.Dropout(drop),
        first,
        nn.ReLU(inplace=True),
        nn.Dropout(drop),
        second,
        nn.ReLU(inplace=True),
    )
