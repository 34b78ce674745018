"""How fast a step is on this machine: as PyTorch would run it, as the tuner does, and how near that is to the limit.

The limit is that of matrix products in float32 (or bf16, where that is chosen), measured here and now. What a step
needs is counted: the operations of its products and convolutions, forward and backward.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from fathom.core.objective import Objective
from fathom.core.types import TrainingData
from fathom.engine import tune
from fathom.engine.knobs import Knobs
from fathom.engine.plan import Plan
from fathom.engine.records import Chose
from fathom.engine.run import Run
from fathom.engine.trial import Trial

SIDE = {"cpu": 1024, "cuda": 8192, "mps": 4096}  # of the matrices by which the limit is measured
SECONDS = 1.5  # that each of the three measurements takes


@dataclass(frozen=True)
class Measured:
    """What `measure` found.

    Attributes:
        plain_ms, tuned_ms: milliseconds a step with PyTorch's defaults, and with the knobs.
        gigaflops: billions of operations a second that the tuned step's products come to; 0 where none are counted.
        limit: billions a second of a product of large matrices.
    """

    batch_size: int
    plain_ms: float
    tuned_ms: float
    knobs: Knobs
    chosen: tuple[Chose, ...]
    gigaflops: float
    limit: float

    @property
    def samples_per_second(self) -> float:
        return 1e3 * self.batch_size / self.tuned_ms


def measure(objective: Objective, data: TrainingData, plan: Plan) -> Measured:
    """Tune, then time both settings in turns.

    Args:
        plan: its length decides how much may be measured, and whether compiling would pay back.
    """
    run = Run(objective, data, plan)
    plain = replace(run.knobs)
    run.random.swap()
    try:
        chosen = tune.tune(run)
        trial = Trial(run)
        slow, fast = trial.compare([plain, run.knobs], SECONDS)
        operations = _operations(run)
        limit = _limit(run.device, run.knobs)
        return Measured(
            batch_size=run.plan.batch_size,
            plain_ms=1e3 * slow,
            tuned_ms=1e3 * fast,
            knobs=run.knobs,
            chosen=tuple(chosen),
            gigaflops=operations / fast / 1e9,
            limit=limit,
        )
    finally:
        run.leave()
        run.random.swap()


def _operations(run: Run) -> int:
    """Count a step's operations on one batch, forward and backward."""
    index = Trial(run).batches[0]
    batch = run.move(run.data.train.gather(index))
    with FlopCounterMode(display=False) as counter:
        for turn in run.stepper.turns:
            run.objective.losses(batch, turn.phase.name).total.backward(inputs=turn.parameters)
    run.stepper.clear()
    return int(counter.get_total_flops())


def _limit(device: torch.device, knobs: Knobs) -> float:
    """Return billions of operations a second of the best of many products of square matrices."""
    side = SIDE.get(device.type, 4096)
    dtype = torch.float32 if knobs.precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9
