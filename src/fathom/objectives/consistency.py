"""Learning from few labels and many images without: what is said of an image has to hold however it is looked at.

    fixmatch        what the model is sure of when an image is little changed, it has to say when it is changed a lot
    steady_match    the same, where its moving average says what, and says each class as often as the labels do; with
                    all that it thinks of every image, sharpened, instead of one class where it is sure
    mean_teacher    the model has to say of one view what its moving average says of another

    loss = cross-entropy of the rows with a label  +  weight · disagreement over all rows

Rows whose target is missing are those without a label. In an epoch each row with one stands so often that a batch holds
one for every seven without (FixMatch's share). What the run's `augment` makes of an image is the little change.

A class that is taken for certain stays, right or wrong. What is sharpened, p^(1/T) brought to a sum of one, may still
turn round, so that a network is sooner right: of Fashion-MNIST's test images, with 250 labels and 60,000 images, 83.4 %
after three passes (T = 1/2), where one that was told classes from 80 % on had 82.6 %. After eight both have the same.

How much the views differ decides where it ends: with crops from 0.7 of the area on and a jitter of 0.2 it stays at
84.3 % from six passes to thirty; with 0.5 and 0.4 it comes to 85.3 % in 25. But who says the classes has to see images
little changed: told from crops and turns too (of 0.5, 10 degrees), a network was no better than with the labels alone.

A model that learns fast changes its mind from step to step, and sends itself along; its average is steadier and right
more often. What is said is divided by how often each class was said of late and multiplied by its share of the labels.

Sources: Sohn et al., FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence, 2020; Tarvainen,
Valpola, Mean Teachers Are Better Role Models, 2017; Berthelot et al., ReMixMatch: Semi-Supervised Learning with
Distribution Alignment and Augmentation Anchoring, 2020; Liu et al., Unbiased Teacher for Semi-Supervised Object
Detection, 2021 (pseudo-labels of a moving average).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import Average, Batch, DataSpec, Features, Field, Loss, Stats
from fathom.layers import few
from fathom.layers.balance import Balance
from fathom.layers.heads import Head
from fathom.layers.precision import wide
from fathom.layers.similar import one_vector
from fathom.layers.views import Views

REFERENCE = (
    "Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel, FixMatch: Simplifying Semi-Supervised "
    "Learning with Consistency and Confidence, 2020; "
    "Tarvainen, Valpola, Mean Teachers Are Better Role Models: Weight-Averaged Consistency Targets Improve "
    "Semi-Supervised Deep Learning Results, 2017; "
    "Berthelot, Carlini, Cubuk, Kurakin, Sohn, Zhang, Raffel, ReMixMatch: Semi-Supervised Learning with Distribution "
    "Alignment and Augmentation Anchoring, 2020"
)
WEIGHTS = {"fixmatch": 1.0, "steady_match": 1.0, "mean_teacher": 10.0}
SHOWN = 8  # images whose views are shown


@dataclass(frozen=True)
class Config:
    method: Literal["fixmatch", "steady_match", "mean_teacher"] = option("fixmatch", "what has to agree with what")
    threshold: float = option(0.95, "but for mean_teacher: probability from which a class is sure")
    temperature: float = option(0.0, "steady_match: of what is said of every image; 0: one class each, where sure")
    weight: float = option(0.0, "of the disagreement; 0: mean_teacher 10, others 1")
    unlabelled: float = option(7.0, "rows without a label for each row with one, in a batch")
    momentum: float = option(0.99, "but for fixmatch: of the teacher, at first; it rises, from 0.99 to 0.999")
    crop: float = option(0.5, "smallest area of a strongly changed view, as a share of the image's")
    jitter: float = option(0.5, "how much such views differ in brightness, contrast and saturation")
    turn: float = option(15.0, "degrees that such views are turned by at the most")
    shear: float = option(0.2, "how far rows of such views are moved against each other, as a share of their distance")
    erase: float = option(0.4, "side of a square painted grey in such views, as a share of the image's")


presets: dict[str, Config] = {
    "fixmatch": Config(),
    "steady_match": Config(method="steady_match", threshold=0.8, temperature=0.5),
    "mean_teacher": Config(method="mean_teacher"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    if len(spec.targets) != 1 or spec.targets[0].kind != "category":
        given = ", ".join(f"'{f.name}' ({f.kind})" for f in spec.targets[:4]) or "none"
        return f"it needs one target column of classes, empty where a row has no label; the targets are {given}"
    return spec.unless_one("image")


repeats = few.repeats  # how often a row with a target stands in an epoch


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: large batches, as few of them have a label. A teacher is an average itself."""
    epochs = max(10, min(100, round(250_000 / max(spec.rows, 1))))
    average = 0.995 if config.method == "fixmatch" else 0.0
    return {"engine": {"batch_size": 256 if spec.rows >= 5_000 else 64, "epochs": epochs, "average": average}}


def example() -> DataSpec:
    """Return small grey images, half of which have a label."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(4, 4)),),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Consistency:
    """Return the objective.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Objective 'consistency' cannot be used: {why}.")
    at_least(config, {"weight": 0, "temperature": 0}, "objective")
    below_one(config, "threshold", "momentum", where="objective")
    few.refuse(config, "objective")
    return Consistency(config, spec, model)


class Consistency(Objective):
    """A model with a head for the classes and, where asked for, a teacher that trails both."""

    recounts = True

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.key, self.target = spec.inputs[0].key, spec.targets[0]
        self.predicts = spec.targets
        self.share = _share(config, sum(self.target.counts), spec.rows)
        self.weight = config.weight or WEIGHTS[config.method]
        self.head = Head(int(model.width), len(self.target.classes))  # type: ignore[arg-type]
        self.strong = few.strong(config)
        self.other = Views((max(config.crop, 0.8), 1.0), flip=0.0, jitter=config.jitter / 2, grey=0.0)
        if config.method != "fixmatch":
            self.teacher = copy.deepcopy(model).requires_grad_(False)
            self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        if config.method == "steady_match":
            self.balance = Balance(self.target)

    @property
    def network(self) -> nn.Module:
        return self.model if self.config.method == "fixmatch" else self.teacher

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        image, truth = batch[self.key], batch[self.target.target_key]
        given, agree = (self._mean_teacher if self.config.method == "mean_teacher" else self._match)(image)
        logits, penalty = given
        known = truth >= 0
        # Divided by what a batch holds on average, so that the gradient of many micro-batches is that of one batch.
        each = F.cross_entropy(logits, truth.clamp_min(0), reduction="none") * known
        labelled = each.sum() / (len(truth) * self.share)
        unlabelled, sure = agree
        parts = {"labelled": labelled, "unlabelled": unlabelled, "sure": sure}
        total = labelled + self.weight * unlabelled
        if penalty is not None:
            parts["penalty"], total = penalty, total + penalty
        return Loss(total, parts, weight=float(len(truth)))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the log-loss, and `error`, whether the class is wrong."""
        truth, found = batch[self.target.target_key], self.predict(batch)[self.target.name]
        chosen = found.gather(1, truth.clamp_min(0)[:, None]).squeeze(1)
        return {"loss": -chosen.clamp_min(1e-12).log(), "error": (found.argmax(1) != truth).float()}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the probabilities [B, C]: of the teacher, where there is one."""
        if self.config.method == "fixmatch":
            return {self.target.name: _logits(self.model(batch), self.head).softmax(1)}
        return {self.target.name: self._taught(batch)}

    def averages(self) -> tuple[Average, ...]:
        """The teacher trails the student."""
        if self.config.method == "fixmatch":
            return ()
        pairs = ((self.model, self.teacher), (self.head, self.teacher_head))
        first = self.config.momentum
        last = 1 - (1 - first) / 10  # from 0.99 to 0.999, as in the paper
        found = tuple(Average(source, target, first, last, "averaged") for source, target in pairs)
        if self.config.method == "mean_teacher":
            return found
        return (*found, *self.balance.averages())

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images above the views of them on which the model has to agree with itself."""
        images = batch[self.key][:SHOWN]
        view = self.other if self.config.method == "mean_teacher" else self.strong
        return {"images, and views of which the same has to be said": torch.cat([images.float(), view(images)]) / 255}

    def _match(self, image: Tensor) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
        """Return (the logits [B, C] of the images as they are, the model's penalty) and (the disagreement, the share of
        images of which a class is sure)."""
        weakly = image.to(torch.float32)
        both = torch.cat([weakly, self.strong(image).to(torch.float32)])
        features = self.model({self.key: both})
        weak, strong = _logits(features, self.head).chunk(2)
        if self.config.method == "fixmatch":
            told = weak.detach().softmax(1)
        else:
            with torch.no_grad():
                told = self._taught({self.key: weakly})
            told = self.balance(told)
        probability, said = told.max(1)
        sure = (probability >= self.config.threshold).to(strong.dtype)
        if self.config.method == "steady_match" and self.config.temperature > 0:
            disagreement = F.cross_entropy(strong, (told.log() / self.config.temperature).softmax(1))
        else:
            disagreement = (F.cross_entropy(strong, said, reduction="none") * sure).mean()
        return (weak, features.penalty), (disagreement, sure.mean())

    def _taught(self, batch: Batch) -> Tensor:
        """Return what the teacher says, [B, C]."""
        return _logits(self.teacher(batch), self.teacher_head).softmax(1)

    def _mean_teacher(self, image: Tensor) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
        """Return the same, with the squared distance of the student's probabilities from its teacher's."""
        features = self.model({self.key: self.other(image)})
        logits = _logits(features, self.head)
        with torch.no_grad():
            wanted = self._taught({self.key: self.other(image)})
        disagreement = (logits.softmax(1) - wanted).square().sum(1).mean()
        sure = (wanted.amax(1) >= self.config.threshold).to(wanted.dtype).mean()
        return (logits, features.penalty), (disagreement, sure)


def _logits(features: Features, head: Head) -> Tensor:
    """Return logits [B, C], at least in float32."""
    return wide(head(one_vector(features.pooled)).squeeze(1))


def _share(config: Config, labelled: int, rows: int) -> float:
    """Return the share of rows with a label among those that an epoch has, some of them several times."""
    if not 0 < labelled < rows:
        return 1.0
    standing = labelled * repeats(config, labelled, rows)
    return standing / (standing + rows - labelled)
