"""A trained model in a person's hands: predict, evaluate, save, report."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fathom import artifact as artifacts
from fathom.api.look import describe_set_aside, is_one_row, is_pandas, places
from fathom.api.own import from_file
from fathom.api.progress import say
from fathom.api.summary import describe_model
from fathom.api.transfer import ADAPTER
from fathom.api.translate import judged, looked_at, translated, translates, translations
from fathom.core.config import as_dict
from fathom.core.errors import ArtifactError, DataError
from fathom.core.files import write_text
from fathom.core.objective import Objective, predicted
from fathom.core.types import DataSpec
from fathom.data import Table, read
from fathom.data._split import PARTS
from fathom.evaluate import from_json, measures, report, score
from fathom.evaluate.evidence import SHOWN_SET_ASIDE

if TYPE_CHECKING:
    import polars as pl

SHOWN_NOTES = 10
KEPT = ("config.toml", "evidence.json", "report.html")  # files that a loaded model hands on when it is saved elsewhere


@dataclass
class Model:
    """A trained model with its evidence. `fathom.fit` and `fathom.load` return one.

    Attributes:
        artifact: the objective, its preprocessing and what is known of them.
        entries: the catalog entries of model and objective, as `artifact.save` takes them.
        files: further files of the model's folder, by name.
        adapter: what was learned beside a network that stayed as it was, as a safetensors file of its own; it is also
            in the weights.
    """

    artifact: artifacts.Artifact
    entries: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    adapter: bytes = b""

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
        """Return a table with one row for each of `rows` that could be read, in their order.

        What was made of odd values, and which rows were set aside while reading, is said on stderr.

        Args:
            rows: a frame (polars or pandas), rows as dicts, one row as a dict, a path or a sample's name.

        Returns:
            A polars frame, or a pandas one with its index where `rows` was one: `prediction`, and of a category
            `probability` and `probability.CLASS`; with several targets `prediction.TARGET` and so on. `problem` where
            a row could be read but not predicted. Where rows were set aside while reading (a broken line of a CSV),
            `row` tells the line in the file that each prediction is for. Of a folder, `file` tells the file.

        Raises:
            DataError: the rows cannot be read, or lack columns that the model needs.
        """
        table = self._read([rows] if is_one_row(rows) else rows)
        notes = list(table.notes)
        found: pl.DataFrame
        if translates(self.artifact):
            found = translated(self.artifact, table.frame, notes.append)
        else:
            found = self.artifact.predict(table.frame, folder=table.folder, tell=notes.append)
        _say(notes, [as_dict(row) for row in table.set_aside])
        found = found.with_columns(places(table))
        if not is_pandas(rows):
            return found
        lost = [row.row - 1 for row in table.set_aside if row.row is not None]
        answer = found.to_pandas()
        answer.index = rows.index.delete(lost)
        return answer

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Return what a language model or translator writes to a prompt, or a list of that for several.

        Args:
            options: tokens, temperature, top_k, top_p, beams, length_penalty, stop and seed: see
                `fathom.generate.Settings`.

        Raises:
            ConfigError: the model does not write texts, or an option is out of range.
        """
        from fathom.api.generate import of_artifact

        return of_artifact(self.artifact).generate(prompts, **options)

    def sample(
        self,
        count: int = 64,
        *,
        classes: str | Sequence[str] = (),
        prompts: str | Sequence[str] = (),
        seed: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """Return images that a trained generator makes, [N, C, H, W] in 0 … 1; the same seed gives the same.

        Args:
            classes: to make images of, in turn; none: all, where the model was told classes.
            prompts: what is to be seen, in words, in turn; of a model trained on images with captions.
            how: of a diffusion model, `steps` and `guidance`.

        Raises:
            ConfigError: the model makes no images, or a class, prompt or option is not for it.
        """
        from fathom.api.sample import sampled, tokens

        named, said = ([given] if isinstance(given, str) else list(given) for given in (classes, prompts))
        captions = tokens(said, self.artifact.preprocess, self.module) if said else None
        return sampled(self.module, self.artifact.spec, count, named, seed, captions, **how)

    def redraw(self, source: Any, count: int = 64) -> np.ndarray:
        """Return pictures [N, C, H', W'] in 0 … 1 of the first images of a source: of a model trained by
        translate_image each above what it makes of it, of an autoencoder the way from each one's code to the next's,
        of one trained by masked_image each above what is seen of it, above that with what the model puts back.

        Raises:
            ConfigError: the model does none of it. DataError: no image can be read.
        """
        from fathom.api.sample import made_of

        return made_of(self.artifact, self._read(source), count)

    def translate(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Return the translation of a text, or a list of those of several.

        Args:
            options: beams, length_penalty, tokens, temperature, top_k, top_p, stop and seed: see
                `fathom.generate.Settings`; beams and length_penalty are by default as the model was trained for.

        Raises:
            ConfigError: the model does not translate, or an option is out of range. DataError: a text is too long.
        """
        if isinstance(texts, str):
            return translations(self.artifact, [texts], **options)[0]
        return translations(self.artifact, texts, **options)

    def looked_at(self, text: str, translation: str | None = None) -> list[tuple[str, str, float]]:
        """Return of each word of a text's translation the word that a translator looked at most to write it, and the
        weight of its attention; see `fathom.api.translate.looked_at`.

        Args:
            translation: the model's own where none is given.
        """
        written = self.translate(text) if translation is None else translation
        return looked_at(self.artifact, text, written)

    def nearest(self, *words: str, minus: str | Sequence[str] = (), count: int = 10) -> list[tuple[str, float]]:
        """Return the words that are used most like others, with the cosine of their vectors: of a model with a vector
        for each word.

        Args:
            words: whose directions are added up. minus: words whose directions are taken away, as "man" is from
                "king" and "woman".

        Raises:
            ConfigError: the model has no such vectors, or none of a word.
        """
        from fathom.api.nearest import nearest

        return nearest(self.artifact, words, [minus] if isinstance(minus, str) else minus, count)

    def neighbours(self, rows: Any, among: Any, count: int = 5) -> Any:
        """Return a polars frame with the `count` nearest rows of `among` for each of `rows`, by the cosine of their
        vectors: `row` and `nearest`, numbered from 1, `cosine`, and of images `name` and `nearest_name`, their paths.
        Where both are the same source, no row is its own neighbour.

        Raises:
            ConfigError: the model has no vectors of rows. DataError: no row can be compared.
        """
        from fathom.api.nearest import neighbours

        return neighbours(self, rows, among, count)

    def embed(self, rows: Any) -> Any:
        """Return a polars frame with a row for each of `rows`: the vector that says where it lies among others, as
        columns `embedding.0`, … : near one another where the model finds the rows alike.

        Arguments, errors and the other columns are as in `predict`; of images alone, where it learned from images with
        captions, the captions are not needed.
        """
        from fathom.api.embed import embed

        return self._told(self._read([rows] if is_one_row(rows) else rows), embed)

    def match(self, rows: Any, captions: Sequence[str]) -> Any:
        """Return a polars frame with a row for each image: the caption that fits best (`prediction`), and how probable
        each is. The captions need not have been seen in training.

        Raises:
            ConfigError: the model was not trained on images with captions, or fewer than two captions are given.
        """
        from fathom.api.embed import match

        table = self._read([rows] if is_one_row(rows) else rows)
        return self._told(table, partial(match, captions=captions))

    def _told(self, table: Table, ask: Callable[..., Any]) -> Any:
        """Return what `ask` makes of a table that was read, and say on stderr what is to be known of its rows."""
        notes = list(table.notes)
        found = ask(self.artifact, table, notes=notes)
        _say(notes, [as_dict(row) for row in table.set_aside])
        return found

    def evaluate(self, source: Any) -> dict[str, Any]:
        """Return how good the model is on rows whose targets are known; of a source that marks its own test rows, on
        these alone.

        Returns:
            source, rows (how many were scored), notes, set_aside (the first: where, row, column, reason),
            set_aside_count, `targets`: by target, every metric with its 95 % bootstrap interval, and, of an objective
            that predicts no targets, `measures`: the mean of each of its own.

        Raises:
            DataError: the source cannot be read, lacks columns, or has no row that can be scored.
        """
        table = self._read(source)
        rows, notes = self._scored(table)
        aims = predicted(self.module, self.artifact.spec)
        prepared = self.artifact.preprocess.transform(
            table.frame,
            rows=rows,
            folder=table.folder,
            with_targets=bool(self.artifact.spec.targets),
            unseen=bool(aims),
        )
        notes += [*table.notes, *prepared.notes]
        aside = [*table.set_aside, *(replace(row, where=table.origin) for row in prepared.set_aside)]
        first = [as_dict(row) for row in aside[:SHOWN_SET_ASIDE]]
        if not len(prepared.rows):
            raise DataError(f"No row of {table.origin} can be scored; the first: {first[0]['reason']}.")
        _say(notes, first, len(aside))
        truth = {f.name: prepared.store.columns[f.target_key].numpy() for f in aims}
        scores = score(aims, self.artifact.outputs(prepared.store), truth) if aims else {}
        own = {} if aims else measures(self.artifact.measured(prepared.store), summary=self.module.summary)
        own |= judged(self.artifact, table.frame[prepared.rows])
        return {
            "source": table.origin,
            "rows": len(prepared.rows),
            "notes": notes,
            "set_aside": first,
            "set_aside_count": len(aside),
            "targets": scores,
            "measures": own,
        }

    def _read(self, source: Any) -> Table:
        """Read a source as that of the training rows was read."""
        return read(source, text=self.artifact.preprocess.text_columns)

    def _scored(self, table: Table) -> tuple[np.ndarray | None, list[str]]:
        """Return the positions of the rows to score the model by, None for all, and what the user should know of it."""
        if table.split is not None:
            words = table.frame[table.split].cast(str).str.strip_chars().str.to_lowercase()
            test = words.is_in([word for word, part in PARTS.items() if part == "test"]).arg_true().to_numpy()
            if len(test):
                told = f"Only the {len(test):,} rows that column '{table.split}' marks as test are scored."
                return test.astype(np.int64), [told]
        source = self._trained_on()
        if source and Path(source).absolute() == Path(table.origin).absolute():
            return None, [f"warning: the model was trained on rows of {table.origin}; on them its scores flatter it"]
        return None, []

    def _trained_on(self) -> str:
        """Return the path or sample that the model was trained on, if its config.toml tells one."""
        try:
            source = tomllib.loads(self.files.get("config.toml", ""))["data"]["source"]
        except (tomllib.TOMLDecodeError, KeyError, TypeError, RecursionError):  # of a frame, or by another hand
            return ""
        return source if isinstance(source, str) else ""

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
            files={**self.files, **({ADAPTER: self.adapter} if self.adapter else {})},
            about=self.artifact.config.get("about", {}),
        )
        return self.artifact.folder

    def report(self) -> Path | str:
        """Write report.html anew from the evidence, and return its path; of an unsaved model, return the page."""
        if "evidence.json" not in self.files:
            raise ArtifactError(f"'{self.folder}' holds no evidence.json, from which a report is made.")
        evidence = from_json(self.files["evidence.json"].encode())
        try:
            page = report(evidence)
        except Exception as error:  # what a file that was edited by hand makes of the page can be any
            where = f" in '{self.folder}'" if self.folder else ""
            raise ArtifactError(f"evidence.json{where} is not as Fathom writes it: {error!r}.") from None
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
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | Callable[[DataSpec], nn.Module] | str | None = None,
    objective: Objective | None = None,
) -> Model:
    """Return the model in `folder`, checked; nothing in the folder is run.

    Args:
        model, objective: the user's own objects, where the model was trained with one; of a model also the function
            from the DataSpec that makes it, or where that stands: "path.py:build".

    Raises:
        ArtifactError: the folder is damaged, hostile or no model.
    """
    if isinstance(model, str):
        model = from_file(model)
    found = artifacts.load(folder, model=model, objective=objective)
    assert found.folder is not None
    files = {name: _text(found.folder / name) for name in KEPT if name in found.files}
    adapter = (found.folder / ADAPTER).read_bytes() if ADAPTER in found.files else b""
    return Model(found, {"model": found.config["model"], "objective": found.config["objective"]}, files, adapter)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from None


def _say(notes: Sequence[str], aside: Sequence[dict[str, Any]], count: int | None = None) -> None:
    """Say on stderr what the reader of predictions or scores should know: a few lines at most."""
    for note in notes[:SHOWN_NOTES]:
        say(note)
    if len(notes) > SHOWN_NOTES:
        say(f"… and {len(notes) - SHOWN_NOTES:,} more such notes")
    for line in describe_set_aside(aside, count=count):
        say(line)
