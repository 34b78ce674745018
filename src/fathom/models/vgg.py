"""VGG: nothing but 3×3 convolutions, and more of them.

    image [B, C, H, W]                            3×224×224
      stages of 3×3 convolutions, each followed by a pool of 2×2 that halves the sides, while the maps double
                                                  64×112×112, 128×56×56, 256×28×28, 512×14×14, 512×7×7
      two fully connected layers of 4,096         [B, 4096]   half of what each gives out dropped in training
      read-out of the objective                   [B, classes]

    stage           1    2    3    4    5         weights with a read-out of 1,000 classes
    vgg11 (A)       1    1    2    2    2         132,863,336
    vgg13 (B)       2    2    2    2    2         133,047,848
    vgg16 (D)       2    2    3    3    3         138,357,544
    vgg19 (E)       2    2    4    4    4         143,667,240

Two 3×3 convolutions see what one of 5×5 sees, with fewer weights and one more rectifier between them. The presets
`…_bn` add batch normalisation, which came a year later and spares the training in steps that the paper needed. `vgg`
itself is a narrow one with it for small images on a CPU: as many stages as bring a side to about 4 pixels, and the
mean over pixels in the place of the fully connected layers, where nine of ten weights were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fathom.core.config import below_one, option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.image import Normalize

REFERENCE = (
    "Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014; "
    "Ioffe, Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift, 2015"
)
PROVEN = "the paper's parameter counts and layer shapes"
GRID = 7  # side of what the fully connected layers see, at most
LAST_SIDE = 4  # pixels, about, of the last stage's maps where the number of stages is left open


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = option((), "convolutions of each stage; none: two, in as many stages as suit the images")
    widths: tuple[int, ...] = option((), "maps of each stage; none: from 32 on, doubling up to 512")
    norm: bool = option(True, "batch normalisation after each convolution")
    hidden: int = option(0, "units of each fully connected layer; 0: none, the mean over pixels is the features")
    dropout: float = option(0.5, "share dropped of what a fully connected layer gives out, in training")


def _paper(*depths: int, norm: bool = False) -> Config:
    return Config(depths, (64, 128, 256, 512, 512), norm, 4096)


presets: dict[str, Config] = {
    "vgg11": _paper(1, 1, 2, 2, 2),
    "vgg13": _paper(2, 2, 2, 2, 2),
    "vgg16": _paper(2, 2, 3, 3, 3),
    "vgg19": _paper(2, 2, 4, 4, 4),
    "vgg11_bn": _paper(1, 1, 2, 2, 2, norm=True),
    "vgg13_bn": _paper(2, 2, 2, 2, 2, norm=True),
    "vgg16_bn": _paper(2, 2, 3, 3, 3, norm=True),
    "vgg19_bn": _paper(2, 2, 4, 4, 4, norm=True),
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
        sgd = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 74}
        return {"engine": {**sgd, **shared}, "augment": {"shift": 0.08, "flip": "auto"}}
    epochs = max(10, min(100, round(10 * (60_000 / max(spec.rows, 1)) ** 0.5)))
    adamw = {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.05, "epochs": epochs, "average": 0.99}
    return {"engine": {**adamw, **shared}, "augment": {"shift": 0.08, "flip": "auto"}}


def build(config: Config, spec: DataSpec) -> VGG:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'vgg' cannot be used: {why}.")
    for name, given, least in (
        ("depths", min(config.depths, default=1), 1),
        ("widths", min(config.widths, default=1), 1),
        ("hidden", config.hidden, 0),
    ):
        if given < least:
            raise ConfigError(f"Option 'model.{name}' was given {given}; expected {least} or more.")
    below_one(config, "dropout")
    field = spec.inputs[0]
    config = resolved(config, field)
    stride = 2 ** len(config.depths)
    if min(field.shape[1:]) < stride:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; a VGG of "
            f"{len(config.depths)} stages divides each side by {stride}: enlarge them by prepare.image_size={stride} "
            "or take fewer stages, such as model.depths=[2] with model.widths=[64]."
        )
    return VGG(config, field)


def resolved(config: Config, field: Field) -> Config:
    """Return the configuration with everything that was left open decided, for such images."""
    side = min(field.shape[1:])
    stages = len(config.depths) or len(config.widths) or max(1, round(math.log2(max(1.0, side / LAST_SIDE))))
    depths = config.depths or (2,) * stages
    widths = config.widths or tuple(min(512, 32 * 2**stage) for stage in range(stages))
    if len(depths) != len(widths):
        raise ConfigError(
            f"Options 'model.depths' ({len(depths)} stages) and 'model.widths' ({len(widths)} stages) must name the "
            "same number of stages."
        )
    return replace(config, depths=depths, widths=widths)


class VGG(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key = field.key
        self.normalize = Normalize(field)
        inputs, stages = field.shape[0], []
        for depth, width in zip(config.depths, config.widths, strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += _convolution(inputs, width, config.norm)
                inputs = width
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.stages = nn.ModuleList(stages)
        grid = [min(GRID, side >> len(stages)) for side in field.shape[1:]]
        self.read = _fully_connected(config, inputs, grid) if config.hidden else None
        self.width = config.hidden or inputs

    def forward(self, batch: Batch) -> Features:
        x = self.normalize(batch[self.key])  # [B, C, H, W]
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        pooled = x.mean((2, 3)) if self.read is None else self.read(x)  # [B, D]
        return Features(pooled=pooled, maps=tuple(maps))


def _convolution(inputs: int, width: int, norm: bool) -> list[nn.Module]:
    """Return one 3×3 convolution and what follows it. It keeps its bias before a norm, as the published weights do.

    The first weights are of a size at which rectified units keep that of the gradient (He et al., 2015); without it
    the paper had to train a shallow network first, and to put layers between.
    """
    conv = nn.Conv2d(inputs, width, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return [conv, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]


def _fully_connected(config: Config, channels: int, grid: list[int]) -> nn.Sequential:
    """Return the layers from maps [B, C, h, w] to features [B, D]."""
    first = nn.Linear(channels * grid[0] * grid[1], config.hidden)
    second = nn.Linear(config.hidden, config.hidden)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((grid[0], grid[1])),  # nothing to do at 224 pixels
        nn.Flatten(),
        first,
        nn.ReLU(inplace=True),
        nn.Dropout(config.dropout),
        second,
        nn.ReLU(inplace=True),
        nn.Dropout(config.dropout),
    )
