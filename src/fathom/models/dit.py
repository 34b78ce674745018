"""A transformer that takes noise out of images: patches as tokens, norms whose scales the time and the class decide.

    image [B, C, H, W]  ->  patches of p×p  ->  tokens + where they stand  [B, T, D]
                        ->  depth × block, told c = time + class           [B, T, D]
                        ->  norm, told c  ->  tokens; mean  [B, D]
                        ->  linear  ->  patches  ->  [B, C, H, W]  (or [B, 2·C, H, W] with the noise's variance)

In a block, c gives each part six vectors: a shift and a scale of its normalised input, and a gate on what it adds. All
begin at zero (adaLN-Zero), so that every block begins as the identity. Sides that the patches do not divide are padded
with zeros to the right and below, and cropped at the end.

Where there is a text column, c also holds what the caption says.

The paper works on the latents of an autoencoder, 4×32×32, with 1,000 classes. `dit` itself is a small one for pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
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
from fathom.layers.diffusion import begin
from fathom.layers.image import Normalize

REFERENCE = "Peebles, Xie, Scalable Diffusion Models with Transformers, 2023"
PROVEN = "diffusers' DiTTransformer2DModel, weight for weight"
WAVES = 256  # in which the time is written
EPSILON = 1e-6  # added to variances


@dataclass(frozen=True)
class Config:
    width: int = option(128, "length of a token's vector; a multiple of 4")
    depth: int = option(4, "blocks")
    num_heads: int = option(4, "heads of each attention; they divide the width")
    patch: int = option(0, "pixels of a patch's side; 0: the side of the image by 8, at least 1")
    expansion: int = option(4, "units of a block's two-layer network, as a multiple of the width")
    conditional: bool = option(True, "whether it can be told which class to make, where the target is a category")
    variance: bool = option(False, "whether it also gives out the noise's variance (learned sigma)")


def _paper(width: int, depth: int, num_heads: int, patch: int) -> Config:
    return Config(width, depth, num_heads, patch, variance=True)


presets: dict[str, Config] = {
    "dit_s_2": _paper(384, 12, 6, 2),
    "dit_s_4": _paper(384, 12, 6, 4),
    "dit_s_8": _paper(384, 12, 6, 8),
    "dit_b_2": _paper(768, 12, 12, 2),
    "dit_b_4": _paper(768, 12, 12, 4),
    "dit_b_8": _paper(768, 12, 12, 8),
    "dit_l_2": _paper(1024, 24, 16, 2),
    "dit_xl_2": _paper(1152, 28, 16, 2),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return unless_captions(spec)


def example() -> DataSpec:
    """Return tiny grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 3, 2), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return the latents of ImageNet at 256 pixels."""
    classes = tuple(f"class {i}" for i in range(1000))
    return DataSpec(
        inputs=(Field(name="latent", kind="image", shape=(4, 32, 32)),),
        targets=(Field(name="label", kind="category", classes=classes, counts=(1281,) * 1000),),
        rows=1_281_167,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: a constant rate as in the paper, higher for a narrow network."""
    rate = 1e-4 if config.width >= 384 else 5e-4
    batch = 128 if spec.rows >= 10_000 else 32
    return {
        "engine": {"learning_rate": rate, "batch_size": batch, "epochs": 20, "schedule": "constant", "average": 0.999}
    }


def build(config: Config, spec: DataSpec) -> DiT:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'dit' cannot be used: {why}.")
    field = spec.images[0]
    _check(config, field)
    if spec.texts and not config.conditional:
        raise ConfigError(
            f"Model 'dit' was built without what it could be told captions by, and would overlook column "
            f"'{spec.texts[0].name}': set model.conditional=true, or leave that column out."
        )
    config = replace(config, patch=config.patch or max(1, min(field.shape[1:]) // 8))
    return DiT(config, field, label_classes(spec) if config.conditional else 0, spec.texts)


def matches(config: Config) -> Iterator[Match]:
    """Yield the table from diffusers' DiTTransformer2DModel.

    Each of its blocks holds the embeddings of time and label once more: those of the first are taken.
    """
    told = "transformer_blocks.0.norm1.emb"
    yield match("embed", "pos_embed.proj")
    yield match("time.expand", f"{told}.timestep_embedder.linear_1")
    yield match("time.mix", f"{told}.timestep_embedder.linear_2")
    yield match("label.table", f"{told}.class_embedder.embedding_table")
    yield match("last", "proj_out_1")
    yield match("leave", "proj_out_2")
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"transformer_blocks.{index}"
        yield match(f"{ours}.modulate", f"{theirs}.norm1.linear")
        yield match(f"{ours}.project_in", *(f"{theirs}.attn1.to_{part}" for part in "qkv"))
        yield match(f"{ours}.project_out", f"{theirs}.attn1.to_out.0")
        yield match(f"{ours}.expand", f"{theirs}.ff.net.0.proj")
        yield match(f"{ours}.contract", f"{theirs}.ff.net.2")


class DiT(nn.Module):
    """The network; `width` is D, `classes` those that it can be told to make, `captions` whether it can be told in
    words.

    As a backbone it sees an image without noise (time 0), and is told its caption but no class. Pixels are brought to
    −1 … 1.
    """

    positions: Tensor

    def __init__(self, config: Config, field: Field, classes: int, texts: tuple[Field, ...] = ()) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self.key, self.width, self.patch, self.classes = field.key, width, patch, classes
        channels, *sides = field.shape
        self.grid = -(-sides[0] // patch), -(-sides[1] // patch)  # patches below one another, and beside one another
        self.normalize = Normalize(replace(field, stats=None))
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("positions", sinusoidal_grid(*self.grid, width), persistent=False)  # [T, D]
        self.time = TimeEmbedding(WAVES, width)
        self.label = LabelEmbedding(classes, width) if classes else None
        self.captions = bool(texts)
        self.caption_key = texts[0].key if texts else ""
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.expansion * width) for _ in range(config.depth)
        )
        self.last = nn.Linear(width, 2 * width)  # shift and scale
        self.leave = nn.Linear(width, patch * patch * channels * (2 if config.variance else 1))
        self._start()
        self.caption = CaptionEmbedding(texts[0], width) if texts else None

    def _start(self) -> None:
        """Draw first weights as the paper's code does, and zeros where c decides and at the end."""
        for module in self.modules():
            begin(module)
        nn.init.xavier_uniform_(self.embed.weight.view(self.width, -1))  # as the matrix that it is
        for layer in (self.time.expand, self.time.mix):
            nn.init.normal_(layer.weight, std=0.02)
        for zero in (self.last, self.leave, *(block.modulate for block in self.blocks)):
            begin(zero, zero=True)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Features:
        image = self.normalize(batch[self.key])  # [B, C, H, W]
        caption = batch[self.caption_key] if self.captions else None
        tokens = self.tokens(image, image.new_zeros(image.shape[0]), None, caption)
        return Features(pooled=tokens.mean(1), tokens=tokens)

    def denoise(self, x: Tensor, time: Tensor, label: Tensor | None = None, caption: Tensor | None = None) -> Tensor:
        """Return what the objective asks for, in the shape of `x` [B, C, H, W].

        Args:
            time: [B], how much noise there is, from 0 to 1,000.
            label: [B], classes; the code `classes` stands for none.
            caption: [B, L], tokens; a row of padding stands for none.
        """
        return self.outputs(x, time, label, caption)[:, : x.shape[1]]

    def outputs(self, x: Tensor, time: Tensor, label: Tensor | None = None, caption: Tensor | None = None) -> Tensor:
        """Return what `denoise` does, and behind it, with the option `variance`, as many channels for the variance."""
        patches = self.leave(self.tokens(x, time, label, caption))  # [B, T, p·p·O]
        rows, columns = self.grid
        patches = patches.view(x.shape[0], rows, columns, self.patch, self.patch, -1)
        image = patches.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], -1, rows * self.patch, columns * self.patch)
        return image[:, :, : x.shape[2], : x.shape[3]]

    def tokens(self, x: Tensor, time: Tensor, label: Tensor | None, caption: Tensor | None = None) -> Tensor:
        """Return the patches' vectors behind the last norm: [B, T, D]."""
        height, width = (side * self.patch for side in self.grid)
        if x.shape[2:] != (height, width):
            x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions  # [B, T, D]
        told = self.time(time)  # [B, D]
        if self.label is not None:
            told = told + self.label(label, x.shape[0])
        if self.caption is not None:
            told = told + self.caption(caption, x.shape[0])
        told = F.silu(told)
        for block in self.blocks:
            tokens = block(tokens, told)
        return modulated(tokens, *self.last(told).unsqueeze(1).chunk(2, dim=-1))


class Block(nn.Module):
    """Attention, then a two-layer network, both with norms and gates that c decides: [B, T, D], [B, D] -> [B, T, D]."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulate = nn.Linear(width, 6 * width)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate, shift_network, scale_network, gate_network = (
            self.modulate(told).unsqueeze(1).chunk(6, dim=-1)
        )
        x = x + gate * self.attend(modulated(x, shift, scale))
        hidden = F.gelu(self.expand(modulated(x, shift_network, scale_network)), approximate="tanh")
        return x + gate_network * self.contract(hidden)

    def attend(self, x: Tensor) -> Tensor:
        parts = self.project_in(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, D/H] each
        return self.project_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return each token at mean 0 and variance 1, then scaled and shifted: [B, T, D], twice [B, 1, D] -> [B, T, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def sinusoidal_grid(rows: int, columns: int, width: int) -> Tensor:
    """Return where each patch stands: [T, D]; half of the numbers tell its column, half its row, in sines and cosines.

    Source: Vaswani et al., Attention Is All You Need, 2017, in two dimensions as He et al., Masked Autoencoders Are
    Scalable Vision Learners, 2021.
    """
    speed = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()  # [T, 2]
    row, column = (torch.outer(place, speed) for place in places.unbind(1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()


def _check(config: Config, field: Field) -> None:
    at_least(config, {"width": 1, "depth": 1, "num_heads": 1, "patch": 0, "expansion": 1})
    if config.width % config.num_heads:
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}; set model.width={-(-config.width // config.num_heads) * config.num_heads} or other heads."
        )
    if config.width % 4:
        raise ConfigError(
            f"Option 'model.width' was given {config.width}; positions in two dimensions need a multiple of 4, such as "
            f"{-(-config.width // 4) * 4}."
        )
    if config.patch > min(field.shape[1:]):
        raise ConfigError(
            f"Option 'model.patch' was given {config.patch}; images of column '{field.name}' are "
            f"{field.shape[2]}x{field.shape[1]} pixels: set model.patch={min(field.shape[1:])} or less."
        )
