"""What a decoder keeps of the sequences that it is writing, so that each further token costs one token's work.

    Written   keys and values of each layer: of the tokens written so far, and of what was read before

Source: the recurrence of the decoder in Vaswani et al., Attention Is All You Need, 2017; to keep its keys and values is
as old as the first implementations of it (Tensor2Tensor, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Written:
    """The keys and values of sequences that are being written after reading a memory.

    Args:
        memory: of each layer the keys and values of what was read, [B, H, S, E] each.
        visible: what attention to the memory takes as its mask, [B, 1, 1, S]; None where all of it may be seen.
        room: L, the most tokens that will be written.

    Attributes:
        length: tokens written so far.
    """

    def __init__(self, memory: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None, room: int) -> None:
        self.memory, self.visible, self.room, self.length = list(memory), visible, room, 0
        first = self.memory[0][0]
        shape = (*first.shape[:2], room, first.shape[3])
        self.own = [(first.new_empty(shape), first.new_empty(shape)) for _ in self.memory]  # [B, H, L, E]

    def put(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values of new tokens [B, H, t, E]; return those of all so far [B, H, length + t, E].

        `length` is the caller's to move, once every layer has its share.
        """
        end = self.length + key.shape[2]
        assert end <= self.room, "more tokens than the cache has room for"
        keys, values = self.own[layer]
        keys[:, :, self.length : end], values[:, :, self.length : end] = key, value
        return keys[:, :, :end], values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row `rows[i]` has written: [B] int64. Both have read the same."""
        for keys, values in self.own:
            for kept in (keys, values):
                kept[:, :, : self.length] = kept[:, :, : self.length].index_select(0, rows)


def visible_keys(real: Tensor) -> Tensor:
    """Return which keys attention may see, [B, T] -> [B, 1, 1, T]: the real ones, or all of a row that has none."""
    return (real | ~real.any(1, keepdim=True))[:, None, None, :]


def hidden_keys(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what hides the others where it is added to scores, 0 or −∞: [B, T] -> [B, 1, 1, T]."""
    visible = visible_keys(real)
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -math.inf)
