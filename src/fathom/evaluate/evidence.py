"""Everything that a report shows, as one plain value that is stored beside the model.

Evidence            the whole
DataEvidence        what it was trained on, and what was set aside
RunEvidence         how it was trained
TargetEvidence      how well it does on one target: made by `appraise`
to_json, from_json  the way to `evidence.json` and back
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from fathom.core.errors import ArtifactError
from fathom.core.types import Field
from fathom.evaluate.baselines import Baseline
from fathom.evaluate.calibrate import calibration, residuals
from fathom.evaluate.compare import verdict
from fathom.evaluate.mistakes import mistakes, show
from fathom.evaluate.score import judged_rows, score
from fathom.evaluate.slices import slices

VERSION = 1
SHOWN_SET_ASIDE = 50
PATHS = ("data.source", "data.test")  # settings whose folders config.toml alone holds


@dataclass(frozen=True, kw_only=True)
class ColumnEvidence:
    """One column of the source: what it was taken for, and why."""

    name: str
    kind: str
    role: str = "input"  # input | target | dropped
    why: str = ""
    missing: int = 0
    distinct: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SetAsideEvidence:
    """One row, or file, that was not used, and why."""

    where: str
    row: int | None = None
    column: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class DataEvidence:
    """What the model learned from.

    Attributes:
        source: the name of what the user gave, without the folders that lead there: they are nobody's business.
        rows: usable ones.
        splits: rows by "train", "valid", "test".
        how_split: in words.
        overlaps: test rows that also stand in training.
        classes: by target, the training rows of each class.
        set_aside: the first few; `set_aside_count` says how many there are.
        notes: further things that the reader should know.
    """

    source: str = ""
    rows: int = 0
    columns: list[ColumnEvidence] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    how_split: str = ""
    overlaps: int = 0
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    set_aside: list[SetAsideEvidence] = field(default_factory=list)
    set_aside_count: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        aside = [replace(one, where=_inside(self.source, one.where)) for one in self.set_aside]
        object.__setattr__(self, "set_aside", aside)
        object.__setattr__(self, "source", _name(self.source))


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """How the model was trained.

    Attributes:
        why: why this model was chosen.
        parameters: trainable numbers.
        epochs: one dict each: "epoch", what training measured as "train_loss", …, and the validation rows' measures
            by their own names, "loss", "error", …
        best_epoch: whose weights were kept; None where the last or an average was.
        stopped: why training ended, in words.
        tuner: {"what", "chosen", "why"} of each choice that the engine made.
        settings: the complete configuration, flat: {"engine.learning_rate": 0.002}; of paths only the names.
    """

    model: str = ""
    objective: str = ""
    why: str = ""
    parameters: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped: str = ""
    seconds: float = 0.0
    seed: int = 0
    tuner: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {key: _name(self.settings[key]) for key in PATHS if isinstance(self.settings.get(key), str)}
        object.__setattr__(self, "settings", {**self.settings, **names})


@dataclass(frozen=True, kw_only=True)
class TargetEvidence:
    """How well the model does on one target, on rows that it never saw. See the functions of the same names."""

    name: str
    kind: str
    score: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)  # of a number: its residuals
    baselines: list[dict[str, Any]] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    slices: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that a report shows.

    Attributes:
        created: date and time, ISO 8601.
        judged_on: whose rows the model was scored on: "test", "validation" or "training".
        measures: of an objective without targets, as `measures` returns them.
        pictures: {"title", "image" as a data URI} of what it makes.
        during: {"title", "epoch", "image"} of what it made of the same rows after several passes, in their order.
        environment: {"python": "3.12.1", …}.
        commands: (what it does, the command) of what to do next.
    """

    title: str = ""
    created: str = ""
    data: DataEvidence = field(default_factory=DataEvidence)
    run: RunEvidence = field(default_factory=RunEvidence)
    targets: list[TargetEvidence] = field(default_factory=list)
    judged_on: str = "test"
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: list[dict[str, str]] = field(default_factory=list)
    during: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, str]] = field(default_factory=list)
    version: int = VERSION


def appraise(
    targets: Sequence[Field],
    outputs: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    *,
    rivals: Sequence[Baseline] = (),
    images: Mapping[str, Any] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    shown: int = 24,
    seed: int = 0,
    resamples: int = 1000,
    scores: Mapping[str, dict[str, Any]] | None = None,
    rows: Sequence[int] | None = None,
) -> list[TargetEvidence]:
    """Return everything that can be said of a model's outputs on test rows.

    Args:
        targets, outputs, truth: as in `score`.
        rivals: as `baselines` returns them for the same rows.
        images: by field, the test rows' images, uint8 [N, C, H, W].
        texts: by field, the test rows' texts.
        columns: by name, the test rows' other columns, as the user wrote them: shown with mistakes, and sliced by.
        shown: how many mistakes of each target.
        seed, resamples: of the bootstrap.
        scores: what `score` returned, if it was called already.
        rows: the test rows' numbers in the source, by which mistakes are named; without them their positions.
    """
    scores = scores or score(targets, outputs, truth, seed, resamples)
    verdicts = verdict(targets, outputs, truth, rivals, seed, resamples) if rivals else {}
    parts = dict(columns or {}) | _derived(images or {}, texts or {})
    found = []
    for target in targets:
        output, true = judged_rows(target, outputs, truth)
        known = true >= 0 if target.kind == "category" else np.isfinite(true)
        worst = mistakes(target, np.asarray(outputs[target.name]), np.asarray(truth[target.name]), shown)
        shown_worst = [mistake | show(mistake["row"], images, texts, columns) for mistake in worst]
        if rows is not None:
            shown_worst = [mistake | {"row": int(rows[mistake["row"]])} for mistake in shown_worst]
        category = target.kind == "category"
        found.append(
            TargetEvidence(
                name=target.name,
                kind=target.kind,
                score=scores[target.name],
                calibration=(calibration if category else residuals)(output[known], true[known], seed),
                baselines=[b.record() for b in rivals if b.target == target.name],
                verdict=verdicts.get(target.name, {}),
                mistakes=shown_worst,
                slices=slices(target, np.asarray(outputs[target.name]), np.asarray(truth[target.name]), parts),
            )
        )
    return found


def to_json(evidence: Evidence) -> bytes:
    """Return `evidence` as UTF-8 JSON."""
    return msgspec.json.format(msgspec.json.encode(evidence), indent=1)


def from_json(data: bytes) -> Evidence:
    """Return what `to_json` was given.

    Raises:
        ArtifactError: not JSON, or not evidence of this version.
    """
    try:
        evidence = msgspec.json.decode(data, type=Evidence)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"The evidence cannot be read: {error}.") from None
    if evidence.version != VERSION:
        raise ArtifactError(f"The evidence is of version {evidence.version}; this Fathom reads version {VERSION}.")
    return evidence


def _name(path: str) -> str:
    """Return the last part of a path."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _inside(source: str, where: str) -> str:
    """Return a file's path from the source on, or only its name where it lies in a folder elsewhere."""
    if source and where.startswith(source):
        return _name(source) + where[len(source.rstrip("/\\")) :]
    return _name(where) if re.match(r"[/\\~]|[A-Za-z]:[/\\]", where) else where


def _derived(images: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> dict[str, Sequence[Any]]:
    """Return what images and texts can be sliced by: their brightness and their length."""
    found: dict[str, Sequence[Any]] = {}
    for name, pixels in images.items():
        found[f"brightness of {name}"] = [float(np.asarray(image).mean()) for image in pixels]
    for name, values in texts.items():
        found[f"words in {name}"] = [len(str(value).split()) for value in values]
    return found
