"""Translations by a trained model, and how good they are.

translations   texts -> what the model makes of them, the best of several beams
translated     the same of a table
bleu           translations and true ones -> BLEU and chrF with their intervals
judged         the same of a model and rows whose true translations are known, where sacrebleu is installed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl

from fathom.api.generate import of_artifact, settings
from fathom.artifact import Artifact
from fathom.core.errors import ConfigError
from fathom.objectives.translate import Translate

JUDGED = 1_000  # texts, evenly spread, that are translated to judge a model
RESAMPLES = 300
NEEDED = "BLEU is computed by sacrebleu, which is not installed: pip install sacrebleu."


def translates(artifact: Artifact) -> bool:
    return isinstance(artifact.module, Translate)


def translations(artifact: Artifact, texts: Sequence[str], cut: bool = False, **options: Any) -> list[str]:
    """Return the translation of each text.

    Args:
        cut: texts that are too long lose their end, rather than being refused.
        options: of `fathom.generate.Settings`; beams and length_penalty are by default those of the objective.

    Raises:
        ConfigError: the model does not translate, or an option is out of range. DataError: a text is too long.
    """
    task = artifact.module
    if not isinstance(task, Translate):
        raise ConfigError(
            "The model does not translate: train one with --objective translate on a text column to read and, as the "
            "target, one to write."
        )
    given = {name: value for name, value in options.items() if value is not None}
    if not {"temperature", "top_k", "top_p"} & set(given):
        given.setdefault("beams", task.config.beams)
    given.setdefault("length_penalty", task.config.length_penalty)
    given.setdefault("tokens", task.written.shape[0] - 1)
    return [text.text.strip() for text in of_artifact(artifact, cut).texts(texts, settings(**given))]


def translated(artifact: Artifact, frame: pl.DataFrame, tell: Callable[[str], None]) -> pl.DataFrame:
    """Return a table with the `prediction` for each row of a frame, in its order.

    Raises:
        DataError: the frame lacks the column that is read.
    """
    for note in artifact.preprocess.transform(frame).notes:  # which says what is missing, and what is cut
        tell(note)
    texts = frame.get_column(artifact.spec.inputs[0].source).cast(pl.String, strict=False).fill_null("").to_list()
    return pl.DataFrame({"prediction": pl.Series(translations(artifact, texts, cut=True), dtype=pl.String)})


def bleu(found: Sequence[str], truth: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return BLEU and chrF of translations against true ones, from 0 to 100, each with its 95 % bootstrap interval.

    Source: Post, A Call for Clarity in Reporting BLEU Scores, 2018, whose package computes them.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    if find_spec("sacrebleu") is None:
        raise ConfigError(NEEDED)
    from sacrebleu.metrics import BLEU, CHRF

    told = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        score: Any = metric.corpus_score(list(found), [list(truth)], n_bootstrap=RESAMPLES if len(found) > 1 else 1)
        low, high = (score._mean - score._ci, score._mean + score._ci) if len(found) > 1 else (None, None)
        told[name] = {"value": float(score.score), "low": low, "high": high, "n": len(found)}
    return told


def judged(artifact: Artifact, frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Return BLEU and chrF over at most `JUDGED` rows of a frame that holds the true translations, evenly spread.

    Of a model that does not translate, and without sacrebleu, nothing.
    """
    if not translates(artifact) or find_spec("sacrebleu") is None or not len(frame):
        return {}
    count = min(JUDGED, len(frame))
    some = frame[np.arange(count) * len(frame) // count]
    columns = (artifact.spec.inputs[0].source, artifact.spec.targets[0].source)
    given, truth = (some[name].cast(pl.String).fill_null("").to_list() for name in columns)
    return bleu(translations(artifact, given, cut=True), truth)
