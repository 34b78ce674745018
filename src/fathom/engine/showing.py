"""Pictures of what an objective makes, taken while it is trained: of the same rows, at a few of the validations.

Training goes on as if none had been taken: they draw no random number that a step would, and change no weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fathom.core.modes import modes_kept
from fathom.engine import memory, weights

if TYPE_CHECKING:
    from fathom.engine.run import Run

Keep = Callable[[int, Mapping[str, Tensor]], None]  # is given the pass, from 1, and pictures [N, C, H, W] by title
TIMES = 4  # of a run: at its first validation, after a third, after two thirds, at the last
ROWS = 8


class Showing:
    """What was shown of a run, and to whom.

    Attributes:
        keep: who is given the pictures; None: no one, and none are taken.
        taken: the passes after which they were.
        seconds: that the last ones took.
    """

    def __init__(self) -> None:
        self.keep: Keep | None = None
        self.taken: list[int] = []
        self.seconds = 0.0

    def look(self, run: Run, step: int) -> None:
        """Have pictures taken of a run after a validation, if it is time; `step`: whose randomness they have."""
        early = len(self.taken) < TIMES - 1 and (TIMES - 1) * run.step >= len(self.taken) * run.pace.total
        if self.keep is None or not (run.reason or early):
            return
        began = time.perf_counter()
        found = _pictures(run, step)
        if found:
            self.keep(run.epoch + 1, found)
        self.taken.append(run.epoch + 1)
        self.seconds = time.perf_counter() - began
        run.aside_seconds += self.seconds


def _pictures(run: Run, step: int) -> dict[str, Tensor]:
    """Return what the objective makes of a few rows, by title: none where memory runs out, which training survives."""
    store = run.data.train if run.data.valid is None else run.data.valid
    found: dict[str, Tensor] = {}

    def show() -> None:
        rows = run.move(store.gather(torch.arange(min(ROWS, len(store)))))
        found.update({title: images.float().cpu() for title, images in run.objective.show(rows).items()})

    others = run.random.state()  # Python's and NumPy's; PyTorch's generators are seeded anew before each step
    run.random.at_step(step)
    try:
        with weights.averaged(run.objective, run.stepper.average), modes_kept(run.objective), torch.no_grad():
            run.objective.eval()
            if not memory.fits(show):
                memory.free(run.device)
                return {}
    finally:
        run.random.restore(others)
    return found
