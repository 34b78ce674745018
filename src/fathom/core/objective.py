"""The contract of an objective: what a model is trained to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fathom.core.roles import Embedder
from fathom.core.types import Average, Batch, DataSpec, Field, Loss, Phase


class Objective(nn.Module, ABC):
    """Holds the model and whatever else its task needs (heads, a discriminator, a teacher), and prices a batch.

    Everything that must survive a resume is a parameter or a buffer: they are what a checkpoint holds.
    Objectives compose by wrapping: a wrapper is an Objective that holds another.

    Attributes:
        model: what is trained.
        predicts: the targets whose values `predict` returns, which are compared with the truth; None: all that the
            data has. An objective without any is measured by the means of its `metrics`.
        together: a key of the batch, and how many rows that have the same value there shall stand in one batch, where
            there are as many; None: rows stand as chance has it.
        soft_targets: whether `losses` takes category targets also as probabilities [B, C] (and cares for no other).
        recounts: whether inputs are varied within `losses`, so that running statistics of batches are no longer of what
            is predicted from: they are taken once more after training.
    """

    model: nn.Module
    predicts: tuple[Field, ...] | None = None
    together: tuple[str, int] | None = None
    soft_targets: bool = False
    recounts: bool = False

    @property
    def network(self) -> nn.Module:
        """What was learned, for who goes on from it. The default: the model; of one with a teacher, that."""
        return self.model

    @abstractmethod
    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        """Return what `batch` costs in `phase`."""

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the objective is for, by target name: probabilities [B, C] of a category, values [B] of a
        number (in the target's own unit). Called in evaluation mode, without gradients.

        Beside targets, and where there are none, whatever is worth a column for each row: an embedding [B, D], how odd
        a row is [B]; nothing at all is an empty dict.
        """

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return pictures worth seeing, [N, C, H, W] from 0 to 1 in rows of eight, by what they show: samples, or
        images beside their reconstructions. Called at a few validations and after training, in evaluation mode, without
        gradients. The default: none."""
        return {}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return per-sample values [B] whose mean over a validation set is worth watching.

        The first is the one by which the best state is chosen (lower is better). The default is the loss itself,
        which suits objectives whose `losses` is a mean over the samples of the batch.
        """
        loss = self.losses(batch, self.phases()[0].name)
        size = len(next(iter(batch.values())))
        return {"loss": loss.total.detach().float().expand(size)}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is told of a set of rows, from the means of `metrics` over it. The default: the means themselves.

        For figures that are no mean over rows, such as bits by bytes. The means are floats, or arrays of many sets.
        """
        return dict(means)

    def phases(self) -> tuple[Phase, ...]:
        """Return the turns of one training step. The default: one, over every parameter that requires a gradient."""
        return (Phase("main", tuple(p for p in self.parameters() if p.requires_grad)),)

    def averages(self) -> tuple[Average, ...]:
        """Return the networks that trail others. The default: none."""
        return ()

    def members(self) -> tuple[Objective, ...]:
        """Return what the objective is made of. The default: itself alone; of a sum also its parts."""
        return (self,)

    def kept(self) -> Objective:
        """Return what of it is kept once it has been trained. The default: all of it; of a wrapper, what it holds."""
        return self


def with_role(objective: Objective, role: type[Any]) -> Any:
    """Return the objective, or the first part of a sum, that is of a class or has a role (core/roles.py); or None."""
    return next((part for part in objective.members() if isinstance(part, role)), None)


def embedding(objective: Objective, batch: Batch) -> Tensor:
    """Return where each row lies among others, [B, D]: as the objective has it, or else the model's pooled features,
    of an ensemble [B, K, D] their mean.
    """
    own = with_role(objective, Embedder)
    if own is not None:
        found: Tensor = own.embed(batch)
        return found
    pooled: Tensor = objective.network(batch).pooled
    return pooled.mean(1) if pooled.dim() == 3 else pooled


def predicted(objective: Objective, spec: DataSpec) -> tuple[Field, ...]:
    """Return the targets whose values the objective predicts."""
    return spec.targets if objective.predicts is None else objective.predicts
