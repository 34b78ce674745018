"""A wrapper: an objective that changes how another is learned, and never what it is.

Wrapper         holds another objective
scaled, plus    a loss times a number; a loss with further costs
also_moving     turns, of which the first moves further weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.objective import Objective
from fathom.core.types import Average, Batch, Field, Loss, Phase


class Wrapper(Objective):
    """Holds another objective and prices its batches in another way; in all else it is the one it holds.

    What is kept of it in a model's folder is what it holds. So everything that it needs for learning alone may be a
    parameter or a buffer, which checkpoints hold, or none, if it can be had again (a teacher).
    """

    def __init__(self, inner: Objective) -> None:
        super().__init__()
        self.inner = inner

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        return self.inner.model

    @property
    def network(self) -> nn.Module:
        return self.inner.network

    @property
    def predicts(self) -> tuple[Field, ...] | None:  # type: ignore[override]
        return self.inner.predicts

    @property
    def soft_targets(self) -> bool:  # type: ignore[override]
        return self.inner.soft_targets

    @property
    def recounts(self) -> bool:  # type: ignore[override]
        return self.inner.recounts

    @property
    def together(self) -> tuple[str, int] | None:  # type: ignore[override]
        return self.inner.together

    def members(self) -> tuple[Objective, ...]:
        return self.inner.members()

    def kept(self) -> Objective:
        return self.inner.kept()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.predict(batch)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.metrics(batch)

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        return self.inner.summary(means)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.show(batch)

    def phases(self) -> tuple[Phase, ...]:
        return self.inner.phases()

    def averages(self) -> tuple[Average, ...]:
        return self.inner.averages()


def scaled(loss: Loss, factor: float) -> Loss:
    """Return a loss times a number; its parts are told as they were."""
    terms = tuple(Loss(term.total * factor, weight=term.weight) for term in loss.terms)
    return Loss(loss.total * factor, loss.parts, loss.weight, terms)


def plus(loss: Loss, costs: Mapping[str, tuple[float, Tensor]], batch: Batch) -> Loss:
    """Return a loss with further costs, each a mean over the rows of the batch, or no mean at all.

    Args:
        costs: by name, (weight, cost); the cost is told without its weight.
    """
    rows = float(len(next(iter(batch.values()))))
    more = torch.stack([weight * cost for weight, cost in costs.values()]).sum()
    parts = {"own": loss.total, **loss.parts, **{name: cost for name, (_, cost) in costs.items()}}
    terms = loss.terms
    if terms or not (isinstance(loss.weight, float) and loss.weight == rows):
        terms = (*(terms or (Loss(loss.total, weight=loss.weight),)), Loss(more, weight=rows))
    return Loss(loss.total + more, parts, loss.weight, terms)


def also_moving(phases: tuple[Phase, ...], more: nn.Module | None) -> tuple[Phase, ...]:
    """Return the turns of a training step, of which the first also moves a wrapper's own weights, if it has any."""
    first, *others = phases
    own = () if more is None else tuple(more.parameters())
    return (replace(first, parameters=(*first.parameters, *own)), *others)
