"""Running statistics of batches, counted anew once training is over.

Batch normalisation remembers what the last few batches looked like to weights that have moved on since, and remembers
inputs as they were varied to learn from. What is predicted from looks otherwise, so that the statistics are taken once
more, with the weights that are kept, from training rows as they are.

Source: Wu, Johnson, Rethinking "Batch" in BatchNorm, 2021 (precise statistics; different domains in training and test).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fathom.core.ahead import announced
from fathom.core.modes import modes_kept
from fathom.core.objective import Objective
from fathom.core.types import Batch, Store

ROWS = 10_000  # that statistics are taken from, at the most


@torch.no_grad()
def recount(objective: Objective, store: Store, size: int, move: Callable[[Batch], Batch]) -> int:
    """Take the running statistics of what predicts from training rows, `size` of them at once; return how many rows.

    Args:
        move: brings a batch to the device.
    """
    layers = [layer for layer in objective.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers or size < 2:
        return 0
    step = -(-len(store) // ROWS)
    rows = torch.arange(0, len(store), step)
    with _counting(objective, layers):
        for index in announced(store, rows.split(size)):
            if len(index) > 1:  # one row has no spread
                objective.predict(move(store.gather(index)))
    return len(rows)


@contextmanager
def _counting(objective: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """For a while these layers, and they alone, learn; those that see nothing keep what they knew."""
    before = [({name: b.clone() for name, b in layer.named_buffers()}, layer.momentum) for layer in layers]
    try:
        with modes_kept(objective):
            objective.eval()
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a mean over all batches alike
                layer.train()
            yield
    finally:
        for layer, (known, momentum) in zip(layers, before, strict=True):
            layer.momentum = momentum
            for name, buffer in layer.named_buffers():
                if not layer.num_batches_tracked or name == "num_batches_tracked":
                    buffer.copy_(known[name])
