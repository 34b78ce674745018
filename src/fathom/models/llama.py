"""Llama: the decoder that open language models of today are made after.

    text [B, T]  ->  token vectors  ->  depth × (norm, causal attention; norm, gated network)  ->  norm
                 ->  hidden states [B, T, D]  ->  read-out  ->  scores of the next token [B, T, V]

Beside GPT-2 it has no table of positions but turns queries and keys by theirs, norms that divide by the root of the
mean square, networks with a gate, heads of queries that share keys and values, and no biases. A text's vector is the
hidden state of its last real token. SmolLM2 and Mistral are Llamas of other sizes; Mixtral's blocks have several
networks, of which each token is sent through two.
The presets are published sizes; `llama` itself is a small one that a CPU trains in minutes.
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
from fathom.layers.decoder import (
    CausalAttention,
    Decoder,
    DecoderBlock,
    Gated,
    begin,
    last_real,
    rotary,
    rotary_speeds,
    stretched,
    upto_last,
)
from fathom.layers.moe import MixtureOfExperts, unevenness
from fathom.layers.norm import RMSNorm

REFERENCE = (
    "Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023; Su et al., RoFormer: Enhanced "
    "Transformer with Rotary Position Embedding, 2021; Zhang, Sennrich, Root Mean Square Layer Normalization, 2019; "
    "Shazeer, GLU Variants Improve Transformer, 2020; Ainslie et al., GQA: Training Generalized Multi-Query "
    "Transformer Models from Multi-Head Checkpoints, 2023; Jiang et al., Mixtral of Experts, 2024"
)
PROVEN = "transformers' LlamaForCausalLM and MixtralForCausalLM, weight for weight, and SmolLM2's published weights"
PUBLISHED = ("llama", "mistral", "mixtral")


@dataclass(frozen=True)
class Config:
    width: int = option(128, "D, length of a token's vector")
    depth: int = option(2, "blocks")
    num_heads: int = option(4, "heads of queries of each attention")
    num_kv_heads: int = option(2, "heads of keys and values, which heads of queries share evenly")
    head_size: int = option(0, "numbers of a head, even; 0: the width by the heads")
    hidden: int = option(0, "units of a block's gated network; 0: 8/3 of the width, up to a multiple of 32")
    context: int = option(0, "the most tokens that a sequence may have; 0: as many as the data's texts")
    tied: bool = option(True, "whether the token vectors read out what they read in")
    rotary_base: float = option(10_000.0, "the slowest pair of a head's numbers turns once in about 2π of these tokens")
    rotary_stretch: tuple[float, ...] = option(
        (), "Llama 3's: factor by which slow turns slow down, turns in a context that are slow and quick, that context"
    )
    dropout: float = option(0.0, "share of attention weights and of each part's output dropped in training")
    epsilon: float = option(1e-5, "added to a mean square before its root is taken")
    experts: int = option(0, "networks of each block that tokens are sent to; 0: one network for all tokens")
    active: int = option(2, "how many of the experts each token is sent through")
    balance: float = option(0.01, "what uneven use of the experts costs in training")


STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # as published

presets: dict[str, Config] = {
    "smollm2_135m": Config(576, 30, 9, 3, hidden=1536, context=8192, rotary_base=100_000.0),
    "smollm2_360m": Config(960, 32, 15, 5, hidden=2560, context=8192, rotary_base=100_000.0),
    "smollm2_1_7b": Config(2048, 24, 32, 32, hidden=8192, context=8192, rotary_base=130_000.0),
    "llama2_7b": Config(4096, 32, 32, 32, hidden=11_008, context=4096, tied=False),
    "mistral_7b": Config(4096, 32, 32, 8, hidden=14_336, context=32_768, tied=False, rotary_base=1_000_000.0),
    "mixtral_8x7b": Config(
        4096, 32, 32, 8, hidden=14_336, context=32_768, tied=False, rotary_base=1_000_000.0, experts=8, balance=0.02
    ),
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


def paper(preset: str = "smollm2_135m") -> DataSpec:
    """Return texts of 2,048 tokens of the vocabulary that a preset was published with."""
    if preset.startswith("smollm2"):
        vocabulary, special = 49_152, (2, 0, 1, 2, -1)
    else:
        vocabulary, special = 32_000, (-1, 0, 1, 2, -1)
    field = Field(name="text", kind="text", shape=(2048,), vocabulary=vocabulary, special=special)
    return DataSpec(inputs=(field,))


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data: many small steps.

    Muon: after one pass over 4,000 verses it cost 1.61 bits to tell a byte of others, after AdamW's 1.87.
    """
    how = moved(config.width <= 512, 1e-3)
    batch = batch_size(spec.rows, steps=400)
    return {"engine": {**how, "epochs": 12, "batch_size": batch, "warmup": 0.1, "weight_decay": 0.1}}


def build(config: Config, spec: DataSpec) -> Llama:
    """Return the network for such texts.

    Raises:
        ConfigError: the data is of another kind, an option is out of range, or texts are longer than the context.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'llama' cannot be used: {why}.")
    field = spec.texts[0]
    _check(config, field)
    return Llama(resolved(config, field), field)


def resolved(config: Config, field: Field) -> Config:
    """Return the configuration with everything that was left open decided, for such texts."""
    return replace(
        config,
        head_size=config.head_size or config.width // config.num_heads,
        hidden=config.hidden or -(-8 * config.width // (3 * 32)) * 32,
        context=config.context or field.shape[0],
    )


class Llama(nn.Module):
    """The network; `width` is D."""

    speeds: Tensor

    def __init__(self, config: Config, field: Field) -> None:
        super().__init__()
        self.config, self.key, self.pad = config, field.key, field.pad
        self.width, self.vocabulary, self.context = config.width, field.vocabulary, config.context
        self.vectors = nn.Embedding(self.vocabulary, config.width)
        speeds = rotary_speeds(config.head_size, config.rotary_base)
        if config.rotary_stretch:
            speeds = stretched(speeds, *config.rotary_stretch)
        self.register_buffer("speeds", speeds, persistent=False)
        norm = partial(RMSNorm, config.width, config.epsilon)
        self.decoder = Decoder([_block(config, norm) for _ in range(config.depth)], norm())
        self.readout_vectors = None if config.tied else nn.Linear(config.width, self.vocabulary, bias=False)
        begin(self, config.depth)

    def forward(self, batch: Batch) -> Features:
        tokens = batch[self.key]  # [B, T]
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        real = tokens != self.pad
        x, routed = self._decoded(tokens, places, packing=Packing.of(upto_last(real)))  # [B, T, D]
        penalty = None
        if self.training and routed:
            penalty = self.config.balance * unevenness(routed, self.config.active, real)
        return Features(pooled=last_real(x, real), tokens=x, mask=real, penalty=penalty)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]."""
        return F.linear(hidden, (self.readout_vectors or self.vectors).weight)

    def cache(self, rows: int, length: int) -> Cache:
        """Return room for what is kept of `rows` sequences of up to `length` tokens.

        Raises:
            ConfigError: it was not made for so many tokens.
        """
        if length > self.context:
            raise ConfigError(f"{length} tokens were asked for; the model's context has {self.context}.")
        return Cache(self.config.depth, rows, length)

    def extend(self, tokens: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds, and put them there.

        Args:
            mask: [B, t], false at padding, which stands to the left of a shorter prompt.
        """
        return self._decoded(tokens, cache.admit(tokens, mask), cache)[0]

    def _decoded(
        self, tokens: Tensor, places: Tensor, cache: Cache | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.vectors(tokens)  # [B, T, D]
        return self.decoder(x, rotary(places, self.speeds, x.dtype), cache, packing)


def _block(config: Config, norm: partial[RMSNorm]) -> DecoderBlock:
    attention = CausalAttention(
        config.width, config.num_heads, config.num_kv_heads, config.head_size, bias=False, dropout=config.dropout
    )
    network: nn.Module = Gated(config.width, config.hidden)
    if config.experts:
        network = MixtureOfExperts(config.width, config.hidden, config.experts, config.active)
    return DecoderBlock(attention, network, norm, config.dropout)


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration that a `config.json` of transformers describes.

    Raises:
        ConfigError: it asks for what this network does not do.
    """
    _check_published(settings)
    width, heads = int(settings["hidden_size"]), int(settings["num_attention_heads"])
    rope = settings.get("rope_parameters") or {}
    context = int(settings.get("max_position_embeddings", 2048))
    return Config(
        width=width,
        depth=int(settings["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(settings.get("num_key_value_heads") or heads),
        head_size=int(settings.get("head_dim") or 0),
        hidden=int(settings["intermediate_size"]),
        # Within a sliding window every token is seen by all after it, as here; beyond it not.
        context=min(context, int(settings.get("sliding_window") or context)),
        tied=bool(settings.get("tie_word_embeddings", False)),
        rotary_base=float(rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0),
        rotary_stretch=_stretch(settings),
        epsilon=float(settings.get("rms_norm_eps", 1e-6)),
        experts=int(settings.get("num_local_experts") or 0),
        active=int(settings.get("num_experts_per_tok") or 2),
        balance=float(settings.get("router_aux_loss_coef") or 0.0),
    )


def _check_published(settings: Mapping[str, Any]) -> None:
    if settings.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"The published network's activation is '{settings['hidden_act']}'; Llama here has silu.")
    for name in ("attention_bias", "mlp_bias"):
        if settings.get(name):
            raise ConfigError(f"The published network has {name}, which Llama here has not.")


def _stretch(settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Return how rotary positions of a published network are stretched for a longer context, as Llama 3's are."""
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return ()
    if kind != "llama3" or any(name not in scaling for name in STRETCH):
        raise ConfigError(
            f"The published network stretches its rotary positions ('{kind}') in a way that Llama here does not: take "
            "one without rope_scaling or with Llama 3's, numbers included, or use it through --model hf:NAME."
        )
    return tuple(float(scaling[name]) for name in STRETCH)


def matches(config: Config) -> Iterator[Match]:
    """Yield which published tensors are which of ours."""
    yield match("vectors", "embed_tokens")
    yield match("decoder.norm", "norm")
    for i in range(config.depth):
        ours, theirs = f"decoder.blocks.{i}", f"layers.{i}"
        yield match(f"{ours}.norm_attention", f"{theirs}.input_layernorm")
        projections = (f"{theirs}.self_attn.{name}_proj" for name in "qkv")
        yield match(f"{ours}.attention.project_in", *projections)
        yield match(f"{ours}.attention.project_out", f"{theirs}.self_attn.o_proj")
        yield match(f"{ours}.norm_network", f"{theirs}.post_attention_layernorm")
        if config.experts:
            yield from _experts(config, f"{ours}.network", theirs)
        else:
            yield match(f"{ours}.network.gate", f"{theirs}.mlp.gate_proj")
            yield match(f"{ours}.network.expand", f"{theirs}.mlp.up_proj")
            yield match(f"{ours}.network.contract", f"{theirs}.mlp.down_proj")
    yield match("vectors" if config.tied else "readout_vectors", "lm_head")


def _experts(config: Config, ours: str, theirs: str) -> Iterator[Match]:
    """Yield where a block's experts stand: one by one in files, and since transformers 5 in one tensor in memory."""
    each = [f"{theirs}.block_sparse_moe.experts.{e}" for e in range(config.experts)]
    gates_and_ups = (f"{expert}.{name}.weight" for expert in each for name in ("w1", "w3"))
    yield match(f"{ours}.router", f"{theirs}.block_sparse_moe.gate")
    yield match(f"{ours}.expand", *gates_and_ups, shape=(config.experts, 2 * config.hidden, config.width))
    downs = (f"{expert}.w2.weight" for expert in each)
    yield match(f"{ours}.contract", *downs, shape=(config.experts, config.width, config.hidden))
    yield match(f"{ours}.router", f"{theirs}.mlp.gate")
    yield match(f"{ours}.expand", f"{theirs}.mlp.experts.gate_up_proj")
    yield match(f"{ours}.contract", f"{theirs}.mlp.experts.down_proj")


def _check(config: Config, field: Field) -> None:
    least = {
        "width": 1,
        "depth": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_size": 0,
        "hidden": 0,
        "context": 0,
        "experts": 0,
        "balance": 0,
    }
    at_least(config, least)
    below_one(config, "dropout")
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"Option 'model.num_kv_heads' was given {config.num_kv_heads}, which {config.num_heads} heads of queries "
            "cannot share evenly: give a divisor of model.num_heads."
        )
    if not config.head_size and config.width % config.num_heads:
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width {config.width}: "
            f"set model.width={-(-config.width // config.num_heads) * config.num_heads} or a model.head_size."
        )
    numbers = config.rotary_stretch
    if numbers and not (len(numbers) == len(STRETCH) and min(numbers) > 0 and numbers[1] < numbers[2]):
        raise ConfigError(
            f"Option 'model.rotary_stretch' was given {list(numbers)}; expected nothing or four numbers "
            "above 0, the second below the third, such as [8, 1, 4, 8192]."
        )
    size = config.head_size or config.width // config.num_heads
    if size % 2:
        raise ConfigError(
            f"Heads have {size} numbers each, which rotary positions turn in pairs: set model.head_size={size + 1}."
        )
    if 0 < config.context < field.shape[0]:
        raise ConfigError(
            f"Texts of column '{field.name}' have up to {field.shape[0]} tokens; the context is {config.context}: set "
            f"prepare.text_length={config.context}, or a longer model.context."
        )
