"""Validation: the mean of an objective's metrics over rows it does not learn from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from fathom.core.objective import Objective
from fathom.core.types import Batch, Store

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
) -> dict[str, float]:
    """Return the objective's summary of the means of its metrics over `rows` rows, evenly spread through the store."""
    count = len(store)
    index = torch.arange(rows) * count // rows  # [V]
    sums: dict[str, torch.Tensor] = {}
    objective.eval()
    try:
        for chosen in index.split(batch_size):
            with precision:
                found = objective.metrics(move(store.gather(chosen)))
            for name, values in found.items():
                total = values.double().sum() if values.device.type != "mps" else values.sum()
                sums[name] = sums[name] + total if name in sums else total
    finally:
        objective.train()
    return objective.summary({name: total.item() / rows for name, total in sums.items()})
