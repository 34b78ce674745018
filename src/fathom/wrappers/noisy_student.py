"""Noisy student: learn from what trained models say of rows without a target, by views that make it harder to say.

    target = the truth, where there is one, else the mean of what the teachers say of the row as it is
    loss   = that of the wrapped objective, of strongly changed images and these targets

A student that sees less than its teacher does, and still has to say the same, learns what the classes have in common
rather than what the teacher went by. It begins afresh, so that it does not hold on to its teacher's mistakes: what is
right is learned sooner than what is wrong. It may then teach the next one. Teachers of several beginnings make
different mistakes, which their mean has fewer of.

With `neighbours` a teacher is not asked what a row is, but which rows lie near it by what it sees in them: what is
known of the few with a target then spreads from neighbour to neighbour. A teacher has learned to tell things apart
better than what their classes are.

What they say too often the student would say more often still. So classes are first brought to the shares that they
have among the truths.

Of Fashion-MNIST's test images, with 250 labels and 60,000 images, a teacher that had no more tells 83.9 %, and a
student of the same size 84.9 % after nine passes; where both begin from SimCLR's weights it is 84.0 %, and with
neighbours and mixup 85.4 % (means of three draws of labels).

The teachers are no part of the student: they are neither trained nor stored again.

Sources: Xie, Luong, Hovy, Le, Self-Training with Noisy Student Improves ImageNet Classification, 2020;
Cascante-Bonilla, Tan, Qi, Ordonez, Curriculum Labeling: Revisiting Pseudo-Labeling for Semi-Supervised Learning, 2021
(a fresh beginning); Tai, Bailis, Valiant, Sinkhorn Label Allocation: Semi-Supervised Classification via Annealed
Self-Training, 2021 (shares of classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective, predicted
from fathom.core.past import Past, Trained
from fathom.core.types import Average, Batch, DataSpec, Field, Loss, Store
from fathom.core.wrapper import Wrapper
from fathom.layers import few
from fathom.layers.balance import Balance
from fathom.wrappers._spread import Spread
from fathom.wrappers._teacher import beside, class_order, in_order

REFERENCE = (
    "Xie, Luong, Hovy, Le, Self-Training with Noisy Student Improves ImageNet Classification, 2020; "
    "Cascante-Bonilla, Tan, Qi, Ordonez, Curriculum Labeling: Revisiting Pseudo-Labeling for Semi-Supervised "
    "Learning, 2021"
)


@dataclass(frozen=True)
class Config:
    teachers: tuple[str, ...] = option((), "folders of trained models, the mean of which is learned from")
    unlabelled: float = option(7.0, "rows without a target for each row with one, in a batch")
    balance: int = option(3, "rounds of bringing what teachers say to the classes' shares among the truths")
    neighbours: int = option(
        0, "rows near each, among which known classes spread; 0: as the teachers say. Time grows with the rows' square"
    )
    plain: float = option(0.25, "share of the rows without a target whose images are shown as they are")
    crop: float = option(0.5, "smallest area of a strongly changed view, as a share of the image's")
    jitter: float = option(0.4, "how much such views differ in brightness, contrast and saturation")
    turn: float = option(15.0, "degrees that such views are turned by at the most")
    shear: float = option(0.2, "how far rows of such views are moved against each other, as a share of their distance")
    erase: float = option(0.4, "side of a square painted grey in such views, as a share of the image's")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why nothing can be learned from a teacher of such data, or None."""
    for target in spec.targets:
        if target.kind not in ("number", "category"):
            return f"target '{target.name}' is {target.kind}; it takes over numbers and categories"
    return None if spec.targets else "it needs at least one target column, which the teachers predict"


def needs(inner: Objective) -> str | None:
    """Return why it cannot stand around this objective, or None."""
    return None if inner.soft_targets else "it does not learn from probabilities; 'supervised' does"


repeats = few.repeats  # how often a row with a target stands in an epoch


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: what teachers say is not always so, and an average of weights follows it less."""
    return {"engine": {"average": 0.995}}


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> NoisyStudent:
    """Return the wrapper.

    Raises:
        ConfigError: no teacher is named, one takes or predicts other things than the student, or an option is out of
            range.
    """
    few.refuse(config, "objective.noisy_student")
    at_least(config, {"balance": 0, "neighbours": 0}, "objective.noisy_student")
    if not 0 <= config.plain <= 1:
        raise ConfigError(f"Option 'objective.noisy_student.plain' was given {config.plain}; expected a share up to 1.")
    if past is None or not config.teachers:
        raise ConfigError(
            "Wrapper 'noisy_student' needs teachers: set objective.noisy_student.teachers to the folders of trained "
            "models, as in '[\"runs/few\"]'."
        )
    teachers = [past.model(folder, "objective.noisy_student.teachers", True) for folder in config.teachers]
    store = past.present("objective.noisy_student.neighbours") if config.neighbours else None
    return NoisyStudent(config, spec, inner, teachers, store)


class NoisyStudent(Wrapper):
    """The wrapped objective's loss of varied images, with targets that the teachers fill in where there is none."""

    recounts = True  # type: ignore[assignment]

    def __init__(
        self, config: Config, spec: DataSpec, inner: Objective, teachers: list[Trained], store: Store | None = None
    ) -> None:
        super().__init__(inner)
        self.config, self.images, self.targets = config, spec.images, predicted(inner, spec)
        self.orders = [[class_order(target, teacher) for target in self.targets] for teacher in teachers]
        self._teachers = tuple(each.objective.eval().requires_grad_(False) for each in teachers)  # no part of this
        known = [target for target in self.targets if target.kind == "category"]
        self._spreads = tuple(
            Spread(each, store, known, config.neighbours) if store is not None and known else None
            for each in self._teachers
        )
        self.views = few.strong(config)
        self.balances = nn.ModuleList(
            Balance(target, config.balance if target.kind == "category" else 0) for target in self.targets
        )

    def averages(self) -> tuple[Average, ...]:
        own = (average for balance in self.balances for average in balance.averages())  # type: ignore[operator]
        return (*self.inner.averages(), *own)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        if phase != self.phases()[0].name:
            return self.inner.losses(batch, phase)
        found = dict(batch)
        told = [balance(said) for balance, said in zip(self.balances, self._told(batch), strict=True)]
        plain = torch.rand(len(told[0]), device=told[0].device) < self.config.plain
        for target, said in zip(self.targets, told, strict=True):
            truth = batch[target.target_key]
            known = truth >= 0 if target.kind == "category" else truth.isfinite()
            found[target.target_key] = _filled(target, truth, said, known)
            plain = plain | known
        for field in self.images:
            images = batch[field.key].float()
            found[field.key] = torch.where(plain[:, None, None, None], images, self.views(images))
        return self.inner.losses(found, phase)

    @torch.no_grad()
    def _told(self, batch: Batch) -> list[Tensor]:
        """Return what the teachers say of each target on the mean: [B, C], of a number [B]."""
        each = [self._says(number, batch) for number in range(len(self._teachers))]
        return [torch.stack([said[target.name] for said in each]).mean(0) for target in self.targets]

    def _says(self, number: int, batch: Batch) -> dict[str, Tensor]:
        """Return what one teacher says of each target, or what is known of rows that it finds near."""
        teacher, spread = beside(self._teachers[number], batch), self._spreads[number]
        near = spread(teacher, batch) if spread is not None else {}
        if len(near) == len(self.targets):
            return near
        said = in_order(teacher.predict(batch), self.targets, self.orders[number])
        return {target.name: one for target, one in zip(self.targets, said, strict=True)} | near


def _filled(target: Field, truth: Tensor, said: Tensor, known: Tensor) -> Tensor:
    """Return the truth where it is known, of a category as probabilities [B, C], and what is said elsewhere."""
    if target.kind != "category":
        return torch.where(known, truth, said.to(truth.dtype))
    sure = torch.zeros_like(said).scatter(1, truth.clamp_min(0)[:, None], 1.0)
    return torch.where(known[:, None], sure, said)
