"""A generator and a judge made of convolutions alone: an image from noise, and whether an image is real.

    generator   noise [B, Z]  ->  7×7 (what is left after halving)  ->  doubled n times  ->  image [B, C, H, W]
    judge       image         ->  halved n times, LeakyReLU         ->  score [B]

Of 64×64 pixels, n is 4: 4×4×512, 8×8×256, 16×16×128, 32×32×64, 64×64×3. Other sides are halved as long as 4 pixels are
left; what the generator makes beyond the image's sides is cropped. Every convolution but the generator's last and the
judge's first and last is followed by batch normalisation.

As a model of images it gives what the paper classifies by: the maps of all of the judge's layers, each pooled to 4×4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.image import Normalize

REFERENCE = (
    "Radford, Metz, Chintala, Unsupervised Representation Learning with Deep Convolutional Generative Adversarial "
    "Networks, 2016"
)
PROVEN = "the paper's parameter counts"
LAST_SIDE = 4  # pixels, at least, of the smallest maps, and of the grid that features are pooled to


@dataclass(frozen=True)
class Config:
    noise: int = option(100, "numbers that an image is made from")
    width: int = option(32, "channels of the generator's last layer but one and the judge's first; others double them")
    slope: float = option(0.2, "of the judge's LeakyReLU below zero")


presets: dict[str, Config] = {
    "dcgan_64": Config(width=64),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("image")


def example() -> DataSpec:
    """Return tiny grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 9, 8), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return colour images of 64×64 pixels."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(3, 64, 64)),),
        targets=(Field(name="room", kind="category", classes=("bedroom", "other"), counts=(1, 1)),),
        rows=3_000_000,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return the paper's settings: Adam at 2e-4 with a first moment of 0.5, batches of 128."""
    batch = 128 if spec.rows >= 2_000 else 32
    return {"engine": {"learning_rate": 2e-4, "beta1": 0.5, "weight_decay": 0.0, "batch_size": batch, "epochs": 25}}


def build(config: Config, spec: DataSpec) -> DCGAN:
    """Return both networks for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'dcgan' cannot be used: {why}.")
    at_least(config, {"noise": 1, "width": 1})
    below_one(config, "slope")
    field = spec.inputs[0]
    if min(field.shape[1:]) < 2 * LAST_SIDE:
        raise ConfigError(
            f"Images of column '{field.name}' are {field.shape[2]}x{field.shape[1]} pixels; a DCGAN halves sides of "
            f"{2 * LAST_SIDE} or more: enlarge them by prepare.image_size={2 * LAST_SIDE}."
        )
    return DCGAN(config, field)


class DCGAN(nn.Module):
    """Both networks; `width` is D, of the judge's features."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key, self.noise, self.classes = field.key, config.noise, 0
        self.normalize = Normalize(replace(field, stats=None))  # to −1 … 1, which is what the generator makes
        channels, *sides = field.shape
        count = halvings(min(sides))
        widths = [config.width * 2**i for i in range(count)]  # finest first
        self.generator = Generator(config.noise, widths, channels, (sides[0], sides[1]))
        self.judge = Judge(widths, channels, (sides[0], sides[1]), config.slope)
        self.width = LAST_SIDE**2 * sum(widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, batch: Batch) -> Features:
        maps = self.judge.maps(self.normalize(batch[self.key]))
        pooled = [F.adaptive_max_pool2d(m, LAST_SIDE).flatten(1) for m in maps]
        return Features(pooled=torch.cat(pooled, dim=1), maps=tuple(maps))  # [B, 16 · all channels]

    def generate(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] from −1 to 1 of noise [B, Z]; it cannot be told what to make."""
        return self.generator(noise)

    def criticise(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return how real each image [B, C, H, W] looks [B]: a score without bounds."""
        return self.judge(image)


class Generator(nn.Module):
    """Noise [B, Z] -> images [B, C, H, W] from −1 to 1.

    Args:
        noise: Z.
        widths: channels of the maps, finest first; the image itself comes after the finest.
        channels: C.
        sides: H, W.
    """

    def __init__(self, noise: int, widths: list[int], channels: int, sides: tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides
        first = tuple(-(-side // 2 ** len(widths)) for side in sides)  # 4×4 in the paper
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(noise, widths[-1], first, bias=False),  # type: ignore[arg-type]
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(inplace=True),
        ]
        for inputs, outputs in zip(widths[:0:-1], widths[-2::-1], strict=True):
            conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(widths[0], channels, 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        image = self.layers(noise[:, :, None, None])
        return image[:, :, : self.sides[0], : self.sides[1]]


class Judge(nn.Module):
    """Images [B, C, H, W] -> scores [B]."""

    def __init__(self, widths: list[int], channels: int, sides: tuple[int, int], slope: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index, (inputs, outputs) in enumerate(zip([channels, *widths], widths, strict=False)):
            conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            norm = [nn.BatchNorm2d(outputs)] if index else []
            self.layers.append(nn.Sequential(conv, *norm, nn.LeakyReLU(slope, inplace=True)))
        last = tuple(side // 2 ** len(widths) for side in sides)
        self.score = nn.Conv2d(widths[-1], 1, last, bias=False)  # type: ignore[arg-type]

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return what each layer gives, finest first."""
        found: list[Tensor] = []
        for layer in self.layers:
            found.append(layer(found[-1] if found else image))
        return found

    def forward(self, image: Tensor) -> Tensor:
        return self.score(self.maps(image)[-1]).flatten()  # [B]


def halvings(side: int) -> int:
    """Return how often a side can be halved with `LAST_SIDE` pixels left."""
    return (side // LAST_SIDE).bit_length() - 1
