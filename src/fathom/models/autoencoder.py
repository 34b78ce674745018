"""Autoencoders: what the data is, in few numbers, and back again.

    numbers, categories  ->  layers that narrow                  ─┐                    ┌─  layers that widen
    each image           ->  convolutions that halve (or layers) ─┼─>  code [B, Z]  ─>─┼─  transposed convolutions
    each text            ->  a GRU that reads                    ─┘                    └─  a GRU that writes

    plain         the code is a point
    variational   the code is a Gaussian, of which `encode` gives means and log-variances; an objective draws from it
                  (layers.gaussian.draw) and keeps it near the standard one (layers.gaussian.kl_to_standard)

Data of one kind gives an autoencoder of that kind; of several, one code stands for all columns of a row. As a backbone
it gives the code, of a variational one the means.

The presets: `autoencoder_dense` is that of Hinton and Salakhutdinov for digits, 784–1000–500–250–30, and `vae_dense`
that of Kingma and Welling with its 500 units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, Batch, DataSpec, Features, Field, Stats
from fathom.layers.coders import ConvCoder, DenseCoder, TableCoder, TextCoder

REFERENCE = (
    "Hinton, Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006; "
    "Kingma, Welling, Auto-Encoding Variational Bayes, 2014"
)
PROVEN = "PyTorch's own divergence between Gaussians, and the shapes of its layers"
LAST_SIDE = 4  # pixels, about, of the smallest maps where the number of halvings is left open


@dataclass(frozen=True)
class Config:
    code: int = option(32, "numbers of a code")
    variational: bool = option(False, "whether the code is a Gaussian to draw from rather than a point")
    hidden: tuple[int, ...] = option((128, 64), "units of the layers before the code, mirrored behind it; of tables")
    image: Literal["conv", "dense"] = option("conv", "conv: convolutions; dense: as tables, on all pixels at once")
    widths: tuple[int, ...] = option(
        (), "channels after each halving of an image; none: from 32 on, doubling, down to a side of about 4"
    )
    text_size: int = option(64, "length of a token's vector, and units of the GRU in each direction")


presets: dict[str, Config] = {
    "autoencoder_dense": Config(code=30, hidden=(1000, 500, 250), image="dense"),
    "autoencoder_conv": Config(code=64, widths=(32, 64, 128)),
    "autoencoder_sequence": Config(code=128, text_size=256),
    "vae": Config(variational=True),
    "vae_dense": Config(code=20, variational=True, hidden=(500,), image="dense"),
    "vae_conv": Config(code=64, variational=True, widths=(32, 64, 128)),
    "vae_sequence": Config(code=128, variational=True, text_size=256),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("number", "category", "image", "text")


def example() -> DataSpec:
    """Return a row of every kind: two numbers, two categories, a small image and a short text."""
    return DataSpec(
        inputs=(
            Field(name="size", kind="number"),
            Field(name="weight", kind="number"),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
            Field(name="shape", kind="category", classes=(UNKNOWN, "round", "flat", "square")),
            Field(name="photo", kind="image", shape=(1, 7, 6), stats=Stats(mean=(128.0,), std=(64.0,))),
            Field(name="title", kind="text", shape=(4,), vocabulary=12),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper(preset: str = "") -> DataSpec:
    """Return grey digits of 28×28 pixels; for those that read sequences, sentences of 64 tokens."""
    text = Field(name="text", kind="text", shape=(64,), vocabulary=20_000)
    image = Field(name="image", kind="image", shape=(1, 28, 28))
    return DataSpec(
        inputs=(text if preset.endswith("sequence") else image,),
        targets=(Field(name="digit", kind="category", classes=tuple("0123456789"), counts=(6000,) * 10),),
        rows=60_000,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with."""
    batch = 128 if spec.rows >= 10_000 else 32
    return {"engine": {"learning_rate": 1e-3, "batch_size": batch, "epochs": 30, "weight_decay": 0.0}}


def build(config: Config, spec: DataSpec) -> Autoencoder:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, an option is out of range, or an image is too small.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'autoencoder' cannot be used: {why}.")
    at_least(config, {"code": 1, "text_size": 1})
    for name in ("hidden", "widths"):
        if min(getattr(config, name), default=1) < 1:
            raise ConfigError(
                f"Option 'model.{name}' was given {list(getattr(config, name))}; expected 1 or more each."
            )
    if not config.hidden:
        raise ConfigError("Option 'model.hidden' was given no layers; expected one or more, such as [128, 64].")
    return Autoencoder(config, spec)


class Autoencoder(nn.Module):
    """The network; `width` and `code` are Z."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.width = self.code = config.code
        self.variational = config.variational
        parts: list[nn.Module] = []
        if spec.numbers or spec.categories:
            parts.append(TableCoder(spec.numbers, spec.categories, config.hidden))
        parts += [_image_coder(config, field) for field in spec.images]
        parts += [TextCoder(field, config.text_size) for field in spec.texts]
        self.parts = nn.ModuleList(parts)
        self.widths = [int(part.width) for part in parts]  # type: ignore[arg-type]
        self.project = nn.Linear(sum(self.widths), 2 * config.code if config.variational else config.code)
        self.spread = nn.Linear(config.code, sum(self.widths))

    def forward(self, batch: Batch) -> Features:
        return Features(pooled=self.encode(batch)[:, : self.code])

    def encode(self, batch: Batch) -> Tensor:
        """Return codes [B, Z], or of a variational one means and log-variances [B, 2·Z]."""
        found = [part.encode(batch) for part in self.parts]  # type: ignore[operator]
        return self.project(torch.cat(found, dim=1))

    def decode(self, code: Tensor) -> Batch:
        """Return what codes [B, Z] stand for, by the keys of the batch: of numbers and images the values on the
        normalised scale, of categories logits [B, C, K] (−∞ for classes that a column lacks), of texts [B, T, V].
        """
        hidden = self.spread(code).relu().split(self.widths, dim=1)
        found: Batch = {}
        for part, given in zip(self.parts, hidden, strict=True):
            found |= part.decode(given)  # type: ignore[operator]
        return found

    def wanted(self, batch: Batch) -> Batch:
        """Return what `decode` should give for a batch: normalised numbers and images, codes of categories, tokens."""
        found: Batch = {}
        for part in self.parts:
            found |= part.wanted(batch)  # type: ignore[operator]
        return found


def _image_coder(config: Config, field: Field) -> nn.Module:
    if config.image == "dense":
        return DenseCoder(field, config.hidden)
    side = min(field.shape[1:])
    widths = config.widths or tuple(32 * 2**i for i in range(max(1, round(math.log2(side / LAST_SIDE)))))
    if side < 2 ** (len(widths) - 1):
        raise ConfigError(
            f"Option 'model.widths' halves {len(widths)} times; images of column '{field.name}' are {field.shape[2]}x"
            f"{field.shape[1]} pixels: name at most {side.bit_length()} widths."
        )
    return ConvCoder(field, widths)
