"""The order of samples: a pure function of the seed and the epoch, so that a position is two integers."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """Return 63 well-mixed bits of some whole numbers: the seed of one thing at one moment of one run.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014 (its finaliser).
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def sizes(rows: int, parts: int) -> list[int]:
    """Cut `rows` into `parts` whose sizes differ by at most one, the larger first."""
    size, rest = divmod(rows, parts)
    return [size + 1] * rest + [size] * (parts - rest)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


def batches(rows: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Return the row numbers of each batch of an epoch: a shuffle of all rows, each row once.

    The fewest batches that hold at most `batch_size` rows share the rows evenly (their sizes differ by at most
    one), because a last batch of one or two rows would upset batch normalisation and weigh as much as a full one.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(rows, generator=generator)  # [N]
    return order.split(sizes(rows, steps_per_epoch(rows, batch_size)))
