"""The order of samples: a pure function of the seed and the epoch, so that a position is two integers."""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.core.types import Store

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


class Order:
    """The batches of a run's epochs.

    Args:
        together: a column of the rows, and how many with the same value there shall stand together.
    """

    def __init__(self, rows: Store, batch_size: int, seed: int, together: tuple[str, int] | None) -> None:
        self.rows, self.batch_size, self.seed = len(rows), batch_size, seed
        self.values = rows.column(together[0]) if together else None  # [N]
        self.count = together[1] if together else 1

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        return batches(self.rows, self.batch_size, self.seed, epoch, self.values, self.count)


def batches(
    rows: int, batch_size: int, seed: int, epoch: int, values: Tensor | None = None, count: int = 1
) -> tuple[Tensor, ...]:
    """Return the row numbers of each batch of an epoch: a shuffle of all rows, each row once.

    With values [N], `count` rows of the same value stand next to each other, where there are as many.

    The fewest batches that hold at most `batch_size` rows share the rows evenly (their sizes differ by at most
    one), because a last batch of one or two rows would upset batch normalisation and weigh as much as a full one.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(rows, generator=generator)  # [N]
    if values is not None:
        order = order[bundled(values[order], count)]
    return order.split(sizes(rows, steps_per_epoch(rows, batch_size)))


def bundled(values: Tensor, count: int) -> Tensor:
    """Return an order of rows in which `count` of the same value follow one another, as long as there are so many.

    Each bundle stands where its first row stood, so that the bundles of a value are spread as its rows were.

    Args:
        values: [N], of rows that have been shuffled.
    """
    by_value = values.argsort(stable=True)  # [N]
    _, sizes_of = values[by_value].unique_consecutive(return_counts=True)
    begins = (sizes_of.cumsum(0) - sizes_of).repeat_interleave(sizes_of)
    leads = (torch.arange(len(values)) - begins) % count == 0  # [N], the first of a bundle
    places = by_value[leads][leads.cumsum(0) - 1]  # [N], where each row's bundle stands
    return by_value[places.argsort(stable=True)]
