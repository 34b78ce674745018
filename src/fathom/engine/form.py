"""The forms that a step's forward and backward pass may have.

plain      as the objective is written, operation by operation
recorded   the same operations played back without Python: equal to the bit, for small models (capture.py)
compiled   fused by PyTorch's compiler: other roundings, minutes of compiling for large models (compiled.py)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss
from fathom.engine.capture import Recordings
from fathom.engine.compiled import CompiledLosses


class Form:
    """How an objective's losses and their gradients are computed.

    Args:
        objective: what is trained.
        price: its losses in the run's precision; they are those of `losses`.
    """

    def __init__(self, objective: Objective, price: Callable[[Batch, str], Loss]) -> None:
        self.objective, self.price = objective, price
        self.losses: Callable[[Batch, str], Loss] = objective.losses
        self.name = "plain"
        self._compiled: CompiledLosses | None = None
        self._recordings: dict[str, Recordings] = {}
        self._stamp: Any = None

    def turn_to(self, name: str, precision: str) -> None:
        """Take a form. Recordings are kept as long as precision and the places of the weights stay the same."""
        stamp = (precision, [p.data_ptr() for p in self.objective.parameters()]) if name == "recorded" else self._stamp
        if stamp != self._stamp:
            self._recordings.clear()
            self._stamp = stamp
        self.name = name
        if name == "compiled":
            self._compiled = self._compiled or CompiledLosses(self.objective)
            self.losses = self._compiled
        else:
            self.losses = self.objective.losses

    def take(self, phase: str, parameters: Sequence[nn.Parameter], batch: Batch) -> Loss | None:
        """Leave the gradient of a whole batch in the parameters and return its loss, where it is recorded."""
        if self.name != "recorded":
            return None
        found = self._recordings.get(phase)
        if found is None:
            found = self._recordings[phase] = Recordings(self.objective, self.price, phase, parameters)
        return found.take(batch)
