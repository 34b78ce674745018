"""U-shaped networks: down to a coarse view of the image, and up again with what each resolution had seen.

    image [B, C, H, W]  ->  stage 0  ─────────────────────────────────>  stage 0  ->  maps[0] [B, W0, H, W]
                              └> half: stage 1  ──────────────────>  stage 1 ┘        maps[1] [B, W1, H/2, W/2]
                                    └> half: stage 2  ─>  middle ─>  stage 2 ┘        … ; mean over pixels  [B, W0]

    residual   blocks that are told the time and, where there are classes, the label; attention at coarse stages; takes
               noise out of images (Ho et al., 2020; Dhariwal and Nichol, 2021):  `ddpm`, `unet_small`, `unet` itself;
               where there is a text column it is told the caption as well
    plain      two 3×3 convolutions, a pool; a backbone without time, as in the paper of 2015:  `unet_2015`

The paper of 2015 has convolutions without padding, and so gives less than it takes: 388 of 572 pixels. Here all are
padded, so that what comes out is as large as what went in. Sides that the stages do not divide are padded with zeros to
the right and below, and cropped at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import batch_size, moved
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.condition import (
    CaptionEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    label_classes,
    unless_captions,
)
from fathom.layers.diffusion import BlockOptions, Grow, PixelAttention, Shrink, Stage, TimeBlock, begin
from fathom.layers.image import Normalize

REFERENCE = (
    "Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015; "
    "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020; "
    "Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021"
)
PROVEN = "diffusers' UNet2DModel, weight for weight, and the paper's parameter count"

LAST_SIDE = 7  # pixels, about, of the coarsest maps where the stages are left open


@dataclass(frozen=True)
class Config:
    block: Literal["residual", "plain"] = option("residual", "residual: told the time, for diffusion; plain: of 2015")
    widths: tuple[int, ...] = option(
        (), "channels of each stage, each at half the resolution; none: 32, then 64, down to a side of about 7"
    )
    depth: int = option(1, "residual blocks of a stage on the way down; there is one more on the way up")
    attention: tuple[int, ...] = option((-1,), "stages with attention after each block: 0 the finest, -1 the coarsest")
    head_width: int = option(0, "channels of an attention head; 0: one head of all")
    modulation: Literal["scale_shift", "shift"] = option("scale_shift", "what the time does to a block's second norm")
    groups: int = option(8, "groups of channels that are normalised together; they divide all widths")
    conditional: bool = option(True, "whether it can be told which class to make, where the target is a category")
    dropout: float = option(0.0, "share of units dropped in training; plain: in the two coarsest stages only")


presets: dict[str, Config] = {
    "unet_small": Config(widths=(64, 128, 128), depth=2, attention=(-2, -1), groups=32),
    "ddpm": Config(
        widths=(128, 256, 256, 256),
        depth=2,
        attention=(1,),
        modulation="shift",
        groups=32,
        conditional=False,
        dropout=0.1,
    ),
    "unet_2015": Config(block="plain", widths=(64, 128, 256, 512, 1024), attention=(), conditional=False, dropout=0.5),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return unless_captions(spec)


def example() -> DataSpec:
    """Return tiny grey images of two classes, of which one side is odd."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 3, 4), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return CIFAR-10, of which Ho et al. give the parameters."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(3, 32, 32)),),
        targets=(Field(name="label", kind="category", classes=tuple("0123456789"), counts=(5000,) * 10),),
        rows=50_000,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with.

    Narrow networks are moved by Muon: after one pass over 9,000 small images a flow's loss is .27, by AdamW .35. Wide
    ones want smaller steps.
    """
    how = moved(max(config.widths, default=0) < 256, 2e-4)
    batch = batch_size(spec.rows, steps=280)
    return {"engine": {**how, "batch_size": batch, "epochs": 20, "warmup": 0.05, "average": 0.999}}


def build(config: Config, spec: DataSpec) -> UNet | PlainUNet:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'unet' cannot be used: {why}.")
    field = spec.images[0]
    config = replace(config, widths=config.widths or _widths(min(field.shape[1:])))
    _check(config)
    if spec.texts and (config.block == "plain" or not config.conditional):
        raise ConfigError(
            f"Model 'unet' was built without what it could be told captions by, and would overlook column "
            f"'{spec.texts[0].name}': set model.block=residual and model.conditional=true, or leave that column out."
        )
    if config.block == "plain":
        return PlainUNet(config, field)
    return UNet(config, field, label_classes(spec) if config.conditional else 0, spec.texts)


def matches(config: Config) -> Iterator[Match]:
    """Yield the table from diffusers' UNet2DModel to a residual network whose widths are given."""
    ends = {"enter": "conv_in", "norm": "conv_norm_out", "leave": "conv_out", "label.table": "class_embedding"}
    for ours, theirs in ends.items():
        yield match(ours, theirs)
    yield match("time.expand", "time_embedding.linear_1")
    yield match("time.mix", "time_embedding.linear_2")
    for index in range(2):
        yield from _block_matches(f"middle.{index}", f"mid_block.resnets.{index}")
    yield from _attention_matches("middle_attention", "mid_block.attentions.0")
    for way, stage in product(("down", "up"), range(len(config.widths))):
        ours, theirs = f"{way}.{stage}", f"{way}_blocks.{stage}"
        yield match(f"{ours}.resize" + (".conv" if way == "up" else ""), f"{theirs}.{way}samplers.0.conv")
        for index in range(config.depth + (way == "up")):
            yield from _block_matches(f"{ours}.blocks.{index}", f"{theirs}.resnets.{index}")
            yield from _attention_matches(f"{ours}.attentions.{index}", f"{theirs}.attentions.{index}")


def _block_matches(ours: str, theirs: str) -> Iterator[Match]:
    names = ("norm_in", "norm1"), ("conv_in", "conv1"), ("time", "time_emb_proj"), ("norm_out", "norm2")
    for name, there in (*names, ("conv_out", "conv2"), ("shortcut", "conv_shortcut")):
        yield match(f"{ours}.{name}", f"{theirs}.{there}")


def _attention_matches(ours: str, theirs: str) -> Iterator[Match]:
    yield match(f"{ours}.norm", f"{theirs}.group_norm")
    yield match(f"{ours}.project_in", f"{theirs}.to_q", f"{theirs}.to_k", f"{theirs}.to_v")
    yield match(f"{ours}.project_out", f"{theirs}.to_out.0")


class UNet(nn.Module):
    """The residual network; `width` is D, `classes` those that it can be told to make, `captions` whether it can be
    told in words.

    As a backbone it sees an image without noise (time 0), and is told its caption but no class. Pixels are brought to
    −1 … 1.
    """

    def __init__(self, config: Config, field: Field, classes: int, texts: tuple[Field, ...] = ()) -> None:
        super().__init__()
        self.key, self.width, self.classes, self.stride = field.key, config.widths[0], classes, _stride(config)
        self.normalize = Normalize(replace(field, stats=None))
        channels, widths, told = field.shape[0], config.widths, 4 * config.widths[0]
        options = BlockOptions(
            told, config.groups, config.modulation == "scale_shift", config.dropout, config.head_width
        )
        self.time = TimeEmbedding(widths[0], told)
        self.label = LabelEmbedding(classes, told) if classes else None
        self.captions = bool(texts)
        self.caption_key = texts[0].key if texts else ""
        self.caption = CaptionEmbedding(texts[0], told) if texts else None
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = _ways(config, options)
        self.middle = nn.ModuleList([TimeBlock(widths[-1], widths[-1], options) for _ in range(2)])
        self.middle_attention = PixelAttention(widths[-1], options)
        self.norm = nn.GroupNorm(config.groups, widths[0], self.middle_attention.norm.eps)
        self.leave = nn.Conv2d(widths[0], channels, 3, padding=1)
        begin(self.enter)
        begin(self.leave, zero=True)

    def forward(self, batch: Batch) -> Features:
        image = self.normalize(batch[self.key])  # [B, C, H, W]
        caption = batch[self.caption_key] if self.captions else None
        maps = _cropped(self.maps(image, image.new_zeros(image.shape[0]), None, caption), *image.shape[2:])
        return Features(pooled=maps[0].mean((2, 3)), maps=maps)

    def denoise(self, x: Tensor, time: Tensor, label: Tensor | None = None, caption: Tensor | None = None) -> Tensor:
        """Return what the objective asks for, in the shape of `x` [B, C, H, W].

        Args:
            time: [B], how much noise there is, from 0 to 1,000.
            label: [B], classes; the code `classes` stands for none.
            caption: [B, T], tokens; a row of padding stands for none.
        """
        return self.leave(self.maps(x, time, label, caption)[0])[:, :, : x.shape[2], : x.shape[3]]

    def maps(self, x: Tensor, time: Tensor, label: Tensor | None, caption: Tensor | None = None) -> list[Tensor]:
        """Return what each stage gives on the way up, finest first, the first one normalised, with what was padded."""
        told = self.time(time)  # [B, 4·D]
        if self.label is not None:
            told = told + self.label(label, x.shape[0])
        if self.caption is not None:
            told = told + self.caption(caption, x.shape[0])
        told = F.silu(told)
        x = self.enter(_padded(x, self.stride))
        skipped = [x]
        for stage in self.down:
            skipped += stage.down(skipped[-1], told)  # type: ignore[operator]
        x = self.middle_attention(self.middle[0](skipped[-1], told))
        x = self.middle[1](x, told)
        found: list[Tensor] = []
        for stage in self.up:
            seen, x = stage.up(x, skipped, told)  # type: ignore[operator]
            found.insert(0, seen)
        found[0] = F.silu(self.norm(found[0]))
        return found


class PlainUNet(nn.Module):
    """The network of 2015; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key, self.width, self.stride = field.key, config.widths[0], _stride(config)
        self.normalize = Normalize(field)
        widths = config.widths
        self.down = nn.ModuleList(
            _double(inputs, outputs) for inputs, outputs in zip((field.shape[0], *widths), widths, strict=False)
        )
        self.grow = nn.ModuleList(nn.ConvTranspose2d(v, w, 2, stride=2) for w, v in _pairs(widths))
        self.up = nn.ModuleList(_double(2 * w, w) for w, _ in _pairs(widths))
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        for grow in self.grow:  # without a ReLU, and each pixel grows from one
            nn.init.normal_(grow.weight, std=grow.in_channels**-0.5)  # type: ignore[union-attr, operator, arg-type]
            nn.init.zeros_(grow.bias)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Features:
        image = self.normalize(batch[self.key])  # [B, C, H, W]
        height, width = image.shape[2:]
        x, skipped = _padded(image, self.stride), []
        for index, double in enumerate(self.down):
            x = double(F.max_pool2d(x, 2) if index else x)
            if index >= len(self.down) - 2:
                x = self.dropout(x)
            skipped.append(x)
        found: list[Tensor] = [skipped.pop()]
        for grow, double in zip(self.grow, self.up, strict=True):
            x = double(torch.cat([skipped.pop(), grow(found[0])], dim=1))
            found.insert(0, x)
        maps = _cropped(found, height, width)
        return Features(pooled=maps[0].mean((2, 3)), maps=maps)


def _ways(config: Config, options: BlockOptions) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return the stages on the way down, finest first, and on the way up, coarsest first."""
    widths, last = config.widths, len(config.widths) - 1
    attention = {index % len(widths) for index in config.attention}
    down, up, given = [], [], [widths[0]]  # given: the channels of all that is kept for the way up
    for index, width in enumerate(widths):
        inputs = [given[-1]] + [width] * (config.depth - 1)
        down.append(Stage(inputs, width, index in attention, options, Shrink(width) if index < last else None))
        given += [width] * (config.depth + (index < last))
    coming = widths[-1]
    for index, width in reversed(list(enumerate(widths))):
        inputs = [before + given.pop() for before in [coming] + [width] * config.depth]
        up.append(Stage(inputs, width, index in attention, options, Grow(width) if index else None))
        coming = width
    return nn.ModuleList(down), nn.ModuleList(up)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3×3 convolutions with ReLUs, begun as He et al., 2015, have it."""
    layers: list[nn.Module] = []
    for size in (inputs, outputs):
        conv = nn.Conv2d(size, outputs, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [conv, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _pairs(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (channels of a stage, channels of the coarser one), coarsest first."""
    return list(pairwise(widths))[::-1]


def _widths(side: int) -> tuple[int, ...]:
    """Return the widths of a small network whose coarsest maps have a side of about `LAST_SIDE`."""
    stages = max(2, 1 + round(math.log2(max(1, side) / LAST_SIDE)))
    return (32,) + (64,) * (stages - 1)


def _stride(config: Config) -> int:
    return 2 ** (len(config.widths) - 1)


def _padded(x: Tensor, stride: int) -> Tensor:
    """Return the image with zeros to the right and below, so that the stride divides its sides."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % stride, 0, -height % stride)) if height % stride or width % stride else x


def _cropped(maps: list[Tensor], height: int, width: int) -> tuple[Tensor, ...]:
    """Return the maps, finest first, without what stands for padding alone."""
    return tuple(m[:, :, : -(-height // 2**i), : -(-width // 2**i)] for i, m in enumerate(maps))


def _check(config: Config) -> None:
    stages = len(config.widths)
    if min(config.widths) < 1:
        raise ConfigError(f"Option 'model.widths' was given {list(config.widths)}; expected channels of 1 or more.")
    at_least(config, {"depth": 1, "groups": 1, "head_width": 0})
    below_one(config, "dropout")
    if config.block == "plain":
        if config.attention and config.attention != Config().attention:
            raise ConfigError("Option 'model.attention' is for residual blocks; set model.block=residual.")
        return
    for index in config.attention:
        if not -stages <= index < stages:
            raise ConfigError(
                f"Option 'model.attention' names stage {index}; there are {stages} stages, {-stages} to {stages - 1}."
            )
    for width in config.widths:
        if width % config.groups:
            raise ConfigError(
                f"Option 'model.groups' was given {config.groups}, which does not divide the width of {width}; "
                f"expected a divisor of all of model.widths={list(config.widths)}."
            )
        if config.head_width and width % config.head_width:
            raise ConfigError(
                f"Option 'model.head_width' was given {config.head_width}, which does not divide the width of {width}; "
                "expected a divisor of every width, or 0 for one head."
            )
