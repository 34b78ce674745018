"""An objective's losses, compiled: forward and backward as fused kernels, by PyTorch's compiler.

What is compiled is kept on disk by PyTorch, so that the second run on a machine compiles in a fraction of the time.
Random numbers are drawn by the plain kernels, so that dropout and noise are those of a plain step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from fathom.core.errors import TrainingError
from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss


class CompiledLosses:
    """Stands for `objective.losses`; compiles at the first call in each phase with each shape of batch."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._prices: dict[str, Callable[[Batch], tuple[Any, ...]]] = {}
        self._worked: set[str] = set()

    def __call__(self, batch: Batch, phase: str = "main") -> Loss:
        """Return what `batch` costs.

        Raises:
            TrainingError: these losses cannot be compiled.
        """
        if phase in self._worked:
            return self._loss(batch, phase)
        try:
            found = self._loss(batch, phase)
        except Exception as error:  # the compiler's errors have no common root
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TrainingError(f"The step cannot be compiled ({why}); give engine.form=recorded or plain.") from None
        self._worked.add(phase)
        return found

    def _loss(self, batch: Batch, phase: str) -> Loss:
        if phase not in self._prices:
            self._prices[phase] = _compiled(self._objective, phase)
        total, parts, weight, terms = self._prices[phase](batch)
        return Loss(total, parts, weight, tuple(Loss(each, weight=units) for each, units in terms))


def _compiled(objective: Objective, phase: str) -> Callable[[Batch], tuple[Any, ...]]:
    def price(batch: Batch) -> tuple[Any, ...]:
        loss = objective.losses(batch, phase)
        return loss.total, dict(loss.parts), loss.weight, [(term.total, term.weight) for term in loss.terms]

    # The compiler counts, and limits, how often code is compiled anew: each objective and phase is to have its own.
    own = FunctionType(price.__code__.replace(), price.__globals__, closure=price.__closure__)
    options: dict[str, Any] = {"fallback_random": True}
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


def possible(device: torch.device) -> bool:
    """Whether PyTorch's compiler finds what it needs on this machine."""
    return device.type == "cuda" or (device.type == "cpu" and any(map(shutil.which, ("g++", "clang++", "c++"))))
