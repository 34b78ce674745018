"""The weighted sum of objectives that train one model: L = Σ wᵢ · Lᵢ.

Parts that move in one turn, as most do, move together by the gradient of their sum. A part with several turns (an
adversarial one) keeps them; they come after the common one. Where parts look at the very same batch, the model is run
once for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.objective import Objective, predicted
from fathom.core.types import Average, Batch, DataSpec, Loss, Phase
from fathom.layers.once import once

TOGETHER = "main"  # the turn of all parts that have only one


class Sum(Objective):
    """Prices a batch by each of its parts.

    Args:
        parts: (name, weight, objective); the names differ.
    """

    def __init__(self, model: nn.Module, spec: DataSpec, parts: Sequence[tuple[str, float, Objective]]) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.parts = nn.ModuleDict({name: part for name, _, part in parts})
        self.weights = {name: weight for name, weight, _ in parts}
        self.soft_targets = all(part.soft_targets for _, _, part in parts)
        self.recounts = any(part.recounts for _, _, part in parts)
        self.together = next((part.together for _, _, part in parts if part.together), None)
        seen = [field for _, _, part in parts for field in predicted(part, spec)]
        self.predicts = tuple(dict.fromkeys(seen))
        turns = {name: part.phases() for name, _, part in parts}
        self._common = {name: found[0] for name, found in turns.items() if len(found) == 1 and _plain(found[0])}
        self._apart = {
            f"{name}.{phase.name}": (name, phase)
            for name, found in turns.items()
            if name not in self._common
            for phase in found
        }

    @property
    def network(self) -> nn.Module:
        """The model, or the first teacher that trails it."""
        found = (self._part(name).network for name in self.parts)
        return next((network for network in found if network is not self.model), self.model)

    def losses(self, batch: Batch, phase: str = TOGETHER) -> Loss:
        """Return the weighted sum, each part's own loss and its parts; of a turn apart, what its part says, weighted.

        Where the parts count in different units (rows, tokens), each is the mean over its own.
        """
        if phase in self._apart:
            name, own = self._apart[phase]
            loss = self._part(name).losses(batch, own.name)
            return Loss(loss.total * self.weights[name], loss.parts, loss.weight)
        with once(self.model):
            found = {name: self._part(name).losses(batch, own.name) for name, own in self._common.items()}
        terms = tuple(Loss(loss.total * self.weights[name], weight=loss.weight) for name, loss in found.items())
        parts: dict[str, Tensor] = {}
        for name, loss in found.items():
            parts[name] = loss.total
            parts |= {f"{name}.{key}": value for key, value in loss.parts.items()}
        total = torch.stack([term.total for term in terms]).sum()
        return Loss(total, parts, terms[0].weight, () if _alike(terms) else terms)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the parts predict; where two name it alike, what the first says."""
        found: dict[str, Tensor] = {}
        with once(self.model):
            for name in self.parts:
                found = {**self._part(name).predict(batch), **found}
        return found

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the weighted sum of what the parts would each be chosen by, and every part's own metrics."""
        chosen_by: list[Tensor] = []
        found: dict[str, Tensor] = {}
        with once(self.model):
            for name in self.parts:
                own = self._part(name).metrics(batch)
                chosen_by.append(next(iter(own.values())) * self.weights[name])
                found |= {f"{name}.{key}": value for key, value in own.items()}
        return {"loss": torch.stack(chosen_by).sum(0), **found}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return what each part makes of its own metrics."""
        found = {"loss": means["loss"]} if "loss" in means else {}
        for name in self.parts:
            start = f"{name}."
            own = {key.removeprefix(start): value for key, value in means.items() if key.startswith(start)}
            found |= {start + key: value for key, value in self._part(name).summary(own).items()}
        return found

    def show(self, batch: Batch) -> dict[str, Tensor]:
        return {title: images for name in self.parts for title, images in self._part(name).show(batch).items()}

    def phases(self) -> tuple[Phase, ...]:
        moved = dict.fromkeys(p for phase in self._common.values() for p in phase.parameters)
        climb = max((phase.climb for phase in self._common.values()), default=0.0)
        together = (Phase(TOGETHER, tuple(moved), climb=climb),) if moved else ()
        apart = (
            Phase(name, own.parameters, own.every, own.learning_rate, own.climb)
            for name, (_, own) in self._apart.items()
        )
        return (*together, *apart)

    def averages(self) -> tuple[Average, ...]:
        return tuple(average for name in self.parts for average in self._part(name).averages())

    def members(self) -> tuple[Objective, ...]:
        return (self, *(member for name in self.parts for member in self._part(name).members()))

    def kept(self) -> Objective:
        parts = [(name, weight, self._part(name).kept()) for name, weight in self.weights.items()]
        return Sum(self.model, self.spec, parts)

    def _part(self, name: str) -> Objective:
        part = self.parts[name]
        assert isinstance(part, Objective)
        return part


def _plain(phase: Phase) -> bool:
    """Whether a turn can be taken together with others."""
    return phase.every == 1 and phase.learning_rate == 1


def _alike(terms: Sequence[Loss]) -> bool:
    """Whether the parts surely count in the same units. On a GPU a count may be a tensor, which is not waited for."""
    first = terms[0].weight
    return all(term.weight is first or _same(term.weight, first) for term in terms)


def _same(weight: Tensor | float, other: Tensor | float) -> bool:
    return isinstance(weight, float) and isinstance(other, float) and weight == other
