"""A trained model in a person's hands: predict, evaluate, save, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fathom import artifact as artifacts
from fathom.api.progress import say
from fathom.api.summary import describe_model
from fathom.core.errors import ArtifactError
from fathom.core.files import write_text
from fathom.core.objective import Objective
from fathom.data import read
from fathom.evaluate import from_json, report, score

if TYPE_CHECKING:
    import polars as pl

KEPT = ("config.toml", "evidence.json", "report.html")  # files that a loaded model hands on when it is saved elsewhere


@dataclass
class Model:
    """A trained model with its evidence. `fathom.fit` and `fathom.load` return one.

    Attributes:
        artifact: the objective, its preprocessing and what is known of them.
        entries: the catalog entries of model and objective, as `artifact.save` takes them.
        files: further files of the model's folder, by name.
    """

    artifact: artifacts.Artifact
    entries: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> Objective:
        """The trained objective, a plain `nn.Module`; its `model` is the architecture."""
        return self.artifact.module

    @property
    def folder(self) -> Path | None:
        """Where the model is kept; None until it is saved."""
        return self.artifact.folder

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured on rows that the model did not learn from."""
        return self.artifact.metrics

    def predict(self, rows: Any) -> Any:
        """Return a table with one row for each of `rows`, in their order: prediction and probabilities.

        Args:
            rows: a frame (polars or pandas), rows as dicts, one row as a dict, a path or a sample's name.

        Returns:
            A polars frame, or a pandas one where `rows` was one: `prediction`, and of a category `probability` and
            `probability.CLASS`; with several targets `prediction.TARGET` and so on.

        Raises:
            DataError: the rows cannot be read, or lack columns that the model needs.
        """
        table = read([rows] if _is_one_row(rows) else rows)
        for row in table.set_aside:
            say(f"warning: {row.place}: {row.reason}; it has no prediction")
        found: pl.DataFrame = self.artifact.predict(table.frame, folder=table.folder)
        return found.to_pandas() if _is_pandas(rows) else found

    def evaluate(self, source: Any) -> dict[str, Any]:
        """Return how good the model is on rows whose targets are known.

        Returns:
            rows, set_aside, and `targets`: by target, every metric with its 95 % bootstrap interval.
        """
        table = read(source)
        prepared = self.artifact.preprocess.transform(table.frame, folder=table.folder, with_targets=True, unseen=True)
        truth = {f.name: prepared.store.columns[f.target_key].numpy() for f in self.artifact.spec.targets}
        scores = score(self.artifact.spec.targets, self.artifact.outputs(prepared.store), truth)
        aside = [*table.set_aside, *prepared.set_aside]
        return {"source": table.origin, "rows": len(prepared.rows), "set_aside": len(aside), "targets": scores}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model's folder, whole or not at all, and return it."""
        self.artifact.folder = artifacts.save(
            folder,
            model=self.entries["model"],
            objective=self.entries["objective"],
            module=self.module,
            spec=self.artifact.spec,
            preprocess=self.artifact.preprocess,
            metrics=self.metrics,
            files=self.files,
            about=self.artifact.config.get("about", {}),
        )
        return self.artifact.folder

    def report(self) -> Path | str:
        """Write report.html anew from the evidence, and return its path; of an unsaved model, return the page."""
        if "evidence.json" not in self.files:
            raise ArtifactError(f"'{self.folder}' holds no evidence.json, from which a report is made.")
        page = report(from_json(self.files["evidence.json"].encode()))
        changed = page != self.files.get("report.html")
        self.files["report.html"] = page
        if self.folder is None:
            return page
        if changed:
            write_text(self.folder / "report.html", page)
            artifacts.seal(self.folder, "report.html")
        return self.folder / "report.html"

    def info(self) -> dict[str, Any]:
        """Return what the model is and how good it is, as plain values."""
        spec, module = self.artifact.spec, self.module
        return {
            "folder": str(self.folder) if self.folder else None,
            "model": self.artifact.config["model"],
            "objective": self.artifact.config["objective"],
            "parameters": sum(p.numel() for p in module.parameters()),
            "inputs": [{"name": f.name, "kind": f.kind, "source": f.source} for f in spec.inputs],
            "targets": [{"name": f.name, "kind": f.kind, "classes": list(f.classes)} for f in spec.targets],
            "training_rows": spec.rows,
            "metrics": self.metrics,
        }

    def summary(self) -> str:
        """Return the same in a few lines for a terminal."""
        try:
            return describe_model(self.info())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(f"metrics.json in '{self.folder}' is not as Fathom writes it: {error!r}.") from None


def load(
    folder: str | os.PathLike[str], *, model: nn.Module | None = None, objective: Objective | None = None
) -> Model:
    """Return the model in `folder`, checked; nothing in the folder is run.

    Args:
        model, objective: the user's own objects, where the model was trained with one.

    Raises:
        ArtifactError: the folder is damaged, hostile or no model.
    """
    found = artifacts.load(folder, model=model, objective=objective)
    assert found.folder is not None
    files = {name: _text(found.folder / name) for name in KEPT if (found.folder / name).is_file()}
    return Model(found, {"model": found.config["model"], "objective": found.config["objective"]}, files)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from None


def _is_one_row(rows: Any) -> bool:
    """A dict of plain values is one row; a dict of lists is a table."""
    return isinstance(rows, Mapping) and not any(isinstance(value, (list, tuple)) for value in rows.values())


def _is_pandas(rows: Any) -> bool:
    return type(rows).__module__.partition(".")[0] == "pandas"
