"""The decoder of an encoder and decoder: blocks that look at their past and at what was read.

    Reading        attention of what is written to what was read
    ReadingBlock   attention to the past, to what was read, then a two-layer network

Source: Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, Attention Is All You Need, 2017.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.layers.attention import Packing, SelfAttention, rotate
from fathom.layers.written import Written


class Reading(nn.Module):
    """Attention of one sequence to another, its memory: [B, T, D] -> [B, T, D].

    Args:
        width: D.
        num_heads: H, which divides D.
        dropout: share of attention weights dropped in training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.project_in = nn.Linear(width, width)
        self.project_memory = nn.Linear(width, 2 * width)  # keys and values
        self.project_out = nn.Linear(width, width)

    def memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, H, S, D/H] of what was read [B, S, D]."""
        key, value = self.project_memory(memory).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return key.transpose(1, 2), value.transpose(1, 2)

    def weights(
        self, x: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Return how much of what was read each token gathers: [B, H, T, S], sums over S being one."""
        query = self.project_in(x) if packing is None else packing.pad(self.project_in(x))
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, T, D/H]
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(-1)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Return what each token gathers; `visible` [B, 1, 1, S] is true where a key may be seen.

        With a packing, which says where the N tokens stand in their sequences, they come and leave as [N, D].
        """
        query = self.project_in(x) if packing is None else packing.pad(self.project_in(x))  # [B, T, D]
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, T, D/H]
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        found = found.transpose(1, 2).flatten(2)  # [B, T, D]
        return self.project_out(found if packing is None else packing.pack(found))


class ReadingBlock(nn.Module):
    """One layer of a decoder: [B, T, D] -> [B, T, D]. Its arguments are those of `EncoderBlock`."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        norm_after: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.norm_after, self.activation = norm_after, activation
        self.norm_attention, self.norm_reading, self.norm_network = (nn.LayerNorm(width, epsilon) for _ in range(3))
        self.attention, self.reading = SelfAttention(width, num_heads, dropout), Reading(width, num_heads, dropout)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        visible: Tensor | None = None,
        turns: Tensor | None = None,
        kept: tuple[Written, int] | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Return what becomes of the tokens [B, T, D], or [N, D] if packed.

        Args:
            memory: keys and values of what was read, from `reading.memory`.
            visible: [B, 1, 1, S], true where the memory may be seen.
            turns: rotary angles [T, D/H/2] of the tokens, where positions are told that way.
            kept: a cache of the past, and which of its layers this is; without it these tokens are all there is.
            packing: where the N tokens stand in their sequences.
        """
        x = self._added(x, self.norm_attention, lambda y: self._past(y, turns, kept, packing))
        x = self._added(x, self.norm_reading, lambda y: self.reading(y, *memory, visible, packing))
        return self._added(x, self.norm_network, self._network)

    def _added(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_after:
            return norm(x + self.dropout(part(x)))
        return x + self.dropout(part(norm(x)))

    def _past(
        self, x: Tensor, turns: Tensor | None, kept: tuple[Written, int] | None, packing: Packing | None
    ) -> Tensor:
        """Return what each token gathers from itself and those before it."""
        parts = self.attention.project_in(x)
        parts = (parts if packing is None else packing.pad(parts)).unflatten(-1, (3, self.attention.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))  # [B, H, T, D/H] each
        if turns is not None:
            query, key = rotate(query, turns), rotate(key, turns)
        mask, causal = None, kept is None or kept[0].length == 0
        if kept is not None:
            key, value = kept[0].put(kept[1], key, value)
            if not causal and query.shape[2] > 1:
                mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=x.device)
                mask = mask.tril(key.shape[2] - query.shape[2])
        dropout = self.attention.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
        found = found.transpose(1, 2).flatten(2)  # [B, T, D]
        return self.attention.project_out(found if packing is None else packing.pack(found))

    def _network(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x))))
