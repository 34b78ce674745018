"""What holds a model while it writes: prompts go in, scores of the next token come out, token after token.

    Continuing    a language model goes on with its prompts
    Answering     a translator reads its prompts and writes something new

A pen writes each prompt `copies` times over, in neighbouring rows, for beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from fathom.core.roles import LanguageModel, Translator
from fathom.core.types import Features, Field

Prompts = Sequence[Sequence[int]]


class Pen(Protocol):
    """Rows that a model writes."""

    def first(self) -> Tensor:
        """Read the prompts and return the scores of the first token, [B · copies, V]."""

    def next(self, tokens: Tensor) -> Tensor:
        """Write `tokens` [B · copies] and return the scores of those that come next, [B · copies, V]."""

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row `rows[i]` has written; both are of the same prompt."""


class Continuing:
    """A language model. Shorter prompts are padded on the left, so that all rows go on at the same place."""

    def __init__(self, model: LanguageModel, prompts: Prompts, tokens: int, copies: int, device: torch.device) -> None:
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.tensor(padded, device=device)  # [B, T]
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        real = torch.arange(longest, device=device) >= longest - lengths  # [B, T]
        self.mask = None if bool(real.all()) else real
        self.model, self.copies = model, copies
        self.cache = model.cache(len(prompts), longest + tokens)

    def first(self) -> Tensor:
        hidden = self.model.extend(self.tokens, self.cache, self.mask)[:, -1]
        if self.copies > 1:
            self.reorder(torch.arange(len(hidden), device=hidden.device).repeat_interleave(self.copies))
        return self.model.logits(hidden).repeat_interleave(self.copies, 0)

    def next(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model.extend(tokens[:, None], self.cache)[:, -1])

    def reorder(self, rows: Tensor) -> None:
        self.cache.reorder(rows)


class Answering:
    """A translator. Shorter prompts are padded on the right, by the token that the model knows for it."""

    def __init__(
        self,
        model: Translator,
        prompts: Prompts,
        read: Field,
        start: int,
        tokens: int,
        copies: int,
        device: torch.device,
    ) -> None:
        longest = max(1, *map(len, prompts))
        padded = [list(prompt) + [read.pad] * (longest - len(prompt)) for prompt in prompts]
        memory = model.encode({read.key: torch.tensor(padded, device=device)})
        if copies > 1:
            memory = _repeated(memory, copies)
        self.model, self.cache = model, model.cache(memory, tokens + 1)
        self.start = torch.full((len(prompts) * copies,), start, device=device)

    def first(self) -> Tensor:
        return self.next(self.start)

    def next(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model.extend(tokens[:, None], self.cache)[:, -1])

    def reorder(self, rows: Tensor) -> None:
        self.cache.reorder(rows)


def _repeated(memory: Features, copies: int) -> Features:
    tokens, mask = (
        None if part is None else part.repeat_interleave(copies, 0) for part in (memory.tokens, memory.mask)
    )
    return replace(memory, pooled=memory.pooled.repeat_interleave(copies, 0), tokens=tokens, mask=mask)
