"""Checkpoints written from a copy, in a thread, while training goes on.

Training stands still only while the state is copied, into memory that is kept for the next copy. One checkpoint is
written at a time. An error of the thread is raised where the loop next asks for what was written.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.engine.checkpoint import Checkpoints, Snapshot

NICENESS = 5  # of the thread beside training
SHARE = 0.01  # of the time, at most, goes into checkpoints that only the clock asks for


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk.

    Attributes:
        step: whose state it holds.
        seconds: from the copy to the disk; stalled: of them, those in which training stood still for the copy.
        worked: seconds of a processor that the thread took.
    """

    path: Path
    step: int
    bytes: int
    seconds: float
    stalled: float
    worked: float


class Saver:
    """Writes a run's checkpoints into one folder."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder)
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._found: Written | Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written at this moment."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, take: Callable[[], Snapshot], step: int, best_changed: bool) -> None:
        """Copy the state, and have it written.

        Args:
            take: gives the state; its `tensors` may change as soon as this returns, but not those of `best`.
            step: whose state it is.
            best_changed: whether `best` was written before.
        """
        assert self._thread is None, "the checkpoint before was not asked for"
        began = time.perf_counter()
        snapshot = take()
        copied, ready = self._copy(snapshot.tensors)
        whole = Snapshot(copied, snapshot.values, snapshot.best)
        stalled = time.perf_counter() - began

        def write() -> None:
            _step_back()
            try:
                if ready is not None:
                    ready.synchronize()
                path = self.checkpoints.save(whole, best_changed)
                seconds, worked = time.perf_counter() - began, time.thread_time()
                self._found = Written(path, step, self.checkpoints.bytes, seconds, stalled, worked)
            except Exception as error:  # raised by `written`, in the thread that asks
                self._found = error

        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def written(self, wait: bool) -> Written | None:
        """Return the checkpoint that was written since the last call, if there is one.

        Args:
            wait: until the one that is being written is on disk.

        Raises:
            TrainingError: it could not be written; earlier checkpoints are untouched.
        """
        if self._thread is None or (self.busy and not wait):
            return None
        self._thread.join()
        self._thread, found = None, self._found
        if isinstance(found, Exception):
            raise found
        return found

    def settle(self) -> None:
        """Wait until nothing is being written, whatever became of it."""
        if self._thread is not None:
            self._thread.join()

    def _copy(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
        """Return copies in main memory, and what to wait for until a GPU has filled them."""
        for name in self._copies.keys() - tensors.keys():
            del self._copies[name]
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        for name, tensor in tensors.items():
            kept = self._copies.get(name)
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        torch._foreach_copy_(
            [self._copies[name] for name in tensors], [t.detach() for t in tensors.values()], non_blocking=pinned
        )
        if not pinned:
            return self._copies, None
        ready = torch.cuda.Event()
        ready.record()
        return self._copies, ready


def _step_back() -> None:
    """Let whatever else wants a processor have it before this thread, where threads have priorities of their own."""
    if platform.system() == "Linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
