"""What decoder-only language models are made of: each token sees itself and those before it.

    CausalAttention   several heads of queries, which may share heads of keys and values, with or without a cache
    Plain, Gated      two-layer networks: activation(x·A)·B, and (silu(x·G) ⊙ x·A)·B
    DecoderBlock      attention, then a network, each on normalised input and added to what came in
    Decoder           blocks, and a norm behind the last

Sequences of unlike lengths, padded on the right, may be packed: their real tokens stand one behind the other, and all
that works on single tokens works on these alone. Attention lays them out again, each sequence in a row of its own, so
that no token sees one of another sequence, every sequence's positions begin at its first token, and attention needs no
mask but to look back.

Sources: Radford, Wu, Child, Luan, Amodei, Sutskever, Language Models are Unsupervised Multitask Learners, 2019 (the
block); Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, 2023;
Shazeer, GLU Variants Improve Transformer, 2020; Su et al., RoFormer: Enhanced Transformer with Rotary Position
Embedding, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.layers.attention import Packing
from fathom.layers.cache import Cache

Turns = tuple[Tensor, Tensor]


class CausalAttention(nn.Module):
    """Attention to oneself and the past: [B, T, D] -> [B, T, D].

    Args:
        width: D.
        num_heads: H, heads of queries.
        num_kv_heads: K, heads of keys and values, each of which H/K heads of queries share.
        size: d, numbers of a head; none: D/H.
        bias: whether its linear layers add one.
        dropout: share of attention weights dropped in training.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        size: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.size, self.dropout = size or width // num_heads, dropout
        assert self.num_heads % self.num_kv_heads == 0, "heads of keys and values must divide heads of queries"
        # Queries, keys and values of all heads, one behind the other.
        self.project_in = nn.Linear(width, (self.num_heads + 2 * self.num_kv_heads) * self.size, bias)
        self.project_out = nn.Linear(self.num_heads * self.size, width, bias)

    def forward(
        self,
        x: Tensor,
        turns: Turns | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        packing: Packing | None = None,
    ) -> Tensor:
        """Return what each token gathers.

        Args:
            x: [B, T, D], or [N, D] with a packing; so is what is returned.
            turns: what `rotary` gives for the tokens' positions, where positions are told that way.
            cache: has admitted these tokens, which follow those that it holds; without it they are all there is.
            layer: of the cache.
            packing: where the N tokens stand in their sequences.
        """
        parts = self.project_in(x)
        if packing is not None:
            parts = packing.pad(parts)
        parts = parts.unflatten(-1, (-1, self.size))  # [B, T, H + 2·K, d]
        turned, value = parts.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=2)
        if turns is not None:
            turned = turn(turned, turns)
        query, key = turned.split((self.num_heads, self.num_kv_heads), dim=2)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # [B, H or K, T, d]
        found = self._gather(query, key, value) if cache is None else self._recall(query, key, value, cache, layer)
        found = found.transpose(1, 2).flatten(2)  # [B, T, H·d]
        return self.project_out(found if packing is None else packing.pack(found))

    def _gather(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        shared = self.num_kv_heads < self.num_heads
        return F.scaled_dot_product_attention(query, key, value, None, dropout, is_causal=True, enable_gqa=shared)

    def _recall(self, query: Tensor, key: Tensor, value: Tensor, cache: Cache, layer: int) -> Tensor:
        """Return what tokens gather [B, H, t, d] from the cache and themselves."""
        keys, values = cache.append(layer, key, value)  # [B, K, length, d]
        shared = self.num_kv_heads < self.num_heads
        if query.shape[2] > 1:
            return F.scaled_dot_product_attention(
                query, keys, values, cache.visible, is_causal=cache.causal, enable_gqa=shared
            )
        # One token: the heads that share a head of keys stand where the tokens of a sequence would.
        query = query.reshape(len(query), self.num_kv_heads, -1, self.size)  # [B, K, H/K, d]
        found = F.scaled_dot_product_attention(query, keys, values, cache.visible)
        return found.reshape(len(query), self.num_heads, 1, self.size)


class Plain(nn.Module):
    """activation(x·A)·B: [..., D] -> [..., D], with `hidden` units between."""

    def __init__(self, width: int, hidden: int, bias: bool = True, tanh: bool = True) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)
        self.approximate = "tanh" if tanh else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x), approximate=self.approximate))


class Gated(nn.Module):
    """(silu(x·G) ⊙ x·A)·B: [..., D] -> [..., D], with `hidden` units between.

    G and A are two layers: halves of one's output would have to be put together again on the way back.
    """

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.expand = nn.Linear(width, hidden, bias), nn.Linear(width, hidden, bias)
        self.contract = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.silu(self.gate(x)) * self.expand(x))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)): [B, T, D] -> [B, T, D].

    Args:
        attention, network: the parts. A network that is a mixture of experts gives out its router's scores, too.
        norm: makes a norm.
        dropout: share dropped of what each part adds, in training.
    """

    def __init__(
        self, attention: CausalAttention, network: nn.Module, norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm_attention, self.attention = norm(), attention
        self.norm_network, self.network = norm(), network
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        turns: Turns | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what follows [B, T, D], and the scores [B, T, E] of the block's experts where it has such; packed,
        [N, D] and [N, E]."""
        x = x + self.dropout(self.attention(self.norm_attention(x), turns, cache, layer, packing))
        found, scores = self.network(self.norm_network(x)), None
        if isinstance(found, tuple):
            found, scores = found
        return x + self.dropout(found), scores


class Decoder(nn.Module):
    """Blocks, and a norm behind the last: [B, T, D] -> [B, T, D]."""

    def __init__(self, blocks: Iterable[DecoderBlock], norm: nn.Module) -> None:
        super().__init__()
        self.blocks, self.norm = nn.ModuleList(blocks), norm

    def forward(
        self, x: Tensor, turns: Turns | None = None, cache: Cache | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return hidden states [B, T, D], and of each mixture of experts its router's scores [B, T, E].

        Args:
            x: [B, T, D].
            packing: which of these tokens are real; the others come back as zeros, with scores of zero.
        """
        routed, within = [], None
        if packing is not None:
            x, within = packing.pack(x), packing.trimmed()  # [N, D]
            turns = turns and (turns[0][:, : within.shape[1]], turns[1][:, : within.shape[1]])
        for layer, block in enumerate(self.blocks):
            x, scores = block(x, turns, cache, layer, within)
            if scores is not None:
                routed.append(scores)
        x = self.norm(x)
        if packing is None:
            return x, routed
        return packing.pad(x), [packing.pad(scores) for scores in routed]


def rotary_speeds(size: int, base: float = 10_000.0) -> Tensor:
    """Return by how much each pair of a head's dimensions turns from one position to the next: [size / 2].

    In single precision throughout, as those who trained the published models did.
    """
    return 1.0 / base ** (torch.arange(0, size, 2).float() / size)


def stretched(speeds: Tensor, factor: float, slow: float, quick: float, context: float) -> Tensor:
    """Return rotary speeds [size / 2] of a network made for `context` tokens, for a context `factor` times as long.

    Pairs that turn fewer than `slow` times within the first context turn slower by the factor, those that turn more
    than `quick` times tell neighbours apart and stay, and those between are blended.

    Source: Grattafiori et al., The Llama 3 Herd of Models, 2024, section 3.4.2, and the release of Llama 3.1.
    """
    turns = context / (2 * math.pi / speeds)  # in this order, for the same rounding as the published networks'
    kept = ((turns - slow) / (quick - slow)).clamp(0, 1)
    return (1 - kept) * speeds / factor + kept * speeds


def rotary(places: Tensor, speeds: Tensor, dtype: torch.dtype) -> Turns:
    """Return cosines and signed sines of each position's angles, for `turn`: [B, T] -> [B, T, 1, size] each."""
    angles = (places[..., None].float() * speeds)[:, :, None]  # [B, T, 1, size / 2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def turn(x: Tensor, turns: Turns) -> Tensor:
    """Turn each pair (i, i + size/2) of the last dimension by its position's angle: [B, T, H, size] -> the same."""
    cos, sin = turns
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin  # rounded as elsewhere: fused, it differs in the last bits


def upto_last(real: Tensor) -> Tensor:
    """Return which tokens stand nowhere behind a row's last real one, [B, T]: what is looked at must be there."""
    return real.flip(1).cumsum(1).flip(1) > 0


def last_real(hidden: Tensor, real: Tensor) -> Tensor:
    """Return the hidden state of each row's last real token, or its first place's: [B, T, D], [B, T] -> [B, D]."""
    places = torch.arange(real.shape[1], device=real.device)
    last = (places * real).amax(1)  # [B]
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


def begin(network: nn.Module, depth: int, std: float = 0.02) -> None:
    """Draw small first weights, and smaller ones where a block adds to the stream, so that depth starts tame.

    Source: Radford et al., 2019, section 2.3.
    """
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            residual = "project_out" in name or "contract" in name
            nn.init.normal_(parameter, std=std / (2 * depth) ** 0.5 if residual else std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
