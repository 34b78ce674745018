"""BERT and its kin: encoders that read a text in both directions at once, each layer normalising what it gives out.

    text [B, T]  ->  token + position + segment vectors  ->  normalise  ->  depth × encoder block  ->  [B, T, D]
                 ->  pooled  ->  [B, D]

    pooling  tanh    tanh of a linear layer of the first token     BERT's classifiers
             first   the first token                               DistilBERT's classifiers
             mean    the mean of the real tokens                   sentence encoders such as MiniLM

Several text columns are read as one sequence, one behind the other, as BERT reads pairs of sentences: positions are
counted over real tokens, padding left out, and a segment's vector says which column a token stands in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import batch_size, moved
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.attention import EncoderBlock, Packing

REFERENCE = (
    "Devlin, Chang, Lee, Toutanova, BERT: Pre-training of Deep Bidirectional Transformers, 2018; "
    "Sanh, Debut, Chaumond, Wolf, DistilBERT, a Distilled Version of BERT, 2019; "
    "Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov, RoBERTa, 2019; "
    "Wang, Wei, Dong, Bao, Yang, Zhou, MiniLM: Deep Self-Attention Distillation, 2020"
)
PROVEN = "transformers' BertModel, DistilBertModel and RobertaModel, weight for weight, and MiniLM's published weights"
PUBLISHED = ("bert", "distilbert", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class Config:
    width: int = option(128, "length of a token's vector")
    depth: int = option(2, "encoder blocks")
    num_heads: int = option(4, "heads of each attention; they divide the width")
    hidden: int = option(0, "units of a block's two-layer network; 0: four times the width")
    positions: int = option(0, "rows in the table of positions; 0: as many as the text columns are long")
    first_position: int = option(0, "row of a text's first token (RoBERTa leaves the first two empty)")
    segments: int = option(2, "vectors that tell columns apart, the last one for all further columns; 0: none")
    one_vocabulary: bool = option(False, "whether all columns share one table of tokens, as published weights need it")
    pooling: Literal["tanh", "first", "mean"] = option("mean", "a text's vector: see the head of the file")
    unit_length: bool = option(False, "scale a text's vector to length one, so that products are cosines")
    dropout: float = option(0.1, "share of units and attention weights dropped in training")
    epsilon: float = option(1e-12, "what the norms add to the variance")


presets: dict[str, Config] = {
    "bert_base": Config(width=768, depth=12, num_heads=12, positions=512, pooling="tanh"),
    "bert_large": Config(width=1024, depth=24, num_heads=16, positions=512, pooling="tanh"),
    "distilbert": Config(width=768, depth=6, num_heads=12, positions=512, segments=0, pooling="first"),
    "minilm": Config(width=384, depth=6, num_heads=12, positions=512, pooling="mean"),
    "roberta_base": Config(
        width=768, depth=12, num_heads=12, positions=514, first_position=2, segments=1, pooling="tanh", epsilon=1e-5
    ),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("text")


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


def paper() -> DataSpec:
    """Return texts of 128 tokens, as BERT was mostly trained on, in its vocabulary."""
    return DataSpec(inputs=(Field(name="text", kind="text", shape=(128,), vocabulary=30_522),))


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data: wide networks are moved by small steps, as in the paper.

    Narrow ones by Muon: after two passes over 5,292 verses a masked token of others cost 5.53 nats, after AdamW's 5.81.
    """
    how = moved(config.width < 256, 1e-4)
    batch = batch_size(spec.rows, steps=400)
    return {"engine": {**how, "epochs": 12, "batch_size": batch, "warmup": 0.1, "weight_decay": 0.01}}


def build(config: Config, spec: DataSpec) -> Bert:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, in several vocabularies or too long, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'bert' cannot be used: {why}.")
    _check(config)
    sizes = {column.vocabulary for column in spec.texts}
    if config.one_vocabulary and len(sizes) > 1:
        listed = ", ".join(f"{size:,}" for size in sorted(sizes))
        raise ConfigError(
            f"The text columns have vocabularies of {listed} tokens; expected the same one, for "
            "model.one_vocabulary is true: give them one tokenizer, or set model.one_vocabulary=false."
        )
    length, room = sum(column.shape[0] for column in spec.texts), config.positions - config.first_position
    if config.positions and length > room:
        raise ConfigError(
            f"The text columns hold up to {length} tokens together, but option 'model.positions' leaves room for "
            f"{room}: shorten the texts, or set model.positions={length + config.first_position}."
        )
    return Bert(config, spec)


class Bert(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.keys = tuple(column.key for column in spec.texts)
        self.pads = tuple(column.pad for column in spec.texts)
        tables = spec.texts[:1] if config.one_vocabulary else spec.texts
        self.vectors = nn.ModuleList(nn.Embedding(column.vocabulary, config.width) for column in tables)
        rows = config.positions or config.first_position + sum(column.shape[0] for column in spec.texts)
        self.positions = nn.Parameter(torch.empty(rows, config.width))
        self.segments = nn.Parameter(torch.empty(config.segments, config.width)) if config.segments else None
        self.norm = nn.LayerNorm(config.width, config.epsilon)
        self.dropout = nn.Dropout(config.dropout)
        hidden = config.hidden or 4 * config.width
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, hidden, config.dropout, config.epsilon, norm_after=True)
            for _ in range(config.depth)
        )
        self.pooler = nn.Linear(config.width, config.width) if config.pooling == "tanh" else None
        self._start()

    def _start(self) -> None:
        """Draw first weights as BERT does."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the vectors [B, T, D] of all columns' tokens and which of them are real [B, T]."""
        tokens = [batch[key] for key in self.keys]
        real = torch.cat([ids != pad for ids, pad in zip(tokens, self.pads, strict=True)], dim=1)
        parts = []
        for column, ids in enumerate(tokens):
            found = self.vectors[column if len(self.vectors) > 1 else 0](ids)  # [B, T of this column, D]
            parts.append(found if len(tokens) == 1 else found + self._segment(column))
        first = self.config.first_position
        if len(parts) == 1:
            places = self.positions[first : first + real.shape[1]] + self._segment(0)  # [T, D]
            return self.dropout(self.norm(parts[0] + places)), real
        count = (real.cumsum(1) - 1).clamp_min(0)  # [B, T]
        places = F.embedding(first + count, self.positions)  # [B, T, D]
        return self.dropout(self.norm(torch.cat(parts, dim=1) + places)), real

    def _segment(self, column: int) -> Tensor | float:
        """Return the vector [D] of a column, or 0 where columns have none."""
        return 0.0 if self.segments is None else self.segments[min(column, len(self.segments) - 1)]

    def forward(self, batch: Batch) -> Features:
        x, real = self.embed(batch)
        seen = real | ~real.any(1, keepdim=True)  # a row without tokens sees its padding: no softmax over nothing
        visible: Tensor | None = seen[:, None, None, :]
        packing = None
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a graph's shapes may not hang on the data
            if seen.all():
                visible = None  # attention is quicker without a mask
            else:
                packing = Packing(seen)
                x = packing.pack(x)  # [N, D]
        for block in self.blocks:
            x = block(x, visible, packing=packing)
        if packing is not None:
            x = packing.pad(x)  # [B, T, D]
        return Features(pooled=self._pooled(x, real), tokens=x, mask=real)

    def _pooled(self, x: Tensor, real: Tensor) -> Tensor:
        """Return a text's vector [B, D] of its tokens [B, T, D]."""
        if self.config.pooling == "mean":
            share = real / real.sum(1, keepdim=True).clamp_min(1)  # [B, T]
            pooled = torch.einsum("bt,btd->bd", share.to(x.dtype), x)
        else:
            pooled = x[:, 0] if self.pooler is None else self.pooler(x[:, 0]).tanh()
        return F.normalize(pooled, dim=-1) if self.config.unit_length else pooled


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration of published weights, from transformers' `config.json`.

    Weights without a head are read as a sentence encoder's, which takes the mean; others as their classifiers do.

    Raises:
        ConfigError: the settings ask for something that this file does not have.
    """
    distilled, kind = settings["model_type"] == "distilbert", settings["model_type"]
    for name, expected in {
        "activation" if distilled else "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }.items():
        if settings.get(name, expected) != expected:
            raise ConfigError(
                f"The published weights have '{name}' {settings[name]!r}; model 'bert' reads {expected!r} only: "
                "take other weights, or use them through transformers, as --model hf:NAME."
            )
    heads = [name for name in settings.get("architectures") or () if not name.endswith("Model")]
    pooling: Literal["tanh", "first", "mean"] = "mean" if not heads else "first" if distilled else "tanh"
    if distilled:
        return Config(
            width=settings["dim"],
            depth=settings["n_layers"],
            num_heads=settings["n_heads"],
            hidden=settings["hidden_dim"],
            segments=0,
            dropout=settings.get("dropout", 0.1),
            positions=settings["max_position_embeddings"],
            one_vocabulary=True,
            pooling=pooling,
        )
    return Config(
        width=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        hidden=settings["intermediate_size"],
        first_position=settings.get("pad_token_id", 1) + 1 if kind.endswith("roberta") else 0,
        segments=settings["type_vocab_size"],
        dropout=settings.get("hidden_dropout_prob", 0.1),
        epsilon=settings.get("layer_norm_eps", 1e-12),
        positions=settings["max_position_embeddings"],
        one_vocabulary=True,
        pooling=pooling,
    )


# Parts of a block, each with its names in BERT's files and in DistilBERT's.
BLOCK = {
    "attention.project_in": (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ),
    "attention.project_out": (("attention.output.dense",), ("attention.out_lin",)),
    "norm_attention": (("attention.output.LayerNorm",), ("sa_layer_norm",)),
    "expand": (("intermediate.dense",), ("ffn.lin1",)),
    "contract": (("output.dense",), ("ffn.lin2",)),
    "norm_network": (("output.LayerNorm",), ("output_layer_norm",)),
}


def matches(config: Config) -> Iterator[Match]:
    """Yield what each of our tensors is called in transformers' files; the oldest ones name norms as TensorFlow did."""
    yield match("vectors.0", "embeddings.word_embeddings")
    yield match("positions", "embeddings.position_embeddings.weight")
    if config.segments:
        yield match("segments", "embeddings.token_type_embeddings.weight")
    if config.pooling == "tanh":
        yield match("pooler", "pooler.dense")
    norms = [("norm", "embeddings.LayerNorm")]
    for index in range(config.depth):
        for ours, (bert, distilbert) in BLOCK.items():
            yield match(f"blocks.{index}.{ours}", *(f"encoder.layer.{index}.{name}" for name in bert))
            yield match(f"blocks.{index}.{ours}", *(f"transformer.layer.{index}.{name}" for name in distilbert))
            if ours.startswith("norm"):
                norms.append((f"blocks.{index}.{ours}", f"encoder.layer.{index}.{bert[0]}"))
    for ours, theirs in norms:
        yield match(ours, theirs)
        yield match(f"{ours}.weight", f"{theirs}.gamma")
        yield match(f"{ours}.bias", f"{theirs}.beta")


def _check(config: Config) -> None:
    least = {"width": 1, "depth": 1, "num_heads": 1, "hidden": 0, "positions": 0, "first_position": 0, "segments": 0}
    at_least(config, least)
    below_one(config, "dropout")
    if not config.epsilon > 0:
        raise ConfigError(f"Option 'model.epsilon' was given {config.epsilon}; expected a small number above 0.")
    if config.width % config.num_heads:
        fitting = -(-config.width // config.num_heads) * config.num_heads
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}; set model.width={fitting} or other heads."
        )
