"""A generator and a judge made of residual blocks, the judge held smooth by its spectral norm.

    generator   noise [B, Z]  ->  4×4×W  ->  residual blocks, each doubling  ->  norm, ReLU, 3×3, tanh  ->  image
    judge       image  ->  residual blocks, the first ones halving  ->  ReLU  ->  sum over pixels [B, D]  ->  score [B]

Of 32×32 pixels the generator doubles three times, and two of the judge's four blocks halve. Each weight of the judge is
divided by its largest singular value, which makes the judge Lipschitz: its score cannot change faster than its input.

Where there are classes, the generator's batch norms have scales and shifts for each class, and the judge adds to its
score how well the image fits its label: the product of the features with a vector for each class.

As a model of images it gives the judge's features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.condition import label_classes
from fathom.layers.image import Normalize

REFERENCE = (
    "Miyato, Kataoka, Koyama, Yoshida, Spectral Normalization for Generative Adversarial Networks, 2018; "
    "Miyato, Koyama, cGANs with Projection Discriminator, 2018; "
    "Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, Improved Training of Wasserstein GANs, 2017"
)
PROVEN = "the papers' parameter counts, and torch's spectral norm"
FIRST_SIDE = 4  # pixels, at least, that the generator begins with, but that it doubles once in any case
LAST_SIDE = 8  # pixels, about, that the judge ends with


@dataclass(frozen=True)
class Config:
    noise: int = option(128, "numbers that an image is made from")
    width: int = option(64, "channels of the generator")
    judge_width: int = option(64, "channels of the judge")
    spectral: bool = option(True, "divide each of the judge's weights by its largest singular value")
    pool: Literal["sum", "mean"] = option("sum", "how the judge's last maps become one vector")
    conditional: bool = option(True, "whether it can be told which class to make, where the target is a category")


presets: dict[str, Config] = {
    "sngan": Config(128, 256, 128, conditional=False),
    "sngan_projection": Config(128, 256, 128),
    "wgan_gp": Config(128, 128, 128, spectral=False, pool="mean", conditional=False),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("image")


def example() -> DataSpec:
    """Return tiny grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 5, 4), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return CIFAR-10."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(3, 32, 32)),),
        targets=(Field(name="label", kind="category", classes=tuple("0123456789"), counts=(5000,) * 10),),
        rows=50_000,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return the paper's settings: Adam at 2e-4 without a first moment, batches of 64."""
    batch = 64 if spec.rows >= 2_000 else 32
    engine = {"learning_rate": 2e-4, "beta1": 0.0, "beta2": 0.9, "weight_decay": 0.0, "schedule": "linear"}
    return {"engine": {**engine, "batch_size": batch, "epochs": 50}}


def build(config: Config, spec: DataSpec) -> ResNetGAN:
    """Return both networks for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'resnet_gan' cannot be used: {why}.")
    at_least(config, {"noise": 1, "width": 1, "judge_width": 1})
    field = spec.inputs[0]
    if min(field.shape[1:]) < FIRST_SIDE:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; this model takes sides of "
            f"{FIRST_SIDE} or more: enlarge them by prepare.image_size={FIRST_SIDE}."
        )
    return ResNetGAN(config, field, label_classes(spec) if config.conditional else 0)


class ResNetGAN(nn.Module):
    """Both networks; `width` is D, of the judge's features."""

    def __init__(self, config: Config, field: Field, classes: int) -> None:
        super().__init__()
        self.key, self.noise, self.classes, self.width = field.key, config.noise, classes, config.judge_width
        self.normalize = Normalize(replace(field, stats=None))  # to −1 … 1, which is what the generator makes
        self.generator = Generator(config, field.shape, classes)
        self.judge = Judge(config, field.shape, classes)

    def forward(self, batch: Batch) -> Features:
        found = self.judge.map(self.normalize(batch[self.key]))
        return Features(pooled=self.judge.pooled(found), maps=(found,))

    def generate(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] from −1 to 1 of noise [B, Z] and, where there are classes, labels [B]."""
        return self.generator(noise, label)

    def criticise(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return how real each image [B, C, H, W] looks [B], and how well it fits its label: without bounds."""
        return self.judge(image, label)


class Generator(nn.Module):
    """Noise [B, Z] and labels [B] -> images [B, C, H, W] from −1 to 1."""

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        count = _halvings(min(sides), FIRST_SIDE)
        self.sides, self.first = sides, [-(-side // 2**count) for side in sides]  # 4×4 of 32×32
        self.enter = nn.Linear(config.noise, config.width * self.first[0] * self.first[1])
        self.blocks = nn.ModuleList(GrowBlock(config.width, classes) for _ in range(count))
        self.norm = nn.BatchNorm2d(config.width)
        self.leave = nn.Conv2d(config.width, channels, 3, padding=1)
        nn.init.xavier_uniform_(self.enter.weight)
        nn.init.xavier_uniform_(self.leave.weight)

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.enter(noise).unflatten(1, (-1, *self.first))  # [B, W, 4, 4]
        for block in self.blocks:
            x = block(x, label)
        image = self.leave(F.relu(self.norm(x))).tanh()
        return image[:, :, : self.sides[0], : self.sides[1]]


class GrowBlock(nn.Module):
    """A residual block that doubles the sides: [B, W, H, W], labels [B] -> [B, W, 2·H, 2·W]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = ClassNorm(width, classes), ClassNorm(width, classes)
        self.conv_in, self.conv_out = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)
        _begin(self.conv_in, self.conv_out, self.shortcut)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        hidden = F.interpolate(F.relu(self.norm_in(x, label)), scale_factor=2.0, mode="nearest")
        hidden = self.conv_out(F.relu(self.norm_out(self.conv_in(hidden), label)))
        # A 1×1 convolution and copying pixels can change places; before copying it costs a quarter.
        return hidden + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")


class ClassNorm(nn.Module):
    """Batch normalisation with scales and shifts for each class, where there are any: [B, C, H, W] -> the same.

    Without labels, or without classes, all share one scale and shift: the mean of the classes'.

    Source: Dumoulin, Shlens, Kudlur, A Learned Representation for Artistic Style, 2017 (there of single images).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=not classes)
        self.scale = nn.Parameter(torch.ones(classes, width)) if classes else None
        self.shift = nn.Parameter(torch.zeros(classes, width)) if classes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        scale = self.scale.mean(0, keepdim=True) if label is None else F.embedding(label, self.scale)
        shift = self.shift.mean(0, keepdim=True) if label is None else F.embedding(label, self.shift)
        return x * scale[:, :, None, None] + shift[:, :, None, None]


class Judge(nn.Module):
    """Images [B, C, H, W] and labels [B] -> scores [B]."""

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        width, self.pool = config.judge_width, config.pool
        halving = _halvings(min(sides), LAST_SIDE)
        self.blocks = nn.ModuleList([JudgeBlock(channels, width, halve=True, first=True)])
        self.blocks.extend(JudgeBlock(width, width, halve=True) for _ in range(halving - 1))
        self.blocks.extend(JudgeBlock(width, width, halve=False) for _ in range(2))
        self.score = nn.Linear(width, 1)
        self.label = nn.Embedding(classes, width) if classes else None
        nn.init.xavier_uniform_(self.score.weight)
        if self.label is not None:
            nn.init.xavier_uniform_(self.label.weight)
        if config.spectral:
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    spectral_norm(module)

    def map(self, image: Tensor) -> Tensor:
        """Return what the last block gives: [B, D, H, W]."""
        for block in self.blocks:
            image = block(image)
        return F.relu(image)

    def pooled(self, found: Tensor) -> Tensor:
        return found.sum((2, 3)) if self.pool == "sum" else found.mean((2, 3))  # [B, D]

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        pooled = self.pooled(self.map(image))
        score = self.score(pooled).squeeze(1)  # [B]
        if self.label is None or label is None:
            return score
        return score + (self.label(label) * pooled).sum(1)


class JudgeBlock(nn.Module):
    """A residual block that halves the sides, or not: [B, I, H, W] -> [B, O, H/2, W/2].

    Args:
        first: whether it takes the image itself, which goes through no ReLU and is halved before the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()
        _begin(self.conv_in, self.conv_out, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv_in(x if self.first else F.relu(x))
        hidden = self.conv_out(F.relu(hidden))
        if self.halve:  # a mean and a 1×1 convolution can change places; after the mean it costs a quarter
            hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)
        return hidden + self.shortcut(x)


def _begin(*layers: nn.Module) -> None:
    """Draw first weights as Glorot and Bengio, 2010, those of 3×3 convolutions √2 as large, for their ReLUs."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight, gain=2**0.5 if layer.kernel_size == (3, 3) else 1.0)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def _halvings(side: int, last: int) -> int:
    """Return how often a side can be halved with `last` pixels left, at least once."""
    return max(2, side // last).bit_length() - 1
