"""EfficientNets: one small network found by search, and larger ones by scaling depth, width and image together.

    image [B, C, H, W]  ->  3×3 stem  ->  seven stages of blocks  ->  1×1  ->  mean over pixels  [B, D]

    block    1×1 up  ->  3×3 or 5×5 depthwise  ->  gates on channels  ->  1×1 down, + input

Compound scaling: with φ times the budget (in powers of two) the network gets 1.2^φ times as deep, 1.1^φ times as wide,
on images 1.15^φ times as large, for 1.2 · 1.1² · 1.15² is about 2. The presets' coefficients are the published ones,
which follow that rule roughly, with the images that they were made for:

    preset           width   depth   image           preset           width   depth   image
    efficientnet_b0    1.0     1.0     224           efficientnet_b3    1.2     1.4     300
    efficientnet_b1    1.0     1.1     240           efficientnet_b4    1.4     1.8     380
    efficientnet_b2    1.1     1.2     260

A 32nd of each side is left at the end. For smaller images the first layers that would halve the sides do not, so that
about four pixels are left. `efficientnet` itself is half as wide and as deep as the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from fathom.core.config import option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.conv import ConvNorm, InvertedResidual, SqueezeExcite, conv_norm, reducing, rounded
from fathom.layers.image import Normalize

REFERENCE = "Tan, Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019"
PROVEN = "transformers' EfficientNetModel, weight for weight"
PUBLISHED = ("efficientnet",)
STRIDE = 32  # by how much the paper's networks divide the sides of an image
STEM, LAST = 32, 1280  # channels of the first and the last convolution, before scaling
DEEPER, WIDER, LARGER = 1.2, 1.1, 1.15  # for twice the work


class Stage(NamedTuple):
    """One line of the paper's first table."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    depth: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


@dataclass(frozen=True)
class Config:
    width: float = option(0.5, "channels of each layer, as a multiple of those of b0")
    depth: float = option(0.5, "blocks of each stage, as a multiple of those of b0, rounded up")
    phi: float = option(0.0, "compound coefficient: scales width and depth, on top of theirs, for 2^phi times the work")
    stride: int = option(0, "by how much the sides are divided, a power of two to 32; 0: as leaves about four pixels")
    padding: Literal["even", "after"] = option(
        "even", "zeros where sides are halved: as many on each side, or, as in TensorFlow, to the right and below"
    )
    stochastic_depth: float = option(0.0, "share of images that skip the last block in training; earlier ones fewer")
    norm_eps: float = option(1e-3, "added to the variance by the norms")


presets: dict[str, Config] = {
    "efficientnet_b0": Config(1.0, 1.0, stochastic_depth=0.2),
    "efficientnet_b1": Config(1.0, 1.1, stochastic_depth=0.2),
    "efficientnet_b2": Config(1.1, 1.2, stochastic_depth=0.2),
    "efficientnet_b3": Config(1.2, 1.4, stochastic_depth=0.2),
    "efficientnet_b4": Config(1.4, 1.8, stochastic_depth=0.2),
}


def compound(phi: float, side: int = 224) -> tuple[float, float, int]:
    """Return what a network for 2^phi times the work is multiplied with: its width, its depth; and the image's side."""
    return WIDER**phi, DEEPER**phi, round(side * LARGER**phi)


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
    """Return the data of the paper: ImageNet, at the 224 pixels of the smallest network."""
    return imagenet()


def build(config: Config, spec: DataSpec) -> EfficientNet:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'efficientnet' cannot be used: {why}.")
    _check(config)
    field = spec.inputs[0]
    if min(field.shape[1:]) < config.stride:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; model.stride="
            f"{config.stride} divides each side by that: enlarge them by prepare.image_size={config.stride}, or leave "
            "model.stride at 0, which goes by the images."
        )
    return EfficientNet(config, field)


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


def scaled(config: Config) -> tuple[int, tuple[Stage, ...], int]:
    """Return the channels of the stem, the stages and the last channels after scaling: width and depth by the
    coefficients, channels to multiples of eight, blocks rounded up."""
    width, depth, _ = compound(config.phi)
    width, depth = width * config.width, depth * config.depth
    stages = tuple(
        stage._replace(channels=rounded(stage.channels * width), depth=math.ceil(stage.depth * depth))
        for stage in STAGES
    )
    return rounded(STEM * width), stages, rounded(LAST * width)


class EfficientNet(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        stem, stages, self.width = scaled(config)
        eps, padding = config.norm_eps, config.padding
        strides = reducing([2, *(stage.stride for stage in stages)], min(field.shape[1:]), config.stride)
        self.key = field.key
        self.normalize = Normalize(field)
        self.stem = ConvNorm(field.shape[0], stem, 3, strides[0], "silu", eps=eps, padding=padding)
        total, channels, built = sum(stage.depth for stage in stages), stem, 0
        self.stages = nn.ModuleList()
        for stage, stride in zip(stages, strides[1:], strict=True):
            blocks = []
            for index in range(stage.depth):
                skipped = config.stochastic_depth * built / total
                blocks.append(_block(config, stage, channels, stride, skipped, first=index == 0))
                channels, built = stage.channels, built + 1
            self.stages.append(nn.Sequential(*blocks))
        # A map is what a size of the image ends with: before a stage that halves it, and at the end.
        self.ends = frozenset(index for index, stride in enumerate(strides[2:]) if stride > 1)
        self.last = ConvNorm(channels, self.width, 1, 1, "silu", eps=eps)

    def forward(self, batch: Batch) -> Features:
        x = self.stem(self.normalize(batch[self.key]))  # [B, C, H, W]
        maps: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.ends:
                maps.append(x)
        x = self.last(x)
        return Features(pooled=x.mean((2, 3)), maps=(*maps, x))  # [B, D]


def _block(config: Config, stage: Stage, inputs: int, stride: int, skipped: float, first: bool) -> InvertedResidual:
    """Return a block; the first of a stage has its stride, and adds nothing to its input, whatever the channels."""
    hidden, strides = inputs * stage.expansion, stride if first else 1
    gates = SqueezeExcite(hidden, max(1, inputs // 4), "silu")  # a quarter of the channels before they are expanded
    eps, padding = config.norm_eps, config.padding
    return InvertedResidual(
        inputs, hidden, stage.channels, stage.kernel, strides, "silu", gates, skipped, eps, padding, not first
    )


def _check(config: Config) -> None:
    for name in ("width", "depth"):
        given = getattr(config, name)
        if not 0 < given < math.inf:
            raise ConfigError(f"Option 'model.{name}' was given {given}; expected a multiple above 0, such as 0.5.")
    if not -10 <= config.phi <= 10:
        raise ConfigError(f"Option 'model.phi' was given {config.phi}; expected a number from -10 to 10.")
    if config.stride not in (0, 1, 2, 4, 8, 16, STRIDE):
        raise ConfigError(f"Option 'model.stride' was given {config.stride}; expected 0, 1, 2, 4, 8, 16 or {STRIDE}.")
    if not 0 <= config.stochastic_depth < 1:
        raise ConfigError(
            f"Option 'model.stochastic_depth' was given {config.stochastic_depth}; expected a share from 0 to below 1."
        )
    if not 0 < config.norm_eps < 1:
        raise ConfigError(f"Option 'model.norm_eps' was given {config.norm_eps}; expected a small number above 0.")


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration of published weights, from the contents of transformers' `config.json`.

    Theirs pad as TensorFlow does, and list the blocks in which that comes to the same on each side at the image size
    of their preset; here the padding goes by the size of the maps, whatever the images.

    Raises:
        ConfigError: the weights are of a variant that this network is not.
    """
    read: dict[str, Any] = {
        "hidden_act": "swish",
        "depth_divisor": 8,
        "squeeze_expansion_ratio": 0.25,
        "pooling_type": "mean",
        "in_channels": [STEM, *(stage.channels for stage in STAGES[:-1])],
        "out_channels": [stage.channels for stage in STAGES],
        "kernel_sizes": [stage.kernel for stage in STAGES],
        "strides": [stage.stride for stage in STAGES],
        "expand_ratios": [stage.expansion for stage in STAGES],
        "num_block_repeats": [stage.depth for stage in STAGES],
    }
    for name, value in read.items():
        given = settings.get(name, value)
        if (list(given) if isinstance(value, list) else given) != value:
            raise ConfigError(f"The published EfficientNet has {name} = {given!r}; only {value!r} can be read.")
    return Config(
        width=float(settings.get("width_coefficient", 2.0)),
        depth=float(settings.get("depth_coefficient", 3.1)),
        stride=STRIDE,
        padding="after",
        stochastic_depth=float(settings.get("drop_connect_rate", 0.2)),
        norm_eps=float(settings.get("batch_norm_eps", 1e-3)),
    )


def matches(config: Config) -> Iterator[Match]:
    """Return what our weights are called in transformers' EfficientNet."""
    yield from conv_norm("stem", "embeddings.convolution", "embeddings.batchnorm")
    stem, stages, _ = scaled(config)
    inputs, built = stem, 0
    for stage, (expansion, *_, channels, depth) in enumerate(stages):
        for block in range(depth):
            ours, theirs = f"stages.{stage}.{block}", f"encoder.blocks.{built}"
            if expansion > 1:
                expand = f"{theirs}.expansion"
                yield from conv_norm(f"{ours}.expand", f"{expand}.expand_conv", f"{expand}.expand_bn")
            deep = f"{theirs}.depthwise_conv"
            yield from conv_norm(f"{ours}.depthwise", f"{deep}.depthwise_conv", f"{deep}.depthwise_norm")
            hidden, squeezed = inputs * expansion, max(1, inputs // 4)
            for part, shape in (("reduce", (squeezed, hidden)), ("expand", (hidden, squeezed))):
                gates, name = f"{ours}.gates.{part}", f"{theirs}.squeeze_excite.{part}"
                yield match(f"{gates}.weight", f"{name}.weight", shape=shape)  # theirs are 1×1 convolutions
                yield match(f"{gates}.bias", f"{name}.bias")
            down = f"{theirs}.projection"
            yield from conv_norm(f"{ours}.project", f"{down}.project_conv", f"{down}.project_bn")
            inputs, built = channels, built + 1
    yield from conv_norm("last", "encoder.top_conv", "encoder.top_bn")
