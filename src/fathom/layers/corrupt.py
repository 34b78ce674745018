"""Texts with tokens taken away, which a model learns to put back.

    ordinary      which tokens may be taken away
    masked        single tokens, most of them replaced by MASK          (BERT)
    spans         which tokens a few runs take away                     (T5)
    filled        the runs, one after the other, and the text without them: what to write and what to read

Everything is drawn from torch's default generator, for whole batches at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.layers.scoring import NOTHING


def ordinary(tokens: Tensor, special: tuple[int, ...]) -> Tensor:
    """Return which tokens are none of the special ones: [B, T] bool."""
    found = torch.ones_like(tokens, dtype=torch.bool)
    for token in set(special):
        found &= tokens != token
    return found


def masked(tokens: Tensor, chosen: Tensor, mask: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the tokens [B, T] to read and those to tell, NOTHING where none is.

    Of the chosen ones eight in ten are replaced by `mask`, one by any token, and one stays: so that the model cannot
    trust any token that it reads.

    Source: Devlin, Chang, Lee, Toutanova, BERT, 2018, section 3.1.

    Args:
        chosen: [B, T], those that are to be told.
    """
    fate = torch.rand(tokens.shape, device=tokens.device)
    read = tokens.masked_fill(chosen & (fate < 0.8), mask)
    anything = torch.randint(vocabulary, tokens.shape, device=tokens.device)
    read = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), anything, read)
    return read, tokens.masked_fill(~chosen, NOTHING)


def spans(candidates: Tensor, share: float, length: float) -> Tensor:
    """Return which tokens are taken away, in runs: [B, T] bool.

    Of n candidates in a row, about n · share are taken away, in runs of `length` tokens on average, all ways to divide
    them into runs, and the rest into what stands between, being equally probable. A row begins with what stays.

    Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020,
    section 3.1.4 and its code.

    Args:
        candidates: [B, T], tokens that may be taken away, of a row all in one run.
    """
    size = candidates.sum(1)  # [B]
    taken = (size * share).round().long().clamp(min=1).minimum((size - 1).clamp_min(0))
    count = (taken / length).round().long().clamp(min=1).minimum(taken).minimum(size - taken)  # runs
    most = max(int(count.max()), 1)
    kept_parts, taken_parts = _divided(size - taken, count, most), _divided(taken, count, most)  # [B, S]
    lengths = torch.stack([kept_parts, taken_parts], 2).flatten(1)  # [B, 2·S], kept and taken in turn
    ends = lengths.cumsum(1)
    place = candidates.cumsum(1) - 1  # [B, T], among the row's candidates
    part = torch.searchsorted(ends, place.contiguous(), right=True)  # [B, T]
    return candidates & (part % 2 == 1) & (place < size[:, None])


def _divided(size: Tensor, parts: Tensor, most: int) -> Tensor:
    """Return random sizes of at least one that add up to `size`, of `parts` parts [B], and 0 for others: [B, most]."""
    longest = int(size.max())
    inner = torch.arange(longest, device=size.device)[None]  # a part may begin at 1 … size − 1
    order = torch.rand(len(size), longest, device=size.device)
    order = order.masked_fill((inner < 1) | (inner >= size[:, None]), 2.0)
    rank = order.argsort(1).argsort(1)
    begins = (rank < (parts - 1)[:, None]) & (order < 2)
    which = begins.cumsum(1)  # [B, longest], the part of each place
    real = (inner < size[:, None]).long()
    return size.new_zeros(len(size), most).scatter_add(1, which.clamp_max(most - 1), real)


def filled(tokens: Tensor, taken: Tensor, special: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return what is read [B, T] and what is written [B, T']: START MASK run MASK run … END.

    Each run is one MASK to the reader. T5 has a sentinel for each run; here one serves for all, and the order of the
    runs tells them apart.
    """
    pad, _, start, end, mask = special
    first = taken & ~torch.cat([torch.zeros_like(taken[:, :1]), taken[:, :-1]], 1)
    read = _gathered(tokens.masked_fill(first, mask), (~taken | first) & (tokens != pad), pad)
    marks = tokens.masked_fill(first, mask)
    pairs = torch.stack([marks, tokens], 2).flatten(1)  # [B, 2·T], a mark before each token
    written = _gathered(pairs, torch.stack([first, taken], 2).flatten(1), pad)
    room = written.new_full((len(tokens), 1), pad)
    written = torch.cat([written.new_full((len(tokens), 1), start), written, room], 1)
    last = (written != pad).sum(1, keepdim=True)
    written = written.scatter(1, last, end)
    return read, written[:, : int(last.max()) + 1]


def _gathered(tokens: Tensor, kept: Tensor, pad: int) -> Tensor:
    """Return the kept tokens of each row, moved together to the left: [B, T]."""
    order = (~kept).long().argsort(dim=1, stable=True)
    moved = tokens.gather(1, order)
    return moved.masked_fill(torch.arange(tokens.shape[1], device=tokens.device) >= kept.sum(1, keepdim=True), pad)
