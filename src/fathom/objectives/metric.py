"""Metric learning: rows of one class lie near one another, those of others far away, classes never seen among them.

    triplet    an anchor lies nearer to a row of its class than to one of another, by a margin
    arcface    the angle between a row and its class's direction has to be smaller, by a margin, than to all others

Rows become vectors of length one. Of triplets, those are learned from that are semi-hard: for each anchor and positive,
the nearest of the negatives that lie farther than the positive; where all lie nearer, the farthest of them. They come
from the batch, in which up to four rows of a class therefore stand together.

Sources: Schroff, Kalenichenko, Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, 2015; Deng,
Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
from fathom.core.conventions import batch_size
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import Batch, DataSpec, Features, Field, Loss, Stats
from fathom.layers.similar import one_vector, unit

REFERENCE = (
    "Schroff, Kalenichenko, Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, 2015; "
    "Deng, Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019"
)
ALIKE = 4  # rows of a class that stand together in a batch, so that there are triplets
MARGINS = {"triplet": 0.2, "arcface": 0.5}


@dataclass(frozen=True)
class Config:
    method: Literal["triplet", "arcface"] = option("triplet", "what is compared: rows with rows, or with their class")
    width: int = option(64, "length of the vectors")
    margin: float = option(0.0, "by how much; 0: that of the paper (triplet 0.2, arcface 0.5 radians)")
    scale: float = option(16.0, "arcface: what cosines are multiplied by (64 for very many classes)")


presets: dict[str, Config] = {"triplet": Config(), "arcface": Config(method="arcface")}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    if len(spec.targets) == 1 and spec.targets[0].kind == "category":
        return None
    given = ", ".join(f"'{f.name}' ({f.kind})" for f in spec.targets[:4]) or "none"
    return f"it needs one target column of classes; the targets are {given}"


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: batches that hold several classes, and several rows of each."""
    wanted = 1 << (ALIKE * len(spec.targets[0].classes) - 1).bit_length()
    return {"engine": {"batch_size": max(64, min(wanted, batch_size(spec.rows, most=256)))}}


def example() -> DataSpec:
    """Return small grey images of three people."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="person", kind="category", classes=("a", "b", "c"), counts=(6, 5, 5)),),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Metric:
    """Return the objective.

    Raises:
        ConfigError: the target is no category, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Objective 'metric' cannot be used: {why}.")
    at_least(config, {"width": 1, "margin": 0, "scale": 0.1}, "objective")
    if config.method == "arcface" and config.margin > math.pi / 2:
        raise ConfigError(f"Option 'objective.margin' was given {config.margin}; expected an angle up to π/2.")
    return Metric(config, spec.targets[0], model)


class Metric(Objective):
    """A model and a linear map of its features, whose directions are what rows are compared by."""

    predicts = ()

    def __init__(self, config: Config, target: Field, model: nn.Module) -> None:
        super().__init__()
        self.config, self.target, self.model = config, target, model
        self.margin = config.margin or MARGINS[config.method]
        if config.method == "triplet":
            self.together = (target.target_key, ALIKE)
        self.project = nn.Linear(int(model.width), config.width, bias=False)  # type: ignore[arg-type]
        if config.method == "arcface":
            self.directions = nn.Parameter(torch.randn(len(target.classes), config.width))  # one for each class

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        features: Features = self.model(batch)
        vectors, label = self._vectors(features), batch[self.target.target_key]
        if self.config.method == "arcface":
            total, weight = self._angular(vectors, label).mean(), torch.tensor(len(label))
        else:
            cost, pairs = triplet_costs(vectors, label, self.margin)
            weight = pairs.sum().clamp_min(1)
            total = (cost * pairs).sum() / weight
        if features.penalty is None:
            return Loss(total, weight=weight)
        return Loss(total + features.penalty, {"penalty": features.penalty}, weight)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return each row's `loss` (of triplets the mean over its positives), whether another row of its class is there
        to be found in the batch, and whether the row nearest to it is one."""
        vectors, label = self._vectors(self.model(batch)), batch[self.target.target_key]
        if self.config.method == "arcface":
            loss = self._angular(vectors, label)
        else:
            cost, pairs = triplet_costs(vectors, label, self.margin)
            loss = (cost * pairs).sum(1) / pairs.sum(1).clamp_min(1)
        alone = torch.eye(len(label), dtype=torch.bool, device=label.device)
        same = (label[:, None] == label) & ~alone
        nearest = (vectors @ vectors.T).masked_fill(alone, -torch.inf).argmax(1)
        found = same.gather(1, nearest[:, None]).squeeze(1)
        return {"loss": loss, "found": found.float(), "present": same.any(1).float()}

    def summary(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return `loss` and `recall_at_1`: of rows that are not alone of their class in a batch, the share whose
        nearest is of it. (Over a whole collection: `fathom embed --recall`.)"""
        present = means["present"]
        return {"loss": means["loss"], "recall_at_1": means["found"] / (present + (present == 0))}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `embedding` [B, E], of length one."""
        return {"embedding": self.embed(batch)}

    def embed(self, batch: Batch) -> Tensor:
        """Return vectors of length one, [B, E]."""
        return self._vectors(self.model(batch))

    def _vectors(self, features: Features) -> Tensor:
        return unit(self.project(one_vector(features.pooled)))

    def _angular(self, vectors: Tensor, label: Tensor) -> Tensor:
        """Return each row's cross-entropy [B], its own class's angle made larger by the margin."""
        cosine = vectors @ unit(self.directions).T  # [B, C]
        return F.cross_entropy(self.config.scale * with_margin(cosine, label, self.margin), label, reduction="none")


def triplet_costs(vectors: Tensor, label: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return what each anchor and positive cost with their semi-hard negative, [B, B], and which are such a pair.

    The cost is max(0, d(a, p) − d(a, n) + margin) with squared distances; it is zero where there is no negative.

    Args:
        vectors: [B, E] of length one. label: [B].
    """
    squared = (2 - 2 * vectors @ vectors.T).clamp_min(0)  # [B, B]
    same = label[:, None] == label
    positive = same & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    others = squared.masked_fill(same, torch.inf)
    farther = others[:, None, :] > squared[:, :, None]  # [B (anchor), B (positive), B (negative)]
    beyond = others[:, None, :].where(farther, torch.inf).amin(2)  # [B, B]
    farthest = squared.masked_fill(same, -torch.inf).amax(1, keepdim=True)
    negative = torch.where(beyond.isfinite(), beyond, farthest)
    pairs = positive & ~same.all(1, keepdim=True)
    cost = (squared - torch.where(pairs, negative, torch.zeros_like(negative)) + margin).clamp_min(0)
    return torch.where(pairs, cost, torch.zeros_like(cost)), pairs


def with_margin(cosine: Tensor, label: Tensor, margin: float) -> Tensor:
    """Return cosines [B, C] with cos(θ + margin) for each row's own class; where θ + margin passes π, which would make
    it larger again, cos θ − margin · sin(margin), as in the authors' code."""
    own = cosine.gather(1, label[:, None])
    sine = (1 - own.square()).clamp_min(1e-12).sqrt()
    added = own * math.cos(margin) - sine * math.sin(margin)
    kept = torch.where(own > -math.cos(margin), added, own - margin * math.sin(margin))
    return cosine.scatter(1, label[:, None], kept)
