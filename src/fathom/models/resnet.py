"""Residual networks for images: layers that learn what to add to their input, so that depth does no harm.

    image [B, C, H, W]  ->  stem  ->  stages of blocks, each stage at half the resolution  ->  mean over pixels  [B, D]

    basic block          3×3, 3×3                          + shortcut     resnet18, resnet34
    bottleneck block     1×1, 3×3, 1×1 to 4 × its width    + shortcut     resnet50, resnet101

Large images go through the stem of the paper (7×7 by strides of 2, then a pool by 2), small ones through one 3×3.
The presets are those of the paper; those for CIFAR show images of any size to the small stem. `resnet` itself is a
short, narrow one that a CPU trains in minutes; it takes over what was found later: shortcuts that average before they
project, and blocks that begin as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.mirror import mirrors_alike
from fathom.core.published import Match
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.conv import ConvNorm, ResidualBlock, conv_norm
from fathom.layers.image import Normalize

REFERENCE = (
    "He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015; "
    "He, Zhang, Zhang, Zhang, Xie, Li, Bag of Tricks for Image Classification with Convolutional Neural Networks, 2018"
)
PROVEN = "transformers' ResNetModel, weight for weight"
PUBLISHED = ("resnet",)
LARGE = 96  # pixels of the shorter side from which the paper's stem, which divides it by four, is used
EXPANSION = 4  # of a bottleneck
LAST_SIDE = 4  # pixels, about, of the last stage's maps where the number of stages is left open
MANY_ROWS = 30_000  # training rows from which a wider network pays


@dataclass(frozen=True)
class Config:
    block: Literal["basic", "bottleneck"] = option("basic", "basic: two 3×3; bottleneck: 1×1, 3×3, 1×1")
    depths: tuple[int, ...] = option(
        (), "blocks of each stage; none: one, in as many stages as bring a side to about 4"
    )
    widths: tuple[int, ...] = option((), "channels of each stage; none: from 32 on (48 where rows are many), doubling")
    stem: Literal["auto", "small", "large"] = option("auto", "small: one 3×3; large: 7×7 and a pool, from 96 pixels on")
    stem_width: int = option(0, "channels of the stem; 0: half of the first stage's")
    stem_stride: int = option(1, "by how much a small stem divides the sides of the image (a large one by 4)")
    first_stride: int = option(2, "by how much the first stage divides them; each other stage by 2")
    shortcut: Literal["project", "average"] = option("average", "how it shrinks: by a 1×1 with stride, or a mean first")
    stride_at: Literal["1x1", "3x3"] = option("3x3", "which layer of a bottleneck has the stride")
    identity_start: bool = option(True, "begin each block as the identity (its last norm at zero)")
    mirror: Literal["auto", "yes", "no"] = option(
        "auto", "predict from an image and its mirror image together, at twice the cost; auto: where labels allow it"
    )


def _paper(block: Literal["basic", "bottleneck"], *depths: int) -> Config:
    return Config(block, depths, (64, 128, 256, 512), "auto", 64, 1, 1, "project", "1x1", False, "no")


presets: dict[str, Config] = {
    "resnet18": _paper("basic", 2, 2, 2, 2),
    "resnet34": _paper("basic", 3, 4, 6, 3),
    "resnet50": _paper("bottleneck", 3, 4, 6, 3),
    "resnet101": _paper("bottleneck", 3, 4, 23, 3),
    "resnet152": _paper("bottleneck", 3, 8, 36, 3),
    "resnet18_cifar": replace(_paper("basic", 2, 2, 2, 2), stem="small"),
    "resnet34_cifar": replace(_paper("basic", 3, 4, 6, 3), stem="small"),
    "resnet50_cifar": replace(_paper("bottleneck", 3, 4, 6, 3), stem="small"),
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


def paper(preset: str = "") -> DataSpec:
    """Return the data of the paper: ImageNet at 224 pixels, and CIFAR-10 for the presets with a stem for it."""
    if not preset.endswith("cifar"):
        return imagenet()
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(3, 32, 32)),),
        targets=(Field(name="label", kind="category", classes=tuple(f"class {i}" for i in range(10))),),
        rows=50_000,
    )


def build(config: Config, spec: DataSpec) -> ResNet:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'resnet' cannot be used: {why}.")
    _check(config)
    field = spec.inputs[0]
    config = resolved(config, field, spec.rows)
    side, stride = min(field.shape[1:]), total_stride(config, field)
    if side < stride:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; a ResNet of "
            f"{len(config.depths)} stages divides each side by {stride}: enlarge them by prepare.image_size={stride} "
            "or take fewer stages, such as model.depths=[1] with model.widths=[64]."
        )
    mirror = config.mirror == "yes" or (config.mirror == "auto" and mirrors_alike(spec.targets))
    return ResNet(config, field, mirror)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: more passes over fewer rows.

    Narrow networks are moved by Muon, which needs about half of the steps that SGD needs there. For wide ones its
    matrix products cost too much; they get SGD as in the paper, with a cosine.
    """
    narrow = max(config.widths, default=0) <= 256
    passes = 10 if narrow else 30
    epochs = round(passes * math.sqrt(max(1.0, 9_000 / max(spec.rows, 1))))
    batch = batch_size(spec.rows)
    muon = {"optimizer": "muon", "learning_rate": 0.04, "weight_decay": 0.1, "schedule": "linear", "warmup": 0.2}
    sgd = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4, "schedule": "cosine", "warmup": 0.1}
    shared = {"momentum": 0.9, "batch_size": batch, "epochs": min(100, epochs), "average": 0.99, "clip": 0.0}
    return {
        "engine": {**(muon if narrow else sgd), **shared},
        "objective": {"label_smoothing": 0.1},
        "augment": {"shift": 0.08, "flip": "auto"},
    }


def resolved(config: Config, field: Field, rows: int) -> Config:
    """Return the configuration with everything that was left open decided, for such images and so many rows."""
    side = min(field.shape[1:]) / _stem_stride(config, field)
    stages = len(config.depths) or len(config.widths) or max(1, round(math.log2(max(1.0, side / LAST_SIDE))))
    first = 32 if rows < MANY_ROWS else 48
    depths = config.depths or (1,) * stages
    widths = config.widths or tuple(first * 2**stage for stage in range(stages))
    if len(depths) != len(widths):
        raise ConfigError(
            f"Options 'model.depths' ({len(depths)} stages) and 'model.widths' ({len(widths)} stages) must name the "
            "same number of stages."
        )
    return replace(config, depths=depths, widths=widths, stem_width=config.stem_width or max(1, widths[0] // 2))


def total_stride(config: Config, field: Field) -> int:
    """Return by how much a resolved network divides the sides of such images."""
    return _stem_stride(config, field) * config.first_stride * 2 ** (len(config.depths) - 1)


class ResNet(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field, mirror: bool = False) -> None:
        super().__init__()
        self.key, self.mirror = field.key, mirror
        self.normalize = Normalize(field)
        large, side = _large(config, field), 7 if _large(config, field) else 3
        self.stem = ConvNorm(field.shape[0], config.stem_width, side, 2 if large else config.stem_stride)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        channels, stages = config.stem_width, []
        for index, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            stride = config.first_stride if index == 0 else 2
            outputs = width * EXPANSION if config.block == "bottleneck" else width
            blocks = [_block(config, channels, width, outputs, stride)]
            blocks += [_block(config, outputs, width, outputs, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = outputs
        self.stages = nn.ModuleList(stages)
        self.width = channels

    def forward(self, batch: Batch) -> Features:
        x = self.normalize(batch[self.key])  # [B, C, H, W]
        maps = self._maps(x)
        pooled = maps[-1].mean((2, 3))  # [B, D]
        if self.mirror and not self.training:
            pooled = (pooled + self._maps(x.flip(3))[-1].mean((2, 3))) / 2
        return Features(pooled=pooled, maps=maps)

    def _maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what each stage gives out."""
        x = self.pool(self.stem(x))
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


def _large(config: Config, field: Field) -> bool:
    return config.stem == "large" or (config.stem == "auto" and min(field.shape[1:]) >= LARGE)


def _stem_stride(config: Config, field: Field) -> int:
    return 4 if _large(config, field) else config.stem_stride


def _block(config: Config, inputs: int, width: int, outputs: int, stride: int) -> ResidualBlock:
    if config.block == "basic":
        layers = [ConvNorm(inputs, width, 3, stride), ConvNorm(width, outputs, activation=False)]
    else:
        first, middle = (stride, 1) if config.stride_at == "1x1" else (1, stride)
        layers = [
            ConvNorm(inputs, width, 1, first),
            ConvNorm(width, width, 3, middle),
            ConvNorm(width, outputs, 1, activation=False),
        ]
    if config.identity_start:
        nn.init.zeros_(layers[-1][1].weight)  # type: ignore[arg-type]
    return ResidualBlock(nn.Sequential(*layers), _shortcut(config, inputs, outputs, stride))


def _shortcut(config: Config, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if config.shortcut == "project" or stride == 1:
        return ConvNorm(inputs, outputs, 1, stride, activation=False)
    # A 1×1 with stride sees one pixel in stride²; the mean sees them all. Odd sides are rounded up, as 3×3s do.
    mean = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(mean, ConvNorm(inputs, outputs, 1, activation=False))


def _check(config: Config) -> None:
    least = {"depths": 1, "widths": 1, "stem_width": 0, "stem_stride": 1, "first_stride": 1}
    at_least(config, least)


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration of published weights, from the contents of transformers' `config.json`.

    Raises:
        ConfigError: the weights are of a variant that this network is not.
    """
    if settings.get("hidden_act", "relu") != "relu":
        raise ConfigError(f"The published ResNet has activation '{settings['hidden_act']}'; only 'relu' can be read.")
    block: Literal["basic", "bottleneck"] = "basic" if settings.get("layer_type") == "basic" else "bottleneck"
    outputs = settings.get("hidden_sizes") or (256, 512, 1024, 2048)
    return Config(
        block=block,
        depths=tuple(settings.get("depths") or (3, 4, 6, 3)),
        widths=tuple(size // EXPANSION if block == "bottleneck" else size for size in outputs),
        stem="large",
        stem_width=int(settings.get("embedding_size", 64)),
        first_stride=2 if settings.get("downsample_in_first_stage") else 1,
        shortcut="project",
        stride_at="1x1" if settings.get("downsample_in_bottleneck") else "3x3",
        identity_start=False,
        mirror="no",
    )


def matches(config: Config) -> Iterator[Match]:
    """Return what our weights are called in transformers' ResNet."""

    def line(ours: str, theirs: str) -> list[Match]:
        return conv_norm(ours, f"{theirs}.convolution", f"{theirs}.normalization")

    yield from line("stem", "embedder.embedder")
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            ours, theirs = f"stages.{stage}.{block}", f"encoder.stages.{stage}.layers.{block}"
            for layer in range(2 if config.block == "basic" else 3):
                yield from line(f"{ours}.branch.{layer}", f"{theirs}.layer.{layer}")
            if block == 0:
                yield from line(f"{ours}.shortcut", f"{theirs}.shortcut")
