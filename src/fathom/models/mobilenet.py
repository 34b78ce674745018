"""MobileNets: convolutional networks for phones, made of convolutions that look at one channel at a time.

    image [B, C, H, W]  ->  3×3 stem  ->  blocks  ->  1×1 (v2, v3)  ->  mean over pixels  ->  linear (v3)  ->  [B, D]

    v1  2017   3×3 depthwise, 1×1                         a ninth of the work of a full 3×3
    v2  2018   1×1 up, 3×3 depthwise, 1×1 down, + input   few channels between blocks, many within, and no activation
                                                          where channels are few
    v3  2019   the same, searched by machine              3×3 or 5×5, with gates on channels (squeeze-and-excitation)
                                                          and hard-swish, where they pay

The presets are those of the papers, for images of 224 pixels of which a 32nd of each side is left at the end. For
smaller images the first layers that would halve the sides do not, so that about four pixels are left. `mobilenet`
itself is the small third one at half of its width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.published import Match
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.conv import ConvNorm, InvertedResidual, SqueezeExcite, conv_norm, reducing, rounded
from fathom.layers.image import Normalize

REFERENCE = (
    "Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam, MobileNets: Efficient Convolutional Neural "
    "Networks for Mobile Vision Applications, 2017; Sandler, Howard, Zhu, Zhmoginov, Chen, MobileNetV2: Inverted "
    "Residuals and Linear Bottlenecks, 2018; Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le, "
    "Adam, Searching for MobileNetV3, 2019"
)
PROVEN = "transformers' MobileNetV1Model and MobileNetV2Model, weight for weight; the third by its paper's counts"
PUBLISHED = ("mobilenet_v1", "mobilenet_v2")
STRIDE = 32  # by how much each of the papers' networks divides the sides of an image


@dataclass(frozen=True)
class Config:
    version: Literal["v1", "v2", "v3_small", "v3_large"] = option("v3_small", "which paper's blocks")
    multiplier: float = option(0.5, "channels of each layer, as a multiple of the paper's")
    stride: int = option(0, "by how much the sides are divided, a power of two to 32; 0: as leaves about four pixels")
    padding: Literal["even", "after"] = option(
        "even",
        "zeros where sides are halved: as many on each side, or, as in TensorFlow, to the right and below",
    )
    stochastic_depth: float = option(0.0, "share of images that skip the last block in training; earlier ones fewer")
    norm_eps: float = option(1e-3, "added to the variance by the norms")


presets: dict[str, Config] = {
    "mobilenet_v1": Config("v1", 1.0),
    "mobilenet_v2": Config("v2", 1.0),
    "mobilenet_v3_small": Config("v3_small", 1.0),
    "mobilenet_v3_large": Config("v3_large", 1.0),
}


class Row(NamedTuple):
    """One block, as the papers' tables have it: channels within and after it, and whether it has gates."""

    kernel: int
    hidden: int
    outputs: int
    stride: int
    gates: bool = False
    activation: str = "relu6"


V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
V3_LARGE = (
    Row(3, 16, 16, 1, False, "relu"),
    Row(3, 64, 24, 2, False, "relu"),
    Row(3, 72, 24, 1, False, "relu"),
    Row(5, 72, 40, 2, True, "relu"),
    Row(5, 120, 40, 1, True, "relu"),
    Row(5, 120, 40, 1, True, "relu"),
    Row(3, 240, 80, 2, False, "hardswish"),
    Row(3, 200, 80, 1, False, "hardswish"),
    Row(3, 184, 80, 1, False, "hardswish"),
    Row(3, 184, 80, 1, False, "hardswish"),
    Row(3, 480, 112, 1, True, "hardswish"),
    Row(3, 672, 112, 1, True, "hardswish"),
    Row(5, 672, 160, 2, True, "hardswish"),
    Row(5, 960, 160, 1, True, "hardswish"),
    Row(5, 960, 160, 1, True, "hardswish"),
)
V3_SMALL = (
    Row(3, 16, 16, 2, True, "relu"),
    Row(3, 72, 24, 2, False, "relu"),
    Row(3, 88, 24, 1, False, "relu"),
    Row(5, 96, 40, 2, True, "hardswish"),
    Row(5, 240, 40, 1, True, "hardswish"),
    Row(5, 240, 40, 1, True, "hardswish"),
    Row(5, 120, 48, 1, True, "hardswish"),
    Row(5, 144, 48, 1, True, "hardswish"),
    Row(5, 288, 96, 2, True, "hardswish"),
    Row(5, 576, 96, 1, True, "hardswish"),
    Row(5, 576, 96, 1, True, "hardswish"),
)


class Plan(NamedTuple):
    """A whole network: channels of the stem, the blocks, of the last 1×1 and of the linear layer (0: there is none)."""

    stem: int
    rows: tuple[Row, ...]
    last: int
    linear: int


def planned(config: Config) -> Plan:
    """Return the table of a version, with its channels multiplied."""
    by = config.multiplier
    if config.version == "v1":
        rows = [Row(3, 0, max(8, int(outputs * by)), stride) for outputs, stride in V1]
        return Plan(max(8, int(32 * by)), tuple(rows), 0, 0)
    if config.version == "v2":
        rows, inputs = [], rounded(32 * by)
        for expansion, outputs, depth, stride in V2:
            for index in range(depth):
                rows.append(Row(3, rounded(inputs * expansion), rounded(outputs * by), stride if index == 0 else 1))
                inputs = rows[-1].outputs
        return Plan(rounded(32 * by), tuple(rows), rounded(1280 * max(1.0, by)), 0)
    table, linear = (V3_SMALL, 1024) if config.version == "v3_small" else (V3_LARGE, 1280)
    rows = [row._replace(hidden=rounded(row.hidden * by), outputs=rounded(row.outputs * by)) for row in table]
    return Plan(rounded(16 * by), tuple(rows), rows[-1].hidden, rounded(linear * by))


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("image")


def example() -> DataSpec:
    """Return small grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return the data of the papers: ImageNet, at 224 pixels."""
    return imagenet()


def build(config: Config, spec: DataSpec) -> MobileNet:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'mobilenet' cannot be used: {why}.")
    _check(config)
    field = spec.inputs[0]
    if min(field.shape[1:]) < config.stride:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; model.stride="
            f"{config.stride} divides each side by that: enlarge them by prepare.image_size={config.stride}, or leave "
            "model.stride at 0, which goes by the images."
        )
    return MobileNet(config, field)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: more passes over fewer rows."""
    epochs = round(20 * math.sqrt(max(1.0, 9_000 / max(spec.rows, 1))))
    batch = batch_size(spec.rows)
    return {
        "engine": {
            "learning_rate": 4e-3,
            "weight_decay": 0.05,
            "warmup": 0.1,
            "batch_size": batch,
            "epochs": min(100, epochs),
            "average": 0.99,
        },
        "objective": {"label_smoothing": 0.1},
        "augment": {"shift": 0.08, "flip": "auto"},
    }


class MobileNet(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        stem, rows, last, linear = planned(config)
        strides = reducing([2, *(row.stride for row in rows)], min(field.shape[1:]), config.stride)
        activation = "hardswish" if linear else "relu6"
        eps, padding = config.norm_eps, config.padding
        self.key = field.key
        self.normalize = Normalize(field)
        self.stem = ConvNorm(field.shape[0], stem, 3, strides[0], activation, eps=eps, padding=padding)
        self.blocks = nn.ModuleList()
        channels = stem
        for index, (row, stride) in enumerate(zip(rows, strides[1:], strict=True)):
            self.blocks.append(_block(config, row, channels, stride, index / (len(rows) - 1)))
            channels = row.outputs
        # A map is what a size of the image ends with: before a block that halves it, and at the end.
        self.ends = frozenset(index for index, stride in enumerate(strides[2:]) if stride > 1)
        self.last = ConvNorm(channels, last, 1, 1, activation, eps=eps) if last else None
        self.linear = nn.Linear(last, linear) if linear else None
        self.width = linear or last or channels

    def forward(self, batch: Batch) -> Features:
        x = self.stem(self.normalize(batch[self.key]))  # [B, C, H, W]
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        if self.last is not None:
            x = self.last(x)
        pooled = x.mean((2, 3))
        if self.linear is not None:
            pooled = F.hardswish(self.linear(pooled))
        return Features(pooled=pooled, maps=(*maps, x))  # [B, D]


def _block(config: Config, row: Row, inputs: int, stride: int, depth: float) -> nn.Module:
    eps, padding = config.norm_eps, config.padding
    if config.version == "v1":
        return nn.Sequential(
            ConvNorm(inputs, inputs, 3, stride, row.activation, inputs, eps, padding),
            ConvNorm(inputs, row.outputs, 1, 1, row.activation, eps=eps),
        )
    gates = SqueezeExcite(row.hidden, rounded(row.hidden / 4), gate="hardsigmoid") if row.gates else None
    skipped = config.stochastic_depth * depth
    return InvertedResidual(
        inputs, row.hidden, row.outputs, row.kernel, stride, row.activation, gates, skipped, eps, padding
    )


def _check(config: Config) -> None:
    if not 0 < config.multiplier < math.inf:
        raise ConfigError(
            f"Option 'model.multiplier' was given {config.multiplier}; expected a number above 0, such as 0.5."
        )
    if config.stride not in (0, 1, 2, 4, 8, 16, STRIDE):
        raise ConfigError(f"Option 'model.stride' was given {config.stride}; expected 0, 1, 2, 4, 8, 16 or {STRIDE}.")
    if not 0 <= config.stochastic_depth < 1:
        raise ConfigError(
            f"Option 'model.stochastic_depth' was given {config.stochastic_depth}; expected a share from 0 to below 1."
        )
    if config.stochastic_depth and config.version == "v1":
        raise ConfigError(
            "Option 'model.stochastic_depth' skips blocks, which those of MobileNet v1 cannot bear, for they add "
            "nothing to their input: leave it at 0, or take model.version=v2."
        )
    if not 0 < config.norm_eps < 1:
        raise ConfigError(f"Option 'model.norm_eps' was given {config.norm_eps}; expected a small number above 0.")


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration of published weights, from the contents of transformers' `config.json`.

    Raises:
        ConfigError: the weights are of a variant that this network is not.
    """
    version: Literal["v1", "v2"] = "v2" if settings["model_type"] == "mobilenet_v2" else "v1"
    multiplier = float(settings.get("depth_multiplier", 1.0))
    read = {"hidden_act": "relu6", "min_depth": 8}
    if version == "v2":
        read |= {"depth_divisible_by": 8, "expand_ratio": 6, "output_stride": STRIDE, "first_layer_is_expansion": True}
        read |= {"finegrained_output": True} if multiplier < 1 else {}
    for name, value in read.items():
        if settings.get(name, value) != value:
            raise ConfigError(f"The published MobileNet has {name} = {settings[name]!r}; only {value!r} can be read.")
    padding: Literal["even", "after"] = "after" if settings.get("tf_padding", True) else "even"
    return Config(version, multiplier, STRIDE, padding, norm_eps=float(settings.get("layer_norm_eps", 1e-3)))


def matches(config: Config) -> Iterator[Match]:
    """Return what our weights are called in transformers' MobileNetV1 or MobileNetV2; of v3 there is none."""
    if config.version.startswith("v3"):
        return
    stem = "conv_stem" if config.version == "v1" else "conv_stem.first_conv"
    places = [("stem", stem)]
    for index in range(len(planned(config).rows)):
        if config.version == "v1":
            places += [(f"blocks.{index}.{part}", f"layer.{2 * index + part}") for part in (0, 1)]
        else:  # their first block is a part of the stem
            theirs = f"layer.{index - 1}" if index else "conv_stem"
            parts = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
            places += [(f"blocks.{index}.{ours}", f"{theirs}.{name}") for ours, name in parts.items()]
    if config.version == "v2":
        places.append(("last", "conv_1x1"))
    for ours, theirs in places:
        yield from conv_norm(ours, f"{theirs}.convolution", f"{theirs}.normalization")
