"""Translations by a trained model, and how good they are.

translations   texts -> what the model makes of them, the best of several beams
translated     the same of a table
looked_at      which words of a text each word of its translation was written from
bleu           translations and true ones -> BLEU and chrF with their intervals
judged         the same of a model and rows whose true translations are known, where sacrebleu is installed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from fathom.api.generate import of_artifact, settings
from fathom.artifact import Artifact
from fathom.core.errors import ConfigError
from fathom.core.objective import with_role
from fathom.objectives.translate import Translate

JUDGED = 1_000  # texts, evenly spread, that are translated to judge a model
RESAMPLES = 300
NEEDED = "BLEU is computed by sacrebleu, which is not installed: pip install sacrebleu."


def translates(artifact: Artifact) -> bool:
    return with_role(artifact.module, Translate) is not None


def translations(artifact: Artifact, texts: Sequence[str], cut: bool = False, **options: Any) -> list[str]:
    """Return the translation of each text; of a blank one, a blank one.

    Args:
        cut: texts that are too long lose their end, rather than being refused.
        options: of `fathom.generate.Settings`; beams and length_penalty are by default those of the objective.

    Raises:
        ConfigError: the model does not translate, or an option is out of range. DataError: a text is too long.
    """
    task: Translate | None = with_role(artifact.module, Translate)
    if task is None:
        raise ConfigError(
            "The model does not translate: train one with --objective translate on a text column to read and, as the "
            "target, one to write."
        )
    given = {name: value for name, value in options.items() if value is not None}
    if not {"temperature", "top_k", "top_p"} & set(given):
        given.setdefault("beams", task.config.beams)
    given.setdefault("length_penalty", task.config.length_penalty)
    given.setdefault("tokens", task.written.shape[0] - 1)
    author, chosen = of_artifact(artifact, cut), settings(**given)
    found = iter(author.texts([text for text in texts if text.strip()], chosen))
    return [next(found).text.strip() if text.strip() else "" for text in texts]


def translated(artifact: Artifact, frame: pl.DataFrame, tell: Callable[[str], None]) -> pl.DataFrame:
    """Return a table with the `prediction` for each row of a frame, in its order.

    Raises:
        DataError: the frame lacks the column that is read.
    """
    for note in artifact.preprocess.transform(frame).notes:  # which says what is missing, and what is cut
        tell(note)
    texts = frame.get_column(artifact.spec.inputs[0].source).cast(pl.String, strict=False).fill_null("").to_list()
    return pl.DataFrame({"prediction": pl.Series(translations(artifact, texts, cut=True), dtype=pl.String)})


@torch.inference_mode()
def looked_at(artifact: Artifact, text: str, translation: str) -> list[tuple[str, str, float]]:
    """Return of each word of a translation the word of the text that the model looked at most, and how much: the
    weight of attention to all its tokens, the mean over layers, heads and the tokens of the word that is written.

    Raises:
        ConfigError: the model does not translate, or tells nothing of its attention. DataError: the text is too long.
    """
    if not translates(artifact):
        raise ConfigError("The model does not translate, and so has no words of one language to lay beside another's.")
    author, model = of_artifact(artifact), artifact.module.model
    read, written = artifact.preprocess.texts[0], artifact.preprocess.written[0]
    given = author.encode(text)
    row = np.zeros((1, written.length), dtype=np.int32)
    written.encode(pl.Series([translation]), row)
    tokens = [int(token) for token in row[0] if token != written.special[0]]
    seen: list[Tensor] = []
    parts = [module for module in model.modules() if hasattr(module, "weights") and hasattr(module, "project_memory")]
    hooks = [
        part.register_forward_pre_hook(lambda part, values: seen.append(part.weights(*values)))
        for part in parts
        if part.project_memory is not None
    ]
    try:
        memory = model.encode({artifact.spec.inputs[0].key: torch.tensor([given])})  # type: ignore[operator]
        model.decode(torch.tensor([tokens[:-1]]), memory)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ConfigError(f"A {type(model).__name__} does not tell what it looks at.")
    weights = torch.stack(seen).mean((0, 1, 2))  # [T, S]; row t is where token t + 1 was written
    found = []
    sources = _words(read, given)
    for word, places in _words(written, tokens):
        share = weights[[place - 1 for place in places]].mean(0)  # [S]
        sums = [float(share[list(those)].sum()) for _, those in sources]
        best = max(range(len(sums)), key=sums.__getitem__)
        found.append((word, sources[best][0], sums[best]))
    return found


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
        half, mean = (float(score._ci), float(score._mean)) if len(found) > 1 else (0.0, float(score.score))
        told[name] = {"value": float(score.score), "low": mean - half, "high": mean + half, "n": len(found)}
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


def _words(encoder: Any, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Return the words of a row of tokens, each with the places of its tokens; START and END are none."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token in encoder.special:
            continue
        if not words or encoder.trained.id_to_token(token).startswith("Ġ"):
            words.append([])
        words[-1].append(place)
    return [(encoder.trained.decode([tokens[place] for place in places]).strip(), places) for places in words]
