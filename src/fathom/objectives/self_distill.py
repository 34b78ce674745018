"""Self-distillation without labels: a student sees parts of an image and has to say what its teacher says of others.

    image  ->  two large views and several small ones
    teacher, which trails the student: large views   ->  softmax((scores − centre) / τ_t)
    student: all views                               ->  softmax(scores / τ_s)

The loss is the cross-entropy of each view's answer against the teacher's of each other view. Centring (a running mean
of the teacher's scores is subtracted) keeps one answer from being given to everything, sharpening (τ_t below τ_s) keeps
all answers from being given alike: together they keep the two from agreeing on nothing.

Small views are smaller images where the model takes such, which makes them cheap, and otherwise enlarged. The features
of a trained network are its teacher's.

Source: Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, Emerging Properties in Self-Supervised Vision
Transformers, 2021.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import batch_size
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Patches
from fathom.core.types import Average, Batch, DataSpec, Features, Field, Loss, Stats
from fathom.layers.probe import asking
from fathom.layers.similar import one_vector, unit
from fathom.layers.tally import StepMean
from fathom.layers.views import Views

REFERENCE = (
    "Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, Emerging Properties in Self-Supervised Vision "
    "Transformers, 2021"
)
TARGET = "unused"
SHOWN = 8  # images whose views are shown
NOT_TAKEN = (RuntimeError, ValueError, AssertionError, IndexError)  # what models say to images of another size


@dataclass(frozen=True)
class Config:
    prototypes: int = option(1024, "scores that teacher and student give to a view")
    hidden: int = option(256, "units of the head's two hidden layers")
    bottleneck: int = option(64, "length of the vectors that are compared with prototypes")
    student_temperature: float = option(0.1, "of the student's answers")
    teacher_temperature: float = option(0.04, "of the teacher's answers: lower, so that they are sharper")
    momentum: float = option(0.99, "of the teacher, at first; it rises to 1 by the end (0.996 in runs of many epochs)")
    center_momentum: float = option(0.9, "of the mean of the teacher's scores")
    small_views: int = option(4, "small views of each image, beside two large ones")
    small_size: float = option(0.5, "side of small views, as a share of the image's, where the model takes such sizes")
    crop: float = option(0.4, "smallest area of a large view, and largest of a small one, as a share of the image's")
    least: float = option(0.1, "smallest area of a small view")
    flip: bool = option(True, "views may be mirrored")
    jitter: float = option(0.4, "how much views differ in brightness, contrast and saturation")
    blur: float = option(0.0, "chance that a view is blurred")


presets: dict[str, Config] = {"dino": Config()}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_one("image")


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with. The last state is kept: the loss says little of how good the features are."""
    engine = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.04, "schedule": "cosine", "warmup": 0.1}
    batch = batch_size(spec.rows, most=256, steps=20)
    epochs = max(10, min(100, round(300_000 / max(spec.rows, 1))))
    return {
        "engine": {**engine, "clip": 3.0, "keep": "last", "average": 0.0, "batch_size": batch, "epochs": epochs},
        "augment": {"shift": 0.0, "flip": "no"},
    }


def example() -> DataSpec:
    """Return small grey images."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),), rows=16
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> SelfDistill:
    """Return the objective.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Objective 'self_distill' cannot be used: {why}.")
    floors = {"prototypes": 2, "hidden": 1, "bottleneck": 1, "small_views": 0, "least": 0.01, "small_size": 0.1}
    at_least(config, {**floors, "student_temperature": 1e-3, "teacher_temperature": 1e-3, "jitter": 0}, "objective")
    below_one(config, "momentum", "center_momentum", where="objective")
    if not config.least <= config.crop <= 1 or config.small_size > 1:
        raise ConfigError(
            f"Options 'objective.least' ({config.least}), 'objective.crop' ({config.crop}) and 'objective.small_size' "
            f"({config.small_size}) are shares; expected least ≤ crop ≤ 1 and small_size ≤ 1."
        )
    return SelfDistill(config, spec.inputs[0], model)


class Prototypes(nn.Module):
    """From features to scores: three layers, and cosines with learned prototypes, [B, D] -> [B, K]."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.bottleneck))
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return unit(self.network(features)) @ unit(self.prototypes).T


class SelfDistill(Objective):
    """A student, which is the model, and a teacher of the same kind that trails it.

    Attributes:
        scored: the mean of the teacher's scores in the present step.
        center: its running mean, which moves after each step: all micro-batches of a step see the same.
    """

    predicts = ()

    def __init__(self, config: Config, field: Field, model: nn.Module) -> None:
        super().__init__()
        self.config, self.key, self.model = config, field.key, model
        self.head = Prototypes(int(model.width), config)  # type: ignore[arg-type]
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.scored, self.center = (StepMean(torch.zeros(config.prototypes)) for _ in range(2))
        varied: dict[str, Any] = {"flip": 0.5 * config.flip, "jitter": config.jitter, "blur": config.blur}
        self.large = Views((config.crop, 1.0), **varied)
        self.small = Views((config.least, config.crop), **varied)
        self._small: tuple[int, int] | None = None  # size of small views, once it is known what the model takes

    @property
    def network(self) -> nn.Module:
        return self.teacher

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        answers, scores, penalty = self._answers(batch)
        if self.training and torch.is_grad_enabled():
            self.scored.take(scores.mean((0, 1)), scores.shape[1], self.center)
        wanted = self._wanted(scores)
        total = _cost(answers, wanted, self.config.student_temperature).mean()
        entropy = -(wanted * wanted.clamp_min(1e-12).log()).sum(-1).mean()
        parts = {"teacher_entropy": entropy}  # near zero, or near log K, is what centring and sharpening should prevent
        if penalty is not None:
            parts["penalty"], total = penalty, total + penalty
        return Loss(total, parts, weight=float(wanted.shape[1]))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, what each image's views cost."""
        answers, scores, _ = self._answers(batch)
        return {"loss": _cost(answers, self._wanted(scores), self.config.student_temperature)}

    def averages(self) -> tuple[Average, ...]:
        """The teacher trails the student; by the end of the run it stands still. Its centre trails its scores."""
        first = self.config.momentum
        return (
            Average(self.model, self.teacher, first, 1.0, "averaged"),
            Average(self.head, self.teacher_head, first, 1.0),
            Average(self.scored, self.center, self.config.center_momentum, buffers="averaged"),
        )

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `embedding`, the teacher's features [B, D]."""
        return {"embedding": self.embed(batch)}

    def embed(self, batch: Batch) -> Tensor:
        """Return the teacher's features [B, D]."""
        return one_vector(self.teacher(batch).pooled)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images above the views of them that teacher and student see."""
        images = batch[self.key][:SHOWN]
        rows = [images.float(), self.large(images), self.small(images)]
        return {"images, a large view of each, and a small one": torch.cat(rows) / 255}

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the student's scores of all views [V, B, K], the teacher's of large ones [2, B, K], and what the
        student itself asks to be kept small."""
        images = batch[self.key]
        large = torch.cat([self.large(images), self.large(images)])  # [2·B, C, H, W]
        with torch.no_grad():
            scores = self.teacher_head(one_vector(self.teacher({self.key: large}).pooled))
        found: list[Features] = [self.model({self.key: large})]
        if self.config.small_views:
            size = self._small_size(images)
            small = torch.cat([self.small(images, size) for _ in range(self.config.small_views)])
            found.append(self.model({self.key: small}))
        answers = self.head(torch.cat([one_vector(each.pooled) for each in found]))
        penalties = [each.penalty for each in found if each.penalty is not None]
        penalty = torch.stack(penalties).mean() if penalties else None
        return answers.unflatten(0, (-1, len(images))), scores.unflatten(0, (2, -1)), penalty

    def _wanted(self, scores: Tensor) -> Tensor:
        """Return what the teacher's scores [2, B, K] say as probabilities, centred and sharpened."""
        return ((scores - self.center.value) / self.config.teacher_temperature).softmax(-1)

    def _small_size(self, images: Tensor) -> tuple[int, int]:
        """Return the size of small views: that of the images where the model takes no other."""
        if self._small is None:
            whole = (images.shape[2], images.shape[3])
            patch = self.model.patch if isinstance(self.model, Patches) else 1  # none is cut through
            wanted = [patch * max(1, round(self.config.small_size * side / patch)) for side in whole]
            self._small = (min(wanted[0], whole[0]), min(wanted[1], whole[1]))
            if self._small != whole and not self._takes(images[:1], self._small):
                self._small = whole
        return self._small

    def _takes(self, image: Tensor, size: tuple[int, int]) -> bool:
        """Whether the model makes features of images of that size."""
        with asking(self.teacher):
            try:
                found = self.teacher({self.key: image.new_zeros(1, image.shape[1], *size)}).pooled
            except NOT_TAKEN:
                return False
        return bool(found.shape[-1] == self.teacher.width)


def _cost(answers: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy [B] of each view's answer against the teacher's of each other view.

    Args:
        answers: the student's scores [V, B, K], those of the large views first.
        wanted: the teacher's probabilities [2, B, K].
    """
    logarithms = (answers / temperature).log_softmax(-1)
    costs = -torch.einsum("tbk,vbk->tvb", wanted, logarithms)  # [2, V, B]
    same = torch.eye(len(wanted), len(answers), dtype=torch.bool, device=costs.device)[:, :, None]
    return costs.masked_fill(same, 0.0).sum((0, 1)) / (same.numel() - len(wanted))
