"""Vision transformers: an image is cut into patches, and the patches are read as a text's words are.

    image [B, C, H, W]  ->  N patches, each a vector, behind a class token  ->  + positions  [B, 1 + N, D]
                        ->  depth × encoder block  ->  normalise  ->  the class token, or the patches' mean  [B, D]

`vit` presets have one leading token, the class. `deit` presets have a second one, for distillation: it learns from a
teacher where there is one; a network's features are the mean of both, as both their read-outs are averaged.

`vit` itself is a small one that a CPU trains in minutes, on patches of about an eighth of the image's side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import batch_size, imagenet
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field, Stats
from fathom.layers.attention import EncoderBlock
from fathom.layers.image import Normalize, PatchEmbedding
from fathom.layers.resize import stretch_matrix

REFERENCE = (
    "Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit, "
    "Houlsby, An Image Is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2021; "
    "Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, Training Data-Efficient Image Transformers & Distillation "
    "through Attention, 2021"
)
PROVEN = "transformers' ViTModel and DeiTModel, weight for weight"
PUBLISHED = ("vit", "deit")
PATCHES = 8  # along an image's shorter side, about, where the size of a patch is left open,
SMALLEST, LARGEST = 2, 16  # which is then from so many pixels to so many


@dataclass(frozen=True)
class Config:
    width: int = option(128, "length of a token's vector")
    depth: int = option(4, "encoder blocks")
    num_heads: int = option(4, "heads of each attention; they divide the width")
    hidden: int = option(0, "units of a block's two-layer network; 0: four times the width")
    patch: int = option(0, "pixels of a patch's side; 0: an eighth of the image's shorter side, 16 at the most")
    distillation: bool = option(False, "whether a second token stands beside the class, to learn from a teacher")
    pooling: Literal["first", "mean"] = option("first", "an image's vector: its leading tokens', or its patches' mean")
    dropout: float = option(0.0, "share of units and attention weights dropped in training")
    epsilon: float = option(1e-6, "what the norms add to the variance")


presets: dict[str, Config] = {
    "vit_tiny": Config(width=192, depth=12, num_heads=3, patch=16),
    "vit_small": Config(width=384, depth=12, num_heads=6, patch=16),
    "vit_base": Config(width=768, depth=12, num_heads=12, patch=16),
    "deit_tiny": Config(width=192, depth=12, num_heads=3, patch=16, distillation=True),
    "deit_small": Config(width=384, depth=12, num_heads=6, patch=16, distillation=True),
    "deit": Config(width=768, depth=12, num_heads=12, patch=16, distillation=True),
}


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
    """Return the images of ImageNet."""
    return imagenet()


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: many passes, for it must learn which pixels are neighbours."""
    epochs = round(20 * math.sqrt(max(1.0, 9_000 / max(spec.rows, 1))))
    batch = batch_size(spec.rows)
    rate = 1e-3 if config.width <= 256 else 5e-4
    return {
        "engine": {
            "optimizer": "adamw",
            "learning_rate": rate,
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup": 0.1,
            "batch_size": batch,
            "epochs": min(100, epochs),
        },
        "objective": {"label_smoothing": 0.1},
        "augment": {"shift": 0.08, "flip": "auto"},
    }


def build(config: Config, spec: DataSpec) -> VisionTransformer:
    """Return the network for such images.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or the images are smaller than a patch.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'vit' cannot be used: {why}.")
    _check(config)
    field = spec.inputs[0]
    config = resolved(config, field)
    if min(field.shape[1:]) < config.patch:
        size, patch = f"{field.shape[2]}x{field.shape[1]}", config.patch
        raise ConfigError(
            f"Images of column '{field.name}' are {size} pixels, smaller than a patch, {patch}: "
            f"enlarge them by prepare.image_size={patch}, or set model.patch={_open_patch(field)}."
        )
    return VisionTransformer(config, field)


def resolved(config: Config, field: Field) -> Config:
    """Return the configuration with everything that was left open decided, for such images."""
    return replace(config, hidden=config.hidden or 4 * config.width, patch=config.patch or _open_patch(field))


def _open_patch(field: Field) -> int:
    side = min(field.shape[1:])
    return min(side, LARGEST, max(SMALLEST, -(-side // PATCHES)))


class VisionTransformer(nn.Module):
    """The network; `width` is D. It reads `Patches`, also some of them alone."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.key, self.width, self.pooling = field.key, config.width, config.pooling
        self.normalize = Normalize(field)
        self.patches = PatchEmbedding(field.shape[0], config.width, config.patch)
        self.patch, self.grid = config.patch, self.patches.grid(*field.shape[1:])
        leading = 2 if config.distillation else 1
        self.leading = nn.Parameter(torch.empty(leading, config.width))
        self.positions = nn.Parameter(torch.empty(leading + math.prod(self.grid), config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, config.hidden, config.dropout, config.epsilon)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, config.epsilon)
        self._start()

    def _start(self) -> None:
        """Draw first weights by which layers keep the variance of what they are given."""
        nn.init.normal_(self.leading, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, image: Tensor) -> Tensor:
        """Return the vectors of leading tokens and patches, [B, C, H, W] -> [B, k + N, D]."""
        patches, leading = self.patches(self.normalize(image)), len(self.leading)  # [B, N, D]
        first = (self.leading + self.positions[:leading]).expand(len(image), -1, -1)  # [B, k, D]
        places = self._places(self.patches.grid(*image.shape[2:]))
        return self.dropout(torch.cat([first, patches + places], dim=1))

    def forward(self, batch: Batch) -> Features:
        """Return the features of images of any size; those of other sizes have positions between the learned ones."""
        image = batch[self.key]
        x = self._encoded(self.embed(image))  # [B, k + N, D]
        first, patches = x[:, : len(self.leading)], x[:, len(self.leading) :]
        pooled = (first if self.pooling == "first" else patches).mean(1)  # [B, D]
        grid = self.patches.grid(*image.shape[2:])
        return Features(pooled=pooled, tokens=x, maps=(patches.transpose(1, 2).unflatten(2, grid),))

    def read(self, batch: Batch, kept: Tensor) -> Tensor:
        """Return the vectors of leading tokens and of some patches, which alone are seen: `kept` [B, K] of the N, row
        by row -> [B, k + K, D]."""
        x, leading = self.embed(batch[self.key]), len(self.leading)
        first = torch.arange(leading, device=x.device).expand(len(x), -1)
        places = torch.cat([first, kept + leading], dim=1)  # [B, k + K]
        return self._encoded(x.gather(1, places[:, :, None].expand(-1, -1, self.width)))

    def _encoded(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _places(self, grid: tuple[int, int]) -> Tensor:
        """Return the patches' positions [N, D] for such a grid, between those that were learned for another."""
        learned = self.positions[len(self.leading) :]
        if grid == self.grid:
            return learned
        rows, columns = (stretch_matrix(old, new, learned) for old, new in zip(self.grid, grid, strict=True))
        return torch.einsum("ah,bw,hwd->abd", rows, columns, learned.unflatten(0, self.grid)).flatten(0, 1)


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration of published weights, from transformers' `config.json`.

    Raises:
        ConfigError: the settings ask for something that this file does not have.
    """
    for name, expected in {"hidden_act": "gelu", "qkv_bias": True}.items():
        if settings.get(name, expected) != expected:
            raise ConfigError(
                f"The published weights have '{name}' {settings[name]!r}; model 'vit' reads {expected!r} only: "
                "take other weights, or use them through transformers, as --model hf:NAME."
            )
    return Config(
        width=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        hidden=settings["intermediate_size"],
        patch=settings["patch_size"],
        distillation=settings["model_type"] == "deit",
        dropout=settings.get("hidden_dropout_prob", 0.0),
        epsilon=settings.get("layer_norm_eps", 1e-12),
    )


# Parts of a block, each with its names in published files and in the transformers library since its fifth version.
BLOCK = {
    "attention.project_in": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "attention.project_out": (("attention.output.dense",), ("attention.o_proj",)),
    "norm_attention": (("layernorm_before",), ("layernorm_before",)),
    "norm_network": (("layernorm_after",), ("layernorm_after",)),
    "expand": (("intermediate.dense",), ("mlp.fc1",)),
    "contract": (("output.dense",), ("mlp.fc2",)),
}


def matches(config: Config) -> Iterator[Match]:
    """Yield what each of our tensors is called in transformers' files."""
    leading = ["embeddings.cls_token", *(["embeddings.distillation_token"] if config.distillation else [])]
    yield match("leading", *leading, shape=(len(leading), config.width))
    yield match("positions", "embeddings.position_embeddings", shape=(-1, config.width))
    yield match("patches", "embeddings.patch_embeddings.projection")
    yield match("norm", "layernorm")
    for index in range(config.depth):
        for ours, (files, library) in BLOCK.items():
            yield match(f"blocks.{index}.{ours}", *(f"encoder.layer.{index}.{name}" for name in files))
            yield match(f"blocks.{index}.{ours}", *(f"layers.{index}.{name}" for name in library))


def _check(config: Config) -> None:
    at_least(config, {"width": 1, "depth": 1, "num_heads": 1, "hidden": 0, "patch": 0})
    below_one(config, "dropout")
    if not config.epsilon > 0:
        raise ConfigError(f"Option 'model.epsilon' was given {config.epsilon}; expected a small number above 0.")
    if config.width % config.num_heads:
        fitting = -(-config.width // config.num_heads) * config.num_heads
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}; set model.width={fitting} or other heads."
        )
