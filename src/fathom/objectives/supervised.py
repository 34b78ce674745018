"""Supervised learning: predict each target column from the inputs.

A category is learned by cross-entropy, a number by squared error on its standardised value. Several targets train
several heads on the same features. A model that is an ensemble in one network (features [B, K, D]) trains each of
its K members on its own loss, and predicts the mean of their probabilities or values.

Where classes are weighted, the model learns the probabilities of data in which each class stands as often as its
weight says: rare classes count more while learning. What is predicted is put back to the shares of the data at hand,
p(c) ∝ q(c) / w(c), so that a probability means how often it comes true, and the class predicted is the likeliest
(Saerens, Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori Probabilities, 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import below_one, option
from fathom.core.objective import Objective
from fathom.core.types import IMBALANCE, UNKNOWN, Batch, DataSpec, Field, Loss, Stats
from fathom.layers.heads import Head
from fathom.layers.precision import wide

REFERENCE = "Bishop, Pattern Recognition and Machine Learning, 2006, chapters 3 to 5"


@dataclass(frozen=True)
class Config:
    label_smoothing: float = option(0.0, "share of a class's probability spread over all classes")
    class_weights: Literal["auto", "none", "balanced"] = option(
        "auto",
        "auto: by the inverse root of each class's count, where counts differ by more than four times; balanced: by "
        "the inverse count. Rare classes count more while learning; probabilities are put back to the data's shares",
    )
    number_loss: Literal["squared", "absolute", "huber"] = option("squared", "what a number's error costs")
    dropout: float = option(0.0, "share of features that the heads drop in training")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    if not spec.targets:
        return "it needs at least one target column"
    for target in spec.targets:
        if target.kind not in ("number", "category"):
            return f"target '{target.name}' is {target.kind}; it predicts numbers and categories"
    return None


def example() -> DataSpec:
    """Return a small mixed table with one target of each kind."""
    return DataSpec(
        inputs=(
            Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0))),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
        ),
        targets=(
            Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),
            Field(name="price", kind="number", stats=Stats(mean=(10.0,), std=(2.0,))),
        ),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Supervised:
    """Return the objective.

    Raises:
        ConfigError: an option is out of range.
    """
    below_one(config, "label_smoothing", "dropout", where="objective")
    return Supervised(config, spec, model)


class Supervised(Objective):
    """One head for each target on the features of one model."""

    soft_targets = True

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.targets, self.model = config, spec.targets, model
        self.predicts = spec.targets
        width, members = int(model.width), int(getattr(model, "members", 1))  # type: ignore[arg-type]
        self.heads = nn.ModuleList(
            Head(width, max(1, len(target.classes)), members, config.dropout) for target in spec.targets
        )
        for index, target in enumerate(spec.targets):
            self.register_buffer(f"weights_{index}", _class_weights(target, config.class_weights), persistent=False)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return each target's logits, or standardised values, of each member: [B, K, O], at least in float32."""
        return self._read_out(self.model(batch).pooled)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        parts: dict[str, Tensor] = {}
        features = self.model(batch)
        for index, (target, output) in enumerate(zip(self.targets, self._read_out(features.pooled), strict=True)):
            truth = batch[target.target_key]
            if target.kind == "category":
                parts[target.name] = self._category_loss(index, output, truth)
            else:
                parts[target.name] = self._number_loss(target, output, truth)
        total = torch.stack(list(parts.values())).mean()
        if features.penalty is not None:
            parts["penalty"] = features.penalty
            total = total + features.penalty
        return Loss(total, parts if len(parts) > 1 else {}, weight=float(len(truth)))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return each category's probabilities [B, C], as the classes' shares in the data are, and each number's
        values [B], in its own unit."""
        found = {}
        for index, (target, output) in enumerate(zip(self.targets, self.outputs(batch), strict=True)):
            if target.kind == "category":
                found[target.name] = self._unweighted(index, output).softmax(-1).mean(1)  # [B, C]
            else:
                mean, std = _scale(target)
                found[target.name] = output.squeeze(-1).mean(1) * std + mean  # [B]
        return found

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, what the members' mean prediction costs (a category's log-loss, without smoothing and
        weights; a number's error in units of the target's spread), the mean over targets; and `error`, the share of
        wrong classes, where there is a category."""
        losses, errors = [], []
        predicted = self.predict(batch)
        for target in self.targets:
            truth, guess = batch[target.target_key], predicted[target.name]
            if target.kind == "category":
                chosen = guess.gather(1, truth[:, None]).squeeze(1)  # [B]
                losses.append(-chosen.clamp_min(1e-12).log())
                errors.append((guess.argmax(1) != truth).float())
            else:
                mean, std = _scale(target)
                losses.append(self._number_cost((guess - mean) / std, (truth - mean) / std))
        found = {"loss": torch.stack(losses).mean(0)}
        if errors:
            found["error"] = torch.stack(errors).mean(0)
        return found

    def _read_out(self, pooled: Tensor) -> list[Tensor]:
        return [wide(head(pooled)) for head in self.heads]

    def _category_loss(self, index: int, logits: Tensor, truth: Tensor) -> Tensor:
        if truth.ndim == 2:
            return self._soft_loss(index, logits, truth)
        members = logits.shape[1]
        each = F.cross_entropy(
            logits.flatten(0, 1),  # [B·K, C]
            truth.repeat_interleave(members) if members > 1 else truth,
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        ).view(-1, members)
        weight = self._weight_of(index, truth)
        return (each * weight[:, None]).mean() if isinstance(weight, Tensor) else each.mean()

    def _soft_loss(self, index: int, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the mean over the classes of what each would cost, by their probabilities `truth` [B, C]."""
        cost = -logits.log_softmax(-1)  # [B, K, C]
        cost = torch.lerp(cost, cost.mean(-1, keepdim=True), self.config.label_smoothing)
        weights = getattr(self, f"weights_{index}")
        share = truth.to(cost.dtype) if weights is None else truth.to(cost.dtype) * weights
        return (cost * share[:, None]).sum(-1).mean()

    def _number_loss(self, target: Field, output: Tensor, truth: Tensor) -> Tensor:
        mean, std = _scale(target)
        standard = ((truth - mean) / std).to(output.dtype)[:, None].expand(-1, output.shape[1])  # [B, K]
        return self._number_cost(output.squeeze(-1), standard).mean()

    def _number_cost(self, guess: Tensor, truth: Tensor) -> Tensor:
        """Return each standardised value's cost, in the shape of `guess`."""
        if self.config.number_loss == "squared":
            return (guess - truth).square()
        if self.config.number_loss == "absolute":
            return (guess - truth).abs()
        return F.huber_loss(guess, truth, reduction="none")

    def _unweighted(self, index: int, logits: Tensor) -> Tensor:
        """Return the logits [B, K, C] of the classes' shares in the data, which the weights had shifted in training."""
        weights = getattr(self, f"weights_{index}")
        return logits if weights is None else logits - weights.log()

    def _weight_of(self, index: int, truth: Tensor) -> Tensor | float:
        """Return the weight of each sample's class [B], or one where classes count alike."""
        weights = getattr(self, f"weights_{index}")
        return 1.0 if weights is None else weights[truth]


def _scale(target: Field) -> tuple[float, float]:
    stats = target.stats or Stats()
    return stats.mean[0], stats.std[0] or 1.0


def _class_weights(target: Field, mode: str) -> Tensor | None:
    """Return weights [C] whose mean over the training rows is one, or None where classes count alike."""
    counts = torch.tensor(target.counts, dtype=torch.float64).clamp_min(1)  # a class without rows counts as rarest
    if mode == "none" or len(counts) == 0:
        return None
    if mode == "auto" and counts.max() <= IMBALANCE * counts.min():
        return None
    weights = counts.pow(-0.5 if mode == "auto" else -1.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()
