"""ConvNeXt: a convolutional network that took over, one by one, what made vision transformers good.

    image [B, C, H, W]  ->  patches, normalised  [B, H/p, W/p, C₁]
                        ->  stages of blocks, a halving of the sides between them
                        ->  mean over pixels, normalised  [B, D]

    block    7×7 depthwise  ->  layer norm  ->  to 4 × its width  ->  GELU  ->  back  ->  times a learned scale, + input

A depthwise convolution mixes places and leaves channels alone, the two linear layers mix channels and leave places
alone, as attention and the feed-forward network do it in a transformer. Channels stand last throughout. The presets
are those of the paper, for images of 224 pixels, patches of 4 and so a 32nd of the side at the end; smaller images
get smaller patches. `convnext` itself is a narrow, short one that a CPU trains in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.conv import DepthwiseBlock
from fathom.layers.image import Normalize

REFERENCE = "Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, A ConvNet for the 2020s, 2022"
PROVEN = "transformers' ConvNextModel, weight for weight"
PUBLISHED = ("convnext",)
LAST_SIDE = 4  # pixels, about, of the last stage's maps where patches or stages are left open
FIRST_WIDTH = 40  # where widths are left open


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = option((), "blocks of each stage; none: two, in as many stages as the image has room for")
    widths: tuple[int, ...] = option((), "channels of each stage; none: 40 in the first, doubling")
    patch: int = option(0, "side of a patch in pixels; 0: 4, of small images 2, of tiny ones 1")
    layer_scale: float = option(0.1, "what a block's branch is multiplied with at first; 0: nothing, and it stays so")
    stochastic_depth: float = option(0.0, "share of images that skip the last block in training; earlier ones fewer")
    first_std: float = option(0.0, "spread of the first weights; 0: by a layer's inputs, so that signals keep size")
    norm_eps: float = option(1e-6, "added to the variance by the last norm")


def _paper(depths: tuple[int, ...], width: int, stochastic_depth: float) -> Config:
    return Config(depths, tuple(width * 2**stage for stage in range(4)), 0, 1e-6, stochastic_depth, 0.02)


presets: dict[str, Config] = {
    "convnext_tiny": _paper((3, 3, 9, 3), 96, 0.1),
    "convnext_small": _paper((3, 3, 27, 3), 96, 0.4),
    "convnext_base": _paper((3, 3, 27, 3), 128, 0.5),
    "convnext_large": _paper((3, 3, 27, 3), 192, 0.5),
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
    """Return the data of the paper: ImageNet, at 224 pixels."""
    return imagenet()


def build(config: Config, spec: DataSpec) -> ConvNeXt:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'convnext' cannot be used: {why}.")
    field = spec.inputs[0]
    config = resolved(config, field)
    side, stride = min(field.shape[1:]), config.patch * 2 ** (len(config.depths) - 1)
    if side < stride:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; a ConvNeXt of "
            f"{len(config.depths)} stages on patches of {config.patch} divides each side by {stride}: enlarge them by "
            f"prepare.image_size={stride}, or take smaller patches or fewer stages, such as model.patch=1 with "
            "model.depths=[2] and model.widths=[40]."
        )
    return ConvNeXt(config, field)


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: AdamW as in the paper, with more passes over fewer rows."""
    epochs = round(20 * math.sqrt(max(1.0, 9_000 / max(spec.rows, 1))))
    batch = batch_size(spec.rows)
    return {
        "engine": {
            "learning_rate": 2e-3 if max(config.widths, default=0) <= 384 else 1e-3,
            "weight_decay": 0.05,
            "warmup": 0.1,
            "batch_size": batch,
            "epochs": min(100, epochs),
            "average": 0.99,
        },
        "objective": {"label_smoothing": 0.1},
        "augment": {"shift": 0.08, "flip": "auto"},
    }


def resolved(config: Config, field: Field) -> Config:
    """Return the configuration with everything that was left open decided, for such images.

    Raises:
        ConfigError: an option is out of range.
    """
    _check(config)
    side = min(field.shape[1:])
    room = max(0, round(math.log2(max(1, side) / LAST_SIDE)))  # halvings that the sides bear
    stages = len(config.depths) or len(config.widths) or max(1, min(4, room))
    # A single pixel that is normalised over its channels keeps its sign and loses its size: two are the least.
    smallest = 2 if side >= 2**stages else 1
    patch = config.patch or min(4, max(smallest, 2 ** max(0, room - stages + 1)))
    depths = config.depths or (2,) * stages
    widths = config.widths or tuple(FIRST_WIDTH * 2**stage for stage in range(stages))
    if len(depths) != len(widths):
        raise ConfigError(
            f"Options 'model.depths' ({len(depths)} stages) and 'model.widths' ({len(widths)} stages) must name the "
            "same number of stages."
        )
    return replace(config, patch=patch, depths=depths, widths=widths)


class ConvNeXt(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key, self.width = field.key, config.widths[-1]
        self.normalize = Normalize(field)
        self.stem = nn.Conv2d(field.shape[0], config.widths[0], config.patch, config.patch)
        self.norm_stem = nn.LayerNorm(config.widths[0], eps=1e-6)
        steps = max(1, sum(config.depths) - 1)
        shares = iter(config.stochastic_depth * block / steps for block in range(sum(config.depths)))
        self.halvings = nn.ModuleList(
            Halving(before, after) for before, after in zip(config.widths, config.widths[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(DepthwiseBlock(width, config.layer_scale, next(shares)) for _ in range(depth)))
            for depth, width in zip(config.depths, config.widths, strict=True)
        )
        self.norm = nn.LayerNorm(self.width, eps=config.norm_eps)
        for module in self.modules():
            _start(module, config.first_std)

    def forward(self, batch: Batch) -> Features:
        x = self.stem(self.normalize(batch[self.key]))  # [B, C, H, W]
        x = self.norm_stem(x.permute(0, 2, 3, 1))  # [B, H, W, C]
        maps: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(self.halvings[index - 1](x) if index else x)
            maps.append(x.permute(0, 3, 1, 2))
        return Features(pooled=self.norm(x.mean((1, 2))), maps=tuple(maps))  # [B, D]


class Halving(nn.Module):
    """Half the sides, other channels: [B, H, W, C] -> [B, ⌊H/2⌋, ⌊W/2⌋, O]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs, eps=1e-6)
        self.conv = nn.Conv2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _start(module: nn.Module, std: float) -> None:
    """Draw first weights of a given spread, as the paper does, or by the number of numbers that each output sees."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=std or module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(config: Config) -> None:
    at_least(config, {"depths": 1, "widths": 1, "patch": 0})
    if not 0 <= config.stochastic_depth < 1:
        raise ConfigError(
            f"Option 'model.stochastic_depth' was given {config.stochastic_depth}; expected a share from 0 to below 1."
        )
    for name in ("layer_scale", "first_std", "norm_eps"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"Option 'model.{name}' was given {getattr(config, name)}; expected 0 or more.")


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration of published weights, from the contents of transformers' `config.json`.

    Raises:
        ConfigError: the weights are of a variant that this network is not.
    """
    if settings.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"The published ConvNeXt has activation '{settings['hidden_act']}'; only 'gelu' can be read.")
    return Config(
        depths=tuple(settings.get("depths") or (3, 3, 9, 3)),
        widths=tuple(settings.get("hidden_sizes") or (96, 192, 384, 768)),
        patch=int(settings.get("patch_size", 4)),
        layer_scale=float(settings.get("layer_scale_init_value", 1e-6)),
        stochastic_depth=float(settings.get("drop_path_rate", 0.0)),
        norm_eps=float(settings.get("layer_norm_eps", 1e-12)),
    )


def matches(config: Config) -> Iterator[Match]:
    """Return what our weights are called in transformers' ConvNext."""
    yield match("stem", "embeddings.patch_embeddings")
    yield match("norm_stem", "embeddings.layernorm")
    for stage, depth in enumerate(config.depths):
        if stage:
            yield match(f"halvings.{stage - 1}.norm", f"encoder.stages.{stage}.downsampling_layer.0")
            yield match(f"halvings.{stage - 1}.conv", f"encoder.stages.{stage}.downsampling_layer.1")
        for block in range(depth):
            ours, theirs = f"stages.{stage}.{block}", f"encoder.stages.{stage}.layers.{block}"
            yield match(f"{ours}.depthwise", f"{theirs}.dwconv")
            yield match(f"{ours}.norm", f"{theirs}.layernorm")
            yield match(f"{ours}.expand", f"{theirs}.pwconv1")
            yield match(f"{ours}.contract", f"{theirs}.pwconv2")
            yield match(f"{ours}.scale", f"{theirs}.layer_scale_parameter")
    yield match("norm", "layernorm")
