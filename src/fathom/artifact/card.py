"""The model card: a README.md with what was measured, and front matter that the Hugging Face Hub reads.

Only what the artifact knows is said. The structure of the metrics is read with tolerance: what is missing or of
another form is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fathom.core.types import DataSpec, Field

SHOWN_COLUMNS, SHOWN_METRICS = 30, 6
NAMES = {"text": "text-classification", "image": "image-classification"}  # the Hub's tasks
SPLITS = ("test", "validation", "valid", "training", "train")  # the first that was measured is the one that counts


def render(config: Mapping[str, Any], spec: DataSpec, metrics: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        config: config.json; `about` may give `name`, `source`, `license` and `notes`.
        metrics: {"test": {target: {"n", "metrics": {name: {"value", "low", "high"}}}}, "judged_on": which rows these
            were, "baselines": […], "verdict": {target: {"sentence"}}}.
        files: further files of the artifact, by name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    about = config.get("about") or {}
    split, scores = _scores(metrics)
    context = {
        "front_matter": _yaml(_front_matter(config, spec, split, scores)),
        "title": _text(_name(config, spec)),
        "summary": _summary(config, spec, not metrics.get("measures")),
        "source": _text(_source(about)),
        "rows": f"{spec.rows:,}" if spec.rows else "",
        "columns": _columns(spec),
        "more_columns": max(0, len(spec.inputs) - SHOWN_COLUMNS),
        "results": [_result(name, score, split, metrics) for name, score in scores.items()],
        "results_note": _note(scores),
        "measures": _measures(metrics),
        "measured_on": _text(metrics.get("judged_on", "")),
        "limitations": _limitations(spec, split, scores, about, files),
        "answer": "what it makes of each row"
        if not scores
        else "`prediction`" + (", `probability`" if any(t.kind == "category" for t in spec.targets) else ""),
    }
    environment = Environment(  # Markdown, not HTML: `_text` does the escaping
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return re.sub(r"\n{3,}", "\n\n", environment.get_template("card.md").render(context))


def _front_matter(config: Mapping[str, Any], spec: DataSpec, split: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    about = config.get("about") or {}
    front: dict[str, Any] = {}
    if isinstance(about.get("license"), str) and about["license"]:
        front["license"] = about["license"]
    task = _task(spec)
    front |= {"library_name": "fathom", "tags": ["fathom", *sorted(spec.kinds)]}
    if task:
        front["pipeline_tag"] = task
    found = []
    for name, score in scores.items():
        values = [
            {"type": metric, "value": value, "name": f"{metric} of {name}"} for metric, value, *_ in _measured(score)
        ]
        if values:
            source = _source(about) or "the user's own data"
            dataset = {"type": "tabular" if not task else task.split("-")[0], "name": source, "split": split}
            found.append({"task": {"type": task or "other"}, "dataset": dataset, "metrics": values})
    if found:
        front["model-index"] = [{"name": _name(config, spec), "results": found}]
    return front


def _task(spec: DataSpec) -> str:
    """Return the Hub's name for what the model does, or nothing where it has none."""
    if len(spec.targets) != 1:
        return ""
    kind = spec.targets[0].kind
    (only,) = spec.kinds if len(spec.kinds) == 1 else ("number",)
    if kind == "category":
        return NAMES.get(only, "tabular-classification")
    return "tabular-regression" if kind == "number" and only not in NAMES else ""


def _summary(config: Mapping[str, Any], spec: DataSpec, judged: bool) -> str:
    model = config["model"].get("name") or config["model"].get("class", "a model of the user's own")
    targets = ", ".join(f"{_text(t.name)} ({_kind(t)})" for t in spec.targets)
    objective = config.get("objective") or {}
    task = objective.get("name") or objective.get("class", "")
    learned = f"that predicts {targets}" if targets else "that has no target column"
    learned = learned if judged else f"for `{_code(task)}`"
    return (
        f"A `{_code(model)}` model {learned} from {len(spec.inputs)} input "
        f"{'column' if len(spec.inputs) == 1 else 'columns'} ({', '.join(sorted(spec.kinds))}), "
        f"trained with Fathom {_code(config.get('fathom', ''))}."
    )


def _columns(spec: DataSpec) -> list[dict[str, str]]:
    rows = [(t, "target") for t in spec.targets] + [(f, "input") for f in spec.inputs[:SHOWN_COLUMNS]]
    return [{"name": _text(field.name), "kind": _kind(field), "role": role} for field, role in rows]


def _kind(field: Field) -> str:
    if field.kind == "category":
        return f"category of {len(field.classes)} classes"
    if field.kind == "image" and len(field.shape) == 3:
        return "image of {} × {} pixels, {} channels".format(*field.shape[1:], field.shape[0])
    return f"text of at most {field.shape[0]} tokens" if field.kind == "text" and field.shape else field.kind


def _scores(metrics: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the rows that the model was judged by, and its scores there by target."""
    for split in SPLITS:
        scores = metrics.get(split)
        if isinstance(scores, Mapping):
            found = {str(name): score for name, score in scores.items() if any(True for _ in _measured(score))}
            if found:
                return str(metrics.get("judged_on", split)), found
    return "", {}


def _measured(score: Any) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Yield (name, value, low, high) of each metric that has a value; the main one first."""
    metrics = score.get("metrics") if isinstance(score, Mapping) else None
    if not isinstance(metrics, Mapping):
        return
    main = score.get("main")
    for name in sorted(metrics, key=lambda name: name != main):
        entry = metrics[name]
        entry = entry if isinstance(entry, Mapping) else {"value": entry}
        value, low, high = (_number(entry.get(key)) for key in ("value", "low", "high"))
        if value is not None:
            yield str(name), value, low, high


def _result(name: str, score: Mapping[str, Any], split: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    shown = [metric for metric, *_ in _measured(score)][:SHOWN_METRICS]
    table = [{"name": "**this model**", "cells": _cells(score, shown)}]
    baselines = metrics.get("baselines")
    for other in baselines if isinstance(baselines, list) else []:
        if isinstance(other, Mapping) and other.get("target", name) == name:
            row = {"name": _text(other.get("name", "")), "cells": _cells(other, shown)}
            if any(cell != "–" for cell in row["cells"]):
                table.append(row)
    verdicts = metrics.get("verdict")
    verdict = verdicts.get(name) if isinstance(verdicts, Mapping) else None
    return {
        "target": _text(name),
        "rows": f"{score['n']:,}" if isinstance(score.get("n"), int) else "the",
        "split": split,
        "metrics": [_text(metric.replace("_", " ")) for metric in shown],
        "table": table,
        "verdict": _text(verdict.get("sentence", "")) if isinstance(verdict, Mapping) else "",
    }


def _measures(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the means of an objective's own measures, where it was not judged by targets."""
    found = metrics.get("measures")
    named = {"metrics": found} if isinstance(found, Mapping) else {}
    names = [name for name, *_ in _measured(named)]
    cells = _cells(named, names)
    return [{"name": _text(name.replace("_", " ")), "cell": cell} for name, cell in zip(names, cells, strict=True)]


def _note(scores: Mapping[str, Any]) -> str:
    levels = {score.get("confidence", 0.95) for score in scores.values()} or {0.95}
    level = next((f"{100 * value:.4g} % " for value in levels if _number(value) is not None), "")
    return f"In brackets: how far other such rows might have moved the number ({level}interval)."


def _cells(score: Mapping[str, Any], shown: list[str]) -> list[str]:
    found = {name: (value, low, high) for name, value, low, high in _measured(score)}
    cells = []
    for name in shown:
        value, low, high = found.get(name, (None, None, None))
        interval = f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
        cells.append("–" if value is None else f"{value:.4g}{interval}")
    return cells


def _limitations(
    spec: DataSpec, split: str, scores: Mapping[str, Any], about: Mapping[str, Any], files: Mapping[str, Any]
) -> list[str]:
    """What follows from the numbers; what only a person can know is said to be unknown."""
    limits = []
    if scores and split in ("training", "train"):
        limits.append("It was measured on the rows it learned from: on new rows it will do worse.")
    elif scores and split != "test":
        limits.append(f"It was measured on the {split} rows, by which it was also chosen: the results flatter it.")
    for target in spec.targets:
        if target.kind == "category":
            known = f"the {len(target.classes)} classes of {_text(target.name)}"
            limits.append(f"Whatever it is shown, it answers with one of {known}.")
            rare = [c for c, count in zip(target.classes, target.counts, strict=False) if count < 20]
            if rare:
                few = ", ".join(_text(c) for c in rare[:10])
                limits.append(f"Classes with fewer than 20 training rows: {few}{' …' if len(rare) > 10 else ''}.")
    notes = about.get("notes")
    limits += [_text(note) for note in notes if note] if isinstance(notes, list) else []
    limits.append("How far its data stand for those that it will meet was not examined.")
    if "report.html" in files:
        fails = ": its most confident mistakes, class by class" if scores else ""
        limits.append(f"`report.html` shows {'where it fails' if scores else 'what it makes'}{fails}.")
    return limits


def _name(config: Mapping[str, Any], spec: DataSpec) -> str:
    about = config.get("about") or {}
    if about.get("name"):
        return " ".join(str(about["name"]).split())
    what = " and ".join(t.name for t in spec.targets) or "features"
    return f"{what}, by {config['model'].get('name') or 'a model of its own'}"


def _source(about: Mapping[str, Any]) -> str:
    """Return what it was trained on, without the folders that lead there: they are nobody's business."""
    return re.split(r"[/\\]", str(about.get("source") or "").rstrip("/\\"))[-1]


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _text(value: Any) -> str:
    """Return text of the user's as Markdown shows it: one line, no markup, no columns of a table."""
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(line.split()))


def _code(value: Any) -> str:
    """Return text for between backticks."""
    return " ".join("".join(c if c.isprintable() and c not in "`|" else " " for c in str(value)).split())


def _yaml(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML: each value as JSON, which YAML holds, with nothing that only JSON can hold."""
    lines = []
    for key, value in values.items():
        text = json.dumps(_printable(value), ensure_ascii=False)
        lines.append(f"{key}: {text}")
    return "\n".join(lines)


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(c if c.isprintable() else " " for c in value)
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value
