"""A wrapper: an objective that changes how another is learned, and never what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fathom.core.objective import Objective
from fathom.core.types import Average, Batch, Field, Phase


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
    def predicts(self) -> tuple[Field, ...] | None:  # type: ignore[override]
        return self.inner.predicts

    @property
    def soft_targets(self) -> bool:  # type: ignore[override]
        return self.inner.soft_targets

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
