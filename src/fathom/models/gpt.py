"""GPT-2: a decoder that tells the next token from all before it.

    text [B, T]  ->  token + position vectors  ->  depth × (norm, causal attention; norm, two-layer network)  ->  norm
                 ->  hidden states [B, T, D]   ->  · token vectors  ->  scores of the next token [B, T, V]

A text's vector is the hidden state of its last real token, the only one that has seen all of it. Texts are padded on
the right, where nothing real ever looks. The presets are the four published sizes; `gpt` itself is a small one that a
CPU trains in minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import batch_size, moved
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.attention import Packing
from fathom.layers.cache import Cache
from fathom.layers.decoder import CausalAttention, Decoder, DecoderBlock, Plain, begin, last_real, upto_last
from fathom.layers.moe import MixtureOfExperts, unevenness

REFERENCE = "Radford, Wu, Child, Luan, Amodei, Sutskever, Language Models are Unsupervised Multitask Learners, 2019"
PROVEN = "transformers' GPT2LMHeadModel, weight for weight"
PUBLISHED = ("gpt2",)


@dataclass(frozen=True)
class Config:
    width: int = option(128, "D, length of a token's vector")
    depth: int = option(2, "blocks")
    num_heads: int = option(4, "heads of each attention; they divide the width")
    hidden: int = option(0, "units of a block's two-layer network; 0: four times the width")
    context: int = option(0, "the most tokens that a sequence may have; 0: as many as the data's texts")
    dropout: float = option(0.1, "share of vectors, attention weights and each part's output dropped in training")
    epsilon: float = option(1e-5, "added to a variance before its root is taken")
    experts: int = option(0, "networks of each block that tokens are sent to; 0: one network for all tokens")
    active: int = option(2, "how many of the experts each token is sent through")
    balance: float = option(0.01, "what uneven use of the experts costs in training")


presets: dict[str, Config] = {
    "gpt2": Config(768, 12, 12, context=1024),
    "gpt2_medium": Config(1024, 24, 16, context=1024),
    "gpt2_large": Config(1280, 36, 20, context=1024),
    "gpt2_xl": Config(1600, 48, 25, context=1024),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_one("text")


def example() -> DataSpec:
    """Return short texts of two classes."""
    return DataSpec(
        inputs=(Field(name="text", kind="text", shape=(10,), vocabulary=30),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return texts of 1,024 tokens of the published vocabulary, which has none for padding."""
    special = (-1, -1, 50256, 50256, -1)
    return DataSpec(inputs=(Field(name="text", kind="text", shape=(1024,), vocabulary=50_257, special=special),))


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data: many small steps.

    Muon: a third of the verses told in one pass cost a network of this size 1.43 bits a byte in steps of 32, 1.49 of
    64; AdamW's 1.58 and worse.
    """
    how = moved(config.width <= 512, 1e-3)
    batch = batch_size(spec.rows, steps=400)
    return {"engine": {**how, "epochs": 12, "batch_size": batch, "warmup": 0.1, "weight_decay": 0.1}}


def build(config: Config, spec: DataSpec) -> GPT:
    """Return the network for such texts.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or texts are longer than the context.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'gpt' cannot be used: {why}.")
    field = spec.texts[0]
    _check(config, field)
    return GPT(
        replace(config, context=config.context or field.shape[0], hidden=config.hidden or 4 * config.width), field
    )


class GPT(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.config, self.key, self.pad = config, field.key, field.pad
        self.width, self.vocabulary, self.context = config.width, field.vocabulary, config.context
        self.vectors = nn.Embedding(self.vocabulary, config.width)
        self.positions = nn.Embedding(self.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        norm = partial(nn.LayerNorm, config.width, config.epsilon)
        blocks = [_block(config, norm) for _ in range(config.depth)]
        self.decoder = Decoder(blocks, norm())
        begin(self, config.depth)

    def forward(self, batch: Batch) -> Features:
        tokens = batch[self.key]  # [B, T]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        real = tokens != self.pad
        x, routed = self.decoder(self._embedded(tokens, places), packing=Packing.of(upto_last(real)))  # [B, T, D]
        penalty = None
        if self.training and routed:
            penalty = self.config.balance * unevenness(routed, self.config.active, real)
        return Features(pooled=last_real(x, real), tokens=x, mask=real, penalty=penalty)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]: the token vectors read out what they read in."""
        return F.linear(hidden, self.vectors.weight)

    def cache(self, rows: int, length: int) -> Cache:
        """Return room for what is kept of `rows` sequences of up to `length` tokens.

        Raises:
            ConfigError: so many tokens have no positions.
        """
        if length > self.context:
            raise ConfigError(f"{length} tokens were asked for; the model's context has {self.context}.")
        return Cache(self.config.depth, rows, length)

    def extend(self, tokens: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds, and put them there.

        Args:
            mask: [B, t], false at padding, which stands to the left of a shorter prompt.
        """
        places = cache.admit(tokens, mask)
        return self.decoder(self._embedded(tokens, places), cache=cache)[0]

    def _embedded(self, tokens: Tensor, places: Tensor) -> Tensor:
        return self.dropout(self.vectors(tokens) + self.positions(places))  # [B, T, D]


def _block(config: Config, norm: partial[nn.LayerNorm]) -> DecoderBlock:
    attention = CausalAttention(config.width, config.num_heads, dropout=config.dropout)
    network: nn.Module = Plain(config.width, config.hidden)
    if config.experts:
        network = MixtureOfExperts(config.width, config.hidden, config.experts, config.active, gated=False)
    return DecoderBlock(attention, network, norm, config.dropout)


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration that a `config.json` of transformers describes.

    Raises:
        ConfigError: it asks for what this network does not do.
    """
    activation = settings.get("activation_function", "gelu_new")
    if activation not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ConfigError(f"The published network's activation is '{activation}'; GPT-2 here has gelu_new.")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if settings.get(name):
            raise ConfigError(f"The published network has {name}, which GPT-2 here has not.")
    return Config(
        width=int(settings["n_embd"]),
        depth=int(settings["n_layer"]),
        num_heads=int(settings["n_head"]),
        hidden=int(settings.get("n_inner") or 0),
        context=int(settings["n_positions"]),
        dropout=float(settings.get("resid_pdrop", 0.1)),
        epsilon=float(settings.get("layer_norm_epsilon", 1e-5)),
    )


def matches(config: Config) -> Iterator[Match]:
    """Yield which published tensors are which of ours. The read-out is the token vectors, under a second name."""
    yield match("vectors", "wte")
    yield match("positions", "wpe")
    yield match("decoder.norm", "ln_f")
    for i in range(config.depth):
        ours, theirs = f"decoder.blocks.{i}", f"h.{i}"
        yield match(f"{ours}.norm_attention", f"{theirs}.ln_1")
        yield match(f"{ours}.attention.project_in", f"{theirs}.attn.c_attn", transposed=True)
        yield match(f"{ours}.attention.project_out", f"{theirs}.attn.c_proj", transposed=True)
        yield match(f"{ours}.norm_network", f"{theirs}.ln_2")
        yield match(f"{ours}.network.expand", f"{theirs}.mlp.c_fc", transposed=True)
        yield match(f"{ours}.network.contract", f"{theirs}.mlp.c_proj", transposed=True)
    yield match("vectors", "lm_head")


def _check(config: Config, field: Field) -> None:
    at_least(config, {"width": 1, "depth": 1, "num_heads": 1, "experts": 0, "hidden": 0, "context": 0, "balance": 0})
    below_one(config, "dropout")
    if config.width % config.num_heads:
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width {config.width}: "
            f"set model.width={-(-config.width // config.num_heads) * config.num_heads} or other heads."
        )
    if 0 < config.context < field.shape[0]:
        raise ConfigError(
            f"Texts of column '{field.name}' have up to {field.shape[0]} tokens; the context is {config.context}: set "
            f"prepare.text_length={config.context}, or a longer model.context."
        )
