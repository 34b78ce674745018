"""A transformer encoder for text: every token looks at every other, layer upon layer.

    text [B, T]  ->  token + column (+ position) vectors  ->  depth × encoder block  ->  normalise  ->  [B, T, D]
                 ->  pooled over real tokens  ->  [B, D]

Several text columns are read as one sequence, one behind the other, so that each can look at the others; each has
its own vocabulary, its own positions, and a vector that says which column a token stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.types import PAD, Batch, DataSpec, Features, Field
from fathom.layers.attention import EncoderBlock, Packing, rotary_angles

REFERENCE = (
    "Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, Attention Is All You Need, 2017; "
    "Devlin, Chang, Lee, Toutanova, BERT: Pre-training of Deep Bidirectional Transformers, 2018"
)


@dataclass(frozen=True)
class Config:
    width: int = option(128, "length of a token's vector")
    depth: int = option(2, "encoder blocks")
    num_heads: int = option(4, "heads of each attention; they divide the width")
    expansion: int = option(4, "units of a block's two-layer network, as a multiple of the width")
    positions: Literal["rotary", "learned", "none"] = option("rotary", "how tokens know where they stand")
    pooling: Literal["mean", "first"] = option("mean", "a text's vector: the mean of its tokens', or the first one's")
    dropout: float = option(0.2, "share of units and attention weights dropped in training")
    token_dropout: float = option(0.1, "share of tokens blanked in training")


presets: dict[str, Config] = {
    "transformer_small": Config(width=256, depth=4, num_heads=4, dropout=0.1),
    "transformer_base": Config(width=768, depth=12, num_heads=12, dropout=0.1),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    for column in spec.inputs:
        if column.kind != "text":
            return f"it takes texts; column '{column.name}' is {column.kind}"
    return None if spec.inputs else "it needs at least one text column"


def example() -> DataSpec:
    """Return two short text columns."""
    return DataSpec(
        inputs=(
            Field(name="title", kind="text", shape=(6,), vocabulary=20),
            Field(name="body", kind="text", shape=(12,), vocabulary=30),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data."""
    batch = 128 if spec.rows >= 10_000 else 32
    return {"engine": {"learning_rate": 1e-3, "epochs": 12, "batch_size": batch, "warmup": 0.1, "weight_decay": 0.05}}


def build(config: Config, spec: DataSpec) -> Transformer:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'transformer' cannot be used: {why}.")
    for name in ("width", "depth", "num_heads", "expansion"):
        if getattr(config, name) < 1:
            raise ConfigError(f"Option 'model.{name}' was given {getattr(config, name)}; expected 1 or more.")
    for name in ("dropout", "token_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(
                f"Option 'model.{name}' was given {getattr(config, name)}; expected at least 0 and below 1."
            )
    if config.width % config.num_heads:
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}; set model.width={_next_multiple(config.width, config.num_heads)} or other heads."
        )
    if config.positions == "rotary" and config.width // config.num_heads % 2:
        raise ConfigError(
            f"Option 'model.width' was given {config.width}; rotary positions need heads of even size, and "
            f"{config.num_heads} heads have {config.width // config.num_heads} each: set "
            f"model.width={_next_multiple(config.width, 2 * config.num_heads)} or model.positions=learned."
        )
    return Transformer(config, spec)


class Transformer(nn.Module):
    """The network; `width` is D."""

    segment: Tensor
    turns: Tensor | None

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.keys = tuple(column.key for column in spec.texts)
        lengths = [column.shape[0] for column in spec.texts]
        self.vectors = nn.ModuleList(nn.Embedding(column.vocabulary, config.width) for column in spec.texts)
        segment = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)])
        self.register_buffer("segment", segment, persistent=False)  # [T]: which column a place belongs to
        self.columns = nn.Parameter(torch.zeros(len(lengths), config.width)) if len(lengths) > 1 else None
        self.places = nn.Parameter(torch.zeros(sum(lengths), config.width)) if config.positions == "learned" else None
        angles = torch.cat([rotary_angles(length, config.width // config.num_heads) for length in lengths])
        self.register_buffer("turns", angles if config.positions == "rotary" else None, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, config.expansion * config.width, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self._start()

    def _start(self) -> None:
        """Draw small first weights, and smaller ones where a block adds to the stream, so that depth starts tame."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("project_out.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.depth) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the vectors [B, T, D] of all columns' tokens and which of them are real [B, T]."""
        tokens = [batch[key] for key in self.keys]
        vectors = [table(ids) for table, ids in zip(self.vectors, tokens, strict=True)]
        x, real = torch.cat(vectors, dim=1), torch.cat(tokens, dim=1) != PAD
        if self.training and self.config.token_dropout > 0:
            x = x * (torch.rand_like(x[..., :1]) >= self.config.token_dropout)
        if self.columns is not None:
            x = x + self.columns[self.segment]
        if self.places is not None:
            x = x + self.places
        return self.dropout(x), real

    def forward(self, batch: Batch) -> Features:
        x, real = self.embed(batch)
        visible = real | ~real.any(1, keepdim=True)  # a row without tokens sees its padding: no softmax over nothing
        packing = None
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a graph's shapes may not hang on the data
            packing = Packing(visible)
            x = packing.pack(x)  # [N, D]
        for block in self.blocks:
            x = block(x, visible[:, None, None, :], self.turns, packing)
        x = self.norm(x) if packing is None else packing.pad(self.norm(x))  # [B, T, D]
        if self.config.pooling == "first":
            return Features(pooled=x[:, 0], tokens=x, mask=real)
        share = real / real.sum(1, keepdim=True).clamp_min(1)  # [B, T]
        return Features(pooled=torch.einsum("bt,btd->bd", share.to(x.dtype), x), tokens=x, mask=real)


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
