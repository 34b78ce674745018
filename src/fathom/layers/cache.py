"""What attention keeps of the tokens that it has seen, so that each new one costs one step and not the whole sequence.

    Cache   keys and values of every layer, in room that is made once

Prompts of unlike lengths are padded on the left, so that all rows go on at the same place of the cache; padding is
seen by nobody, and a token's position counts the real tokens before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.core.errors import ConfigError


class Cache:
    """Keys and values of `depth` layers for `rows` sequences of up to `room` tokens.

    A model admits new tokens once (`admit`), and then each of its layers puts their keys and values in (`append`).
    The room of a layer is made when it first stores something, in that something's type and on its device.

    Args:
        depth: layers.
        rows: B, sequences.
        room: L, the most tokens of a sequence, padding included.

    Attributes:
        length: tokens that the cache holds of each row, padding included.
        visible: of the tokens just admitted, which keys each may see, [B, 1, t, length], or None: by `causal` alone.
        causal: whether the tokens just admitted are all there is, and each sees itself and those before it.
    """

    def __init__(self, depth: int, rows: int, room: int) -> None:
        self.rows, self.room, self.length = rows, room, 0
        self.visible: Tensor | None = None
        self.causal = False
        self._keys: list[Tensor | None] = [None] * depth  # each [B, H, L, d]
        self._values: list[Tensor | None] = [None] * depth
        self._real: Tensor | None = None  # [B, L]; none where there is no padding

    def admit(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Count in new tokens, and return each one's position among the real tokens of its row.

        Args:
            tokens: [B, t].
            mask: [B, t], false at padding, which stands to the left.

        Returns:
            [B, t], or [1, t] where all rows are alike; 0 at padding.

        Raises:
            ConfigError: there is no room for them.
        """
        start, end = self.length, self.length + tokens.shape[1]
        if end > self.room:
            raise ConfigError(f"The cache has room for {self.room} tokens, and {end} are to be kept: ask for more.")
        self.length = end
        if self._real is None and mask is not None and not bool(mask.all()):
            self._real = torch.ones(self.rows, self.room, dtype=torch.bool, device=tokens.device)
        if self._real is None:
            self.causal = start == 0 and end > 1
            self.visible = _past(start, end, tokens.device) if start > 0 and end - start > 1 else None
            return torch.arange(start, end, device=tokens.device)[None]
        if mask is not None:
            self._real[:, start:end] = mask
        real = self._real[:, :end]
        past = _past(start, end, tokens.device)  # [t, length]
        # Padding sees itself: a softmax over nothing would not be a number. Nobody else sees it.
        itself = torch.eye(end, dtype=torch.bool, device=tokens.device)[start:]
        self.causal, self.visible = False, (past & real[:, None] | itself)[:, None]
        return (real.cumsum(1) - 1).clamp_min(0)[:, start:]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values [B, H, t, d] of the tokens just admitted; return all so far, [B, H, length, d]."""
        start = self.length - key.shape[2]
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            room = (self.rows, key.shape[1], self.room, key.shape[3])
            keys, values = key.new_empty(room), value.new_empty(room)
            self._keys[layer], self._values[layer] = keys, values
        keys[:, :, start : self.length] = key
        values[:, :, start : self.length] = value
        return keys[:, :, : self.length], values[:, :, : self.length]

    def part(self, rows: Tensor, length: int) -> Cache:
        """Return a cache of its own with the first `length` tokens of the sequences `rows` [N]; see `take`."""
        part = Cache(len(self._keys), len(rows), self.room)
        part.length = length
        part._keys, part._values = (
            [None if tensor is None else tensor.index_select(0, rows) for tensor in kept]
            for kept in (self._keys, self._values)
        )
        part._real = None if self._real is None else self._real.index_select(0, rows)
        return part

    def take(self, rows: Tensor, part: Cache, count: int) -> None:
        """Put the last `count` tokens of a part in the place of those that are kept of the sequences `rows` [N]."""
        places = slice(part.length - count, part.length)
        for kept, others in ((self._keys, part._keys), (self._values, part._values)):
            for tensor, other in zip(kept, others, strict=True):
                if tensor is not None and other is not None:
                    tensor[:, :, places].index_copy_(0, rows, other[:, :, places])

    def reorder(self, rows: Tensor) -> None:
        """Go on with the sequences `rows` [N] of those held: in another order, some more than once, some not at all."""
        same = len(rows) == self.rows
        for kept in (self._keys, self._values):
            for layer, tensor in enumerate(kept):
                if tensor is None:
                    continue
                chosen = tensor[:, :, : self.length].index_select(0, rows)
                if not same:
                    kept[layer] = tensor = tensor.new_empty(len(rows), *tensor.shape[1:])
                tensor[:, :, : self.length] = chosen
        if self._real is not None:
            self._real = self._real.index_select(0, rows)
        self.rows = len(rows)


def _past(start: int, end: int, device: torch.device) -> Tensor:
    """Return which of the tokens 0 … end − 1 each of start … end − 1 may see: itself and those before it."""
    return torch.arange(end, device=device) <= torch.arange(start, end, device=device)[:, None]
