"""Contrastive learning: what belongs together lies near, what does not lies far apart.

    views      SimCLR     two random views of each image                            one image column
    dropout    SimCSE     each text read twice, with other units dropped            one text column
    texts      pairs      two texts that mean the same                              two text columns
    captions   CLIP       an image and what is written below it                     an image column and text columns

Each of a batch's B pairs has to be recognised among all: with similarities s (cosines over a temperature), a pair
(i, j) costs −log(exp s(i, j) / Σ_k exp s(i, k)). Rows whose text is the same are no negatives of one another. A batch
is what is told apart, so micro-batches (`accumulate`) make the task easier: they are no substitute for a large batch.

What an image or text is embedded as are the model's features; SimCLR's projection, which forgets what views differ in,
is for training alone. CLIP's projections bring images and texts into one space, and are kept: a text can be looked for
among images, and images be told apart by texts that were never a class (zero-shot).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
from fathom.core.conventions import batch_size
from fathom.core.errors import ConfigError
from fathom.core.modes import modes_kept
from fathom.core.objective import Objective
from fathom.core.roles import Towers
from fathom.core.types import Batch, DataSpec, Features, Field, Loss, Stats
from fathom.layers.condition import categories_as_texts
from fathom.layers.probe import asking
from fathom.layers.similar import one_vector, unit
from fathom.layers.views import Views

REFERENCE = (
    "Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations, 2020; "
    "Gao, Yao, Chen, SimCSE: Simple Contrastive Learning of Sentence Embeddings, 2021; "
    "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021"
)
TARGET = "unused"
TEMPERATURES = {"views": 0.5, "dropout": 0.05, "texts": 0.05, "captions": 0.07}
MOST_SCALE = math.log(100.0)  # of CLIP's learned scale, one over the temperature
SHOWN = 8  # images whose views are shown


@dataclass(frozen=True)
class Config:
    method: Literal["auto", "views", "dropout", "texts", "captions"] = option(
        "auto", "what is brought together; auto: by the columns (see `fathom objectives`)"
    )
    temperature: float = option(0.0, "of similarities; 0: that of the paper; captions learn theirs from here")
    width: int = option(128, "length of the vectors that are compared, of views and captions")
    crop: float = option(0.2, "smallest area of a view, as a share of the image's")
    flip: bool = option(True, "views may be mirrored")
    jitter: float = option(0.4, "how much views differ in brightness, contrast and saturation")
    blur: float = option(0.0, "chance that a view is blurred")


presets: dict[str, Config] = {
    "simclr": Config(method="views"),
    "simcse": Config(method="dropout"),
    "clip": Config(method="captions"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    if _method(spec):
        return None
    why = "it takes one image column, one or two text columns, or an image beside texts"
    return f"{why}; the columns are {spec.given}{categories_as_texts(spec)}"


def suggests(spec: DataSpec) -> str | None:
    """Return the model with a tower for images and one for texts where both are needed."""
    return "mixed" if _method(spec) == "captions" else None


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: large batches, and many passes over few rows. It varies images by itself.

    How views move a network's weights is what the network's own recipe says: short runs gain most from Muon.
    """
    epochs = max(10, min(100, round(400_000 / max(spec.rows, 1))))
    if not spec.images:
        return {"engine": {"batch_size": 64, "epochs": max(1, min(20, epochs // 5))}}
    engine = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0.05}
    batch = batch_size(spec.rows, most=256, steps=20)
    size = {"batch_size": batch, "epochs": epochs}
    if _method(spec) == "views":
        return {"engine": size, "augment": {"shift": 0.0, "flip": "no"}}
    return {"engine": {**engine, **size}}


def example() -> DataSpec:
    """Return small grey images."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),), rows=16
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Contrast:
    """Return the objective.

    Raises:
        ConfigError: the columns or the model do not fit the method, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Objective 'contrast' cannot be used: {why}.")
    at_least(config, {"temperature": 0, "width": 1, "crop": 0.01, "jitter": 0, "blur": 0}, "objective")
    if config.crop > 1:
        raise ConfigError(f"Option 'objective.crop' was given {config.crop}; expected a share up to 1.")
    method = _method(spec)
    if config.method not in ("auto", method):
        raise ConfigError(f"Option 'objective.method' was given '{config.method}'; these columns are for '{method}'.")
    if method == "captions" and not isinstance(model, Towers):
        raise ConfigError(
            f"Objective 'contrast' compares images with texts, for which a model needs a tower for each, as 'mixed' "
            f"has; {type(model).__name__} has none."
        )
    if method == "dropout" and not _drops(model):
        raise ConfigError(
            "Objective 'contrast' reads a single text twice with other units dropped, and this model drops none: set "
            "model.dropout=0.1."
        )
    task = Contrast(config, spec, model, cast(str, method))
    if method == "texts" and not _comparable(task):
        raise ConfigError(
            f"Objective 'contrast' compares two text columns, which {type(model).__name__} reads into numbers of their "
            "own; it needs a model that reads both alike, such as transformer or bert."
        )
    return task


def _comparable(task: Contrast) -> bool:
    """Return whether the vectors of the two texts have anything to do with one another, where both say the same."""
    device = next((p.device for p in task.model.parameters()), torch.device("cpu"))
    length = min(field.shape[0] for field in task.spec.texts)
    words = torch.arange(length, device=device) % max(1, min(f.vocabulary for f in task.spec.texts) - 5) + 5
    batch = {f.key: torch.full((1, *f.shape), f.pad, device=device, dtype=torch.int32) for f in task.spec.texts}
    for tokens in batch.values():
        tokens[0, :length] = words
    with asking(task.model):
        first, second, _ = task._pairs(batch)
    return bool((first * second).any())


class Contrast(Objective):
    """A model, and what is compared of its features."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method, self.spec = model, method, spec
        self.temperature = config.temperature or TEMPERATURES[method]
        self.views = Views((config.crop, 1.0), flip=0.5 * config.flip, jitter=config.jitter, blur=config.blur)
        width = int(model.width)  # type: ignore[arg-type]
        if method == "views":
            self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.width))
        if method == "captions":
            self.project_image = nn.Linear(width, config.width, bias=False)
            self.project_text = nn.Linear(width, config.width, bias=False)
            self.scale = nn.Parameter(torch.tensor(-math.log(self.temperature)))

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        each, matched, penalty = self._compared(batch)
        total = each.mean()
        parts = {"matched": matched.mean()}
        if penalty is not None:
            parts["penalty"], total = penalty, total + penalty
        return Loss(total, parts, weight=float(len(each)))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` of each row among its batch, and `matched`: whether its partner is the nearest of all."""
        with _dropping(self.model) if self.method == "dropout" else nullcontext():
            each, matched, _ = self._compared(batch)
        return {"loss": each, "matched": matched}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `embedding` [B, D]; of pairs the vector of each partner, of length one."""
        if self.method in ("views", "dropout"):
            return {"embedding": self.embed(batch)}
        first, second, _ = self._pairs(batch)
        names = ("image", "text") if self.method == "captions" else tuple(f.name for f in self.spec.texts)
        return dict(zip(names, (first, second), strict=True))

    def embed(self, batch: Batch) -> Tensor:
        """Return the model's features [B, D] of an image or text, of the first of two texts; of images with captions
        the vector that is compared with texts."""
        if self.method == "captions":
            return unit(self.project_image(self._towers.tower("image", batch)))
        return one_vector(self.model(self._alone(0, batch) if self.method == "texts" else batch).pooled)

    def match(self, images: Batch, texts: Batch) -> Tensor:
        """Return how probable each of C texts is for each of B images, [B, C].

        Raises:
            ConfigError: it was not trained on images with captions.
        """
        if self.method != "captions":
            raise ConfigError("This model was not trained on images with captions, so that no text can be matched.")
        written = unit(self.project_text(self._towers.tower("text", texts)))
        return (self.embed(images) @ written.T * self._sharpness()).softmax(1)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images above two views of each, as training compares them."""
        if self.method != "views":
            return {}
        images = batch[self.spec.images[0].key][:SHOWN]
        rows = [images.float(), self.views(images), self.views(images)]
        return {"images, and two views of each that are to be told to belong together": torch.cat(rows) / 255}

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what each row costs [B], whether it found its partner [B], and the model's penalty."""
        if self.method == "views":
            z, penalty = self._views(batch)
            return *_nt_xent(z, self.temperature), penalty
        first, second, penalty = self._pairs(batch)
        scores = first @ second.T * self._sharpness()  # [B, B]
        scores = scores.masked_fill(self._alike(batch), -torch.inf)
        target = torch.arange(len(scores), device=scores.device)
        each, matched = F.cross_entropy(scores, target, reduction="none"), scores.argmax(1) == target
        if self.method != "dropout":  # both ways; the two readings of one text are of a kind
            each = (each + F.cross_entropy(scores.T, target, reduction="none")) / 2
        return each, matched.float(), penalty

    def _views(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the projections [2·B, E] of two views of each image, the first views first."""
        key = self.spec.images[0].key
        images = batch[key]
        found = self.model({key: torch.cat([self.views(images), self.views(images)])})
        return unit(self.project(one_vector(found.pooled))), found.penalty

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the vectors [B, E] of both partners, of length one, and the model's penalty."""
        if self.method == "captions":
            written = self._towers.tower("text", batch)
            return self.embed(batch), unit(self.project_text(written)), None
        first, second = (batch, batch) if self.method == "dropout" else (self._alone(0, batch), self._alone(1, batch))
        found: list[Features] = [self.model(first), self.model(second)]
        penalties = [each.penalty for each in found if each.penalty is not None]
        penalty = torch.stack(penalties).mean() if penalties else None
        return unit(one_vector(found[0].pooled)), unit(one_vector(found[1].pooled)), penalty

    def _alone(self, index: int, batch: Batch) -> Batch:
        """Return the batch with one of two text columns left, and nothing in the other."""
        other = self.spec.texts[1 - index]
        return {**batch, other.key: torch.full_like(batch[other.key], other.pad)}

    def _alike(self, batch: Batch) -> Tensor:
        """Return which rows say the same in some text column though they are not the same row, [B, B]."""
        size = len(batch[self.spec.texts[0].key])
        alike = torch.zeros(size, size, dtype=torch.bool, device=batch[self.spec.texts[0].key].device)
        columns = [[f] for f in self.spec.texts] if self.method == "texts" else [list(self.spec.texts)]
        for fields in columns:
            tokens = torch.cat([batch[f.key] for f in fields], dim=1)
            _, code = tokens.unique(dim=0, return_inverse=True)
            alike |= code[:, None] == code
        return alike & ~torch.eye(size, dtype=torch.bool, device=alike.device)

    def _sharpness(self) -> Tensor | float:
        """Return by what cosines are multiplied."""
        return self.scale.clamp(max=MOST_SCALE).exp() if self.method == "captions" else 1 / self.temperature

    @property
    def _towers(self) -> Towers:
        return cast(Towers, self.model)


def _nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return what each of B pairs costs (normalised temperature-scaled cross-entropy) and whether both were
    found.

    Args:
        z: [2·B, E] of length one, first partners first.
    """
    count = len(z)
    scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)  # [2·B, 2·B]
    partner = torch.arange(count, device=z.device).roll(count // 2)
    each = F.cross_entropy(scores, partner, reduction="none").view(2, -1).mean(0)
    return each, (scores.argmax(1) == partner).view(2, -1).all(0).float()


def _method(spec: DataSpec) -> str | None:
    """Return what such columns are for, or None."""
    images, texts = len(spec.images), len(spec.texts)
    if images + texts != len(spec.inputs) or images > 1:
        return None
    if images:
        return "captions" if texts else "views"
    return {1: "dropout", 2: "texts"}.get(texts)


def _drops(model: nn.Module) -> bool:
    """Whether two readings of the same differ in training."""
    shares = (getattr(m, "p" if isinstance(m, nn.Dropout) else "token_dropout", 0.0) for m in model.modules())
    return any(isinstance(share, float) and share > 0 for share in shares)


@contextmanager
def _dropping(model: nn.Module) -> Iterator[None]:
    """Let units be dropped as in training, while running statistics stay as they are."""
    with modes_kept(model):
        for module in model.modules():
            module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)
        yield
