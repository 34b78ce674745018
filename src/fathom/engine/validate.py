"""Validation: the mean of an objective's metrics over rows it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from fathom.core.ahead import announced
from fathom.core.objective import Objective
from fathom.core.types import Batch, Store
from fathom.engine import order
from fathom.engine.distributed import World

LEAST_ROWS = 10_000  # a validation set this small is always used whole


def rows_used(valid: int, train: int) -> int:
    """Return how many validation rows are looked at: a fifth of the training rows is plenty, if not too few."""
    return min(valid, max(LEAST_ROWS, train // 5))


@torch.no_grad()
def evaluate(
    objective: Objective,
    store: Store,
    rows: int,
    batch_size: int,
    move: Callable[[Batch], Batch],
    precision: AbstractContextManager[Any],
    world: World,
) -> dict[str, float]:
    """Return the objective's summary of the means of its metrics over `rows` rows, evenly spread through the store."""
    count = len(store)
    index = torch.arange(rows) * count // rows  # [V]
    sums: dict[str, torch.Tensor] = {}
    objective.eval()
    try:
        for chosen in announced(store, _pieces(index, batch_size, world)):
            with precision:
                found = objective.metrics(move(store.gather(chosen if len(chosen) else index[:1])))
            for name, values in found.items():
                values = values[: len(chosen)]
                total = values.double().sum() if values.device.type != "mps" else values.sum()
                sums[name] = sums[name] + total if name in sums else total
    finally:
        objective.train()
    totals = world.total([total.item() for total in sums.values()])
    return objective.summary({name: total / rows for name, total in zip(sums, totals, strict=True)})


def _pieces(index: torch.Tensor, batch_size: int, world: World) -> Sequence[torch.Tensor]:
    """Return this process's rows, so many at once; as many pieces in each process, of which the last may be empty."""
    if world.size == 1:
        return index.split(batch_size)
    count = -(-len(index) // (world.size * batch_size))
    mine = world.share_of(index)
    return mine.split(order.sizes(len(mine), count))
