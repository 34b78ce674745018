"""Several processes that train one model together, as torchrun starts them: who is who, and what they say.

Each process holds the model and all of the data, and takes its share of every batch: the order of rows is that of one
process, whatever their number. Gradients are summed, weighted by the units that each process saw, once a step, after
the last micro-batch. Buffers (batch normalisation's running statistics) are those of the first process. So all
processes hold the same state after each step, the first one's checkpoint is everyone's, and any number can go on.

Values that are not tensors travel as JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fathom.core import device
from fathom.core.errors import ConfigError, TrainingError
from fathom.engine import order
from fathom.engine.checkpoint import Snapshot
from fathom.engine.gradient import Sums

BUCKET = 25_000_000  # bytes of gradients that travel together
STREAM = 3  # of a run's seed: Python's and NumPy's generators where there are several processes


class World:
    """The processes of a run; where nothing else is said, the one that there is."""

    rank, size, local = 0, 1, 0

    def __init__(self) -> None:
        self._wish = [0.0, 0.0, 0.0]  # of this process: to look up; that somebody sent SIGINT, SIGTERM
        self._agreed = [0.0, 0.0, 0.0]  # of all processes, in the last step

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of that name; of several GPUs, this process's own."""
        found: torch.device = device.choose(name)
        if self.size > 1 and found.type == "cuda":
            found = device.choose(f"cuda:{self.local}")
            torch.cuda.set_device(found)
        return found

    def check(self, rows: int, batch_size: int) -> None:
        """Refuse batches that cannot be shared.

        Raises:
            ConfigError: a batch has fewer rows than there are processes.
        """
        least = rows // order.steps_per_epoch(rows, batch_size)
        if least < self.size:
            raise ConfigError(
                f"Batches of {least} rows cannot be shared by {self.size} processes; give a batch_size of at least "
                f"{self.size}, or torchrun fewer processes."
            )

    def share_of(self, index: Tensor) -> Tensor:
        """Return this process's rows of a batch: the shares differ by one row at most."""
        return index if self.size == 1 else index.split(order.sizes(len(index), self.size))[self.rank]

    def reseed(self, *numbers: int) -> None:
        """Seed Python's and NumPy's generators for a step: a checkpoint holds those of the first process only."""
        seed = order.mix(*numbers, STREAM, self.rank)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all processes, in double precision."""
        if self.size == 1 or not values:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        return found.tolist()

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the first one's values, as one message for each device."""
        if self.size == 1:
            return
        for place in dict.fromkeys(t.device for t in tensors):
            here = [t.detach() for t in tensors if t.device == place and t.numel()]
            if not here:
                continue
            flat = torch.cat([t.reshape(-1).view(torch.uint8) for t in here])
            dist.broadcast(flat, 0)
            if self.rank:
                for tensor, part in zip(here, flat.split([t.numel() * t.itemsize for t in here]), strict=True):
                    tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # cloned: aligned

    def share(self, value: Any) -> Any:
        """Return the first process's value, which must be what JSON can hold."""
        if self.size == 1:
            return value
        text = torch.tensor(list(json.dumps(value).encode()) if self.leads else [], dtype=torch.uint8)
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        text = text if self.leads else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def share_snapshot(self, found: Snapshot | None) -> Snapshot | None:
        """Return the checkpoint that the first process has read."""
        if self.size == 1:
            return found
        shapes = [_shapes(found.tensors), _shapes(found.best), found.values] if found is not None else None
        told = self.share(shapes)
        if told is None:
            return None
        snapshot = found or Snapshot(_empty(told[0]), told[2], _empty(told[1]))
        for tensor in (*snapshot.tensors.values(), *snapshot.best.values()):
            self.spread([tensor])
        return snapshot

    def sum_gradients(self, grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the sums over all processes; None where no process has a gradient.

        Args:
            grads: of this process, None where its rows did not touch a parameter.
            like: the parameters.
        """
        there = torch.tensor([grad is not None for grad in grads], dtype=torch.uint8)
        dist.all_reduce(there, dist.ReduceOp.MAX)
        found = [
            (torch.zeros_like(p) if grad is None else grad) if any_ else None
            for grad, p, any_ in zip(grads, like, there.tolist(), strict=True)
        ]
        under_way = []
        for bucket in _buckets([grad for grad in found if grad is not None]):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in under_way:
            assert work is not None
            work.wait()
            for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view(grad.shape))
        return found

    def agree(self, bad: bool, short: bool) -> tuple[bool, bool]:
        """Return whether any process has a loss that is not finite, and whether any ran out of memory."""
        counted = self.total([float(bad), float(short), *self._wish])
        self._agreed = counted[2:]
        return counted[0] > 0, counted[1] > 0

    def pause(self, due: bool, signal: int | None) -> tuple[bool, int | None]:
        """Return whether all processes look up now, and a signal that they leave by.

        What one process wishes is told with the next step's gradients, so that all look up after the same step.
        """
        if self.size == 1:
            return due or signal is not None, signal
        (look, interrupts, terminations), self._agreed = self._agreed, [0.0, 0.0, 0.0]
        self._wish = [float(due and not look), float(signal == 2), float(signal == 15)]
        number = 15 if terminations else 2 if interrupts else None
        return look > 0 or number is not None, number


class Together(World):
    """One of several processes."""

    def __init__(self) -> None:
        super().__init__()
        if not dist.is_initialized():
            store, rank, size = next(dist.rendezvous("env://"))
            if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # addresses of those that died must not be found again
                store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local = int(os.environ.get("LOCAL_RANK", "0"))


def join() -> World:
    """Return the processes that this one was started with."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    return Together() if started else World()


def restarted() -> bool:
    """Say whether torchrun started this process anew after another one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class SharedSums(Sums):
    """The gradient of the micro-batches of all processes as that of the one batch that they are parts of."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        inputs: Sequence[nn.Parameter] | None,
        name: str,
        scale: float,
        world: World,
        sharded: bool,
    ) -> None:
        super().__init__(parameters, inputs, name, scale, alone=False)
        self.world, self.sharded = world, sharded

    def finish(self) -> None:
        """Leave the gradient of the whole in the parameters.

        Raises:
            TrainingError: no parameter has a gradient, or a sharded one has several summands.
        """
        self.weights = self.world.total([float(weight) for weight in self.weights])
        if self.sharded:  # summed already, and divided by the number of processes
            if len(self.weights) > 1:
                raise TrainingError(
                    "Sharded weights (engine.shard) take a loss that is one mean; this objective's is a sum of several."
                )
            self.weights = [weight / self.world.size for weight in self.weights]
        elif len(self.weights) > 1:
            self.grads = [self.world.sum_gradients(grads, self.parameters) for grads in self.grads]
        else:
            self._show(self.world.sum_gradients([p.grad for p in self.parameters], self.parameters))
        super().finish()


def _buckets(grads: Sequence[Tensor]) -> list[list[Tensor]]:
    """Put gradients of one type and device together, up to `BUCKET` bytes."""
    found: list[list[Tensor]] = []
    open_: dict[tuple[torch.dtype, torch.device], int] = {}
    for grad in grads:
        kind, size = (grad.dtype, grad.device), grad.numel() * grad.itemsize
        if not found or (found[-1][0].dtype, found[-1][0].device) != kind or open_[kind] + size > BUCKET:
            found.append([])
            open_[kind] = 0
        found[-1].append(grad)
        open_[kind] += size
    return found


def _shapes(tensors: dict[str, Tensor]) -> list[Any]:
    return [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()]


def _empty(shapes: list[Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in shapes}
