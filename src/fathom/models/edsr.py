"""A residual network without normalisation that mends images: what every pixel has to become is told at full size.

    image [B, C, H, W]  ->  laid small  ->  3×3  ->  blocks, and a way past all  ->  laid large  ->  maps [B, D, H, W]

    block        x + s · 3×3(relu(3×3(x)))
    laid small   squares of f×f pixels become one pixel of f²·C channels
    laid large   3×3 to four times the channels, which become squares of 2×2 pixels: as often as f has twos

The paper's network is given a small image and makes a large one. An image that was enlarged already, or one with noise
that is as large as its clean one, is laid small first, which loses nothing and leaves the blocks as little to do: a
network for `shrink` = f has, but for its first layer, the weights of the paper's for f times the side. There is no
normalisation, as it would take away how bright and how contrasted an image is, which the result must have alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
from fathom.core.conventions import moved
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.image import Normalize

REFERENCE = (
    "Lim, Son, Kim, Nah, Lee, Enhanced Deep Residual Networks for Single Image Super-Resolution, 2017; "
    "Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural "
    "Network, 2016; "
    "Zhang, Zuo, Zhang, FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image Denoising, 2018"
)
PROVEN = "the paper's parameter counts, and a plain restatement of its formulas in a test"
SHRINKS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Config:
    width: int = option(64, "channels")
    depth: int = option(6, "residual blocks")
    shrink: int = option(2, "by how much images are laid smaller for the blocks: 1, 2, 4 or 8")
    scale: float = option(1.0, "s, what a block's branch is multiplied by")


presets: dict[str, Config] = {
    "edsr_baseline": Config(depth=16),
    "edsr_2017": Config(width=256, depth=32, scale=0.1),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("image")


def example() -> DataSpec:
    """Return tiny grey images of two classes, of which one side is odd."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 3, 4), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper(preset: str = "") -> DataSpec:
    """Return the data of the paper: 800 photographs, of which pieces of 96×96 pixels are learned from."""
    return DataSpec(inputs=(Field(name="image", kind="image", shape=(3, 96, 96)),), rows=800)


def build(config: Config, spec: DataSpec) -> EDSR:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'edsr' cannot be used: {why}.")
    at_least(config, {"width": 1, "depth": 1, "scale": 0}, "model")
    if config.shrink not in SHRINKS:
        raise ConfigError(f"Option 'model.shrink' was given {config.shrink}; expected 1, 2, 4 or 8.")
    return EDSR(config, spec.inputs[0])


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: the paper's batch and rate, but Muon for narrow networks."""
    return {"engine": {**moved(config.width <= 64, 1e-4, muon=0.008), "batch_size": 16, "epochs": 20, "average": 0.999}}


class EDSR(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key, self.width, self.shrink = field.key, config.width, config.shrink
        self.normalize = Normalize(replace(field, stats=None))  # to −1 … 1, as the results are
        self.enter = nn.Conv2d(field.shape[0] * config.shrink**2, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(config.width, config.scale) for _ in range(config.depth)])
        self.leave = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.grow = nn.ModuleList(
            nn.Conv2d(config.width, 4 * config.width, 3, padding=1) for _ in range(config.shrink.bit_length() - 1)
        )

    def forward(self, batch: Batch) -> Features:
        image = self.normalize(batch[self.key])  # [B, C, H, W]
        height, width = image.shape[2:]
        down, right = -height % self.shrink, -width % self.shrink
        if down or right:
            image = F.pad(image, (0, right, 0, down), mode="replicate")
        x = self.enter(F.pixel_unshuffle(image, self.shrink))  # [B, D, H/f, W/f]
        x = x + self.leave(self.blocks(x))
        for grow in self.grow:
            x = F.pixel_shuffle(grow(x), 2)
        fine = x[:, :, :height, :width]
        return Features(pooled=fine.mean((2, 3)), maps=(fine,))


class Block(nn.Module):
    """x + s · 3×3(relu(3×3(x))): [B, D, H, W] -> the same shape.

    It begins as the identity, as a network of such blocks without norms does not learn from noise that it adds itself
    (Zhang, Dauphin, Ma, Fixup Initialization, 2019).
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.scale = scale
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.second(F.relu(self.first(x)))
