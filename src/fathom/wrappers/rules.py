"""Logical constraints: predictions that break a rule cost more, and how much can be differentiated.

    objective.rules.rules = ["kind=coat -> season=winter", "not (wet and sunny)"]

A rule speaks of classes of the targets, by name (`coat`, where only one target has such a class) or as `target=class`;
names with spaces or signs stand in quotes. It joins them by `not`, `and`, `or`, `->`, `<->` and parentheses, which bind
in this order. How true it is of predicted probabilities is told by a logic:

    exact         the probability that the rules hold, over all answers at once (semantic loss)
    product       a and b = ab,               a or b = a + b − ab
    lukasiewicz   a and b = max(0, a + b − 1), a or b = min(1, a + b)
    godel         a and b = min(a, b),         a or b = max(a, b)

with not a = 1 − a and (a -> b) = (not a or b) throughout. The cost is −log of the truth in exact and product logic, and
1 − truth in the others, whose truth may be nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective, predicted
from fathom.core.past import Past
from fathom.core.types import Batch, DataSpec, Field, Loss
from fathom.core.wrapper import Wrapper, plus
from fathom.layers.once import once
from fathom.wrappers._logic import Atom, Formula, atoms, parse

REFERENCE = (
    "Xu, Zhang, Friedman, Liang, Van den Broeck, A Semantic Loss Function for Deep Learning with Symbolic Knowledge, "
    "2018; van Krieken, Acar, van Harmelen, Analyzing Differentiable Fuzzy Logic Operators, 2022"
)
WORLDS = 100_000  # answers at once that exact logic counts through
LEAST = 1e-12  # truth whose logarithm is taken
Truth = Callable[[Atom], Tensor]


@dataclass(frozen=True)
class Config:
    rules: tuple[str, ...] = option((), 'what should hold, such as "coat -> winter"')
    logic: Literal["exact", "product", "lukasiewicz", "godel"] = option("exact", "how the truth of a rule is told")
    weight: float = option(1.0, "of the rules' cost beside the loss")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why there is nothing that rules could speak of, or None."""
    if any(target.kind == "category" for target in spec.targets):
        return None
    return "rules speak of classes; no target has any"


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> Rules:
    """Return the wrapper.

    Raises:
        ConfigError: there is no rule, or one cannot be read; the message tells where.
    """
    at_least(config, {"weight": 0}, "objective.rules")
    if not config.rules:
        raise ConfigError(
            """Wrapper 'rules' needs rules: --set 'objective.rules.rules=["coat -> winter"]' names targets' classes."""
        )
    targets = tuple(target for target in predicted(inner, spec) if target.kind == "category")
    return Rules(config, inner, targets, tuple(parse(rule, targets) for rule in config.rules))


class Rules(Wrapper):
    """The wrapped objective's loss, and what its predictions cost for breaking rules."""

    def __init__(
        self, config: Config, inner: Objective, targets: tuple[Field, ...], rules: tuple[Formula, ...]
    ) -> None:
        super().__init__(inner)
        self.config, self.rules = config, rules
        spoken = {atom.target for rule in rules for atom in atoms(rule)}
        self.targets = tuple(target for target in targets if target.name in spoken)
        if config.logic == "exact":
            self.register_buffer("allowed", _allowed(self.targets, rules), persistent=False)  # [worlds]

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        if phase != self.phases()[0].name:
            return self.inner.losses(batch, phase)
        with once(self.model):
            loss = self.inner.losses(batch, phase)
            cost = self.costs(self.inner.predict(batch)).mean()
        return plus(loss, {"rules": (self.config.weight, cost)}, batch)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return the wrapped objective's metrics, and `broken`: whether a predicted answer breaks a rule."""
        with once(self.model):
            return {**self.inner.metrics(batch), "broken": self.broken(self.inner.predict(batch))}

    def costs(self, found: dict[str, Tensor]) -> Tensor:
        """Return what each row's probabilities cost, [B]; of several rules that are not counted together the mean."""
        if self.config.logic == "exact":
            return -self._probability(found).clamp_min(LEAST).log()
        true = torch.stack([truth(rule, self.config.logic, _probabilities(found)) for rule in self.rules])
        cost = -true.clamp_min(LEAST).log() if self.config.logic == "product" else 1 - true  # [R, B]
        return cost.mean(0)

    def broken(self, found: dict[str, Tensor]) -> Tensor:
        """Return 1 for each row whose likeliest classes break a rule, else 0: [B]."""
        crisp = {name: (p == p.amax(1, keepdim=True)).float() for name, p in found.items() if p.ndim == 2}
        kept = torch.stack([truth(rule, "godel", _probabilities(crisp)) for rule in self.rules]).amin(0)
        return 1 - kept

    def _probability(self, found: dict[str, Tensor]) -> Tensor:
        """Return the probability [B] of the worlds in which the rules hold, targets being independent given the row."""
        worlds = torch.ones_like(found[self.targets[0].name][:, :1])  # [B, 1]
        for target in self.targets:
            worlds = (worlds[:, :, None] * found[target.name][:, None]).flatten(1)  # [B, worlds so far]
        return worlds @ self.allowed.to(worlds)  # type: ignore[operator]


def truth(formula: Formula, logic: str, of: Truth) -> Tensor:
    """Return how true a formula is, where `of` tells how true atoms are."""
    if isinstance(formula, Atom):
        return of(formula)
    parts = [truth(part, logic, of) for part in formula.parts]
    if formula.sign == "not":
        return 1 - parts[0]
    if formula.sign in ("and", "or"):
        return _joined(formula.sign, logic, *parts)
    first = _joined("or", logic, 1 - parts[0], parts[1])
    return first if formula.sign == "->" else _joined("and", logic, first, _joined("or", logic, 1 - parts[1], parts[0]))


def _joined(sign: str, logic: str, a: Tensor, b: Tensor) -> Tensor:
    if logic == "product":
        return a * b if sign == "and" else a + b - a * b
    if logic == "lukasiewicz":
        return (a + b - 1).clamp_min(0) if sign == "and" else (a + b).clamp_max(1)
    return torch.minimum(a, b) if sign == "and" else torch.maximum(a, b)


def _probabilities(found: dict[str, Tensor]) -> Truth:
    return lambda atom: found[atom.target][:, atom.code]


def _allowed(targets: tuple[Field, ...], rules: tuple[Formula, ...]) -> Tensor:
    """Return one for each world, a class of each target, in which all rules hold, else zero.

    Raises:
        ConfigError: there are too many worlds, or the rules hold in none, or in all.
    """
    count = 1
    for target in targets:
        count *= len(target.classes)
    if count > WORLDS:
        raise ConfigError(
            f"The rules speak of targets with {count:,} answers together, too many for exact logic (at most "
            f"{WORLDS:,}); set objective.rules.logic to product."
        )
    worlds = torch.tensor(list(product(*(range(len(target.classes)) for target in targets))))  # [worlds, T]
    place = {target.name: index for index, target in enumerate(targets)}

    def holds(atom: Atom) -> Tensor:
        return (worlds[:, place[atom.target]] == atom.code).float()

    allowed = torch.stack([truth(rule, "godel", holds) for rule in rules]).amin(0)
    if not allowed.any():
        raise ConfigError("The rules contradict one another: no answer keeps them all.")
    if allowed.all():
        raise ConfigError(
            "The rules hold whatever is answered, as a row has one class of each target: speak of two targets, or set "
            "objective.rules.logic to product, which counts the classes of one target as if apart."
        )
    return allowed
