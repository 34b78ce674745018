"""The report: one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fathom.core.errors import ArtifactError
from fathom.evaluate import _format, plots
from fathom.evaluate.evidence import Evidence, RunEvidence, TargetEvidence
from fathom.evaluate.score import METRICS

TEMPLATE = Path(__file__).with_name("report.html")
FAINT = 1.8  # by which the colour of a mistake is strengthened
WHOLE_MATRIX = 20  # classes; of more, the most confused pairs are listed instead
TEXTS, TABLE_ROWS = 9, 15  # mistakes shown of texts and of tables; the rest is folded away or left out
MISTAKE_COLUMNS = 14
CLASS_ROWS, CLASSES_FOLDED = 30, 170  # of the table of classes: shown, and folded away; the rest is left out
COLUMNS, COLUMNS_FOLDED = 40, 960
SLICES = 60
NOT_MEASURES = {"epoch", "step", "learning_rate", "seconds", "seconds_left", "samples_per_second", "best"}
SHARES = {"error", "accuracy"}  # measures of epochs that are read in percent
JUDGED = {
    "test": "rows that it never saw",
    "validation": "validation rows, by which its best weights were chosen: it may do worse on others",
    "training": "rows that it learned from: it will do worse on others",
}
CAVEATS = {  # of the comparison with simple methods
    "validation": "The model's weights may have been chosen by these rows, those of the simple methods were not: the "
    "comparison leans towards the model, and only test rows can settle it.",
}
PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def report(evidence: Evidence) -> str:
    """Return the page. All that comes from data is escaped; the page itself forbids scripts and connections.

    Raises:
        ArtifactError: something that the page shows is missing or malformed, as in a file that was changed by hand.
    """
    from jinja2 import TemplateError

    try:
        return _page(evidence)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, TemplateError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ArtifactError(
            f"The evidence is incomplete or malformed, so that no report can be made of it ({what}); "
            "restore evidence.json as it was written beside the model, or train again."
        ) from error


def _page(evidence: Evidence) -> str:
    return _template().render(
        evidence=evidence,
        title=evidence.title or f"{evidence.data.source or 'A model'}: {', '.join(t.name for t in evidence.targets)}",
        targets=[_target(target, evidence.run.seconds) for target in evidence.targets],
        measures=[_measure_row(name, value) for name, value in evidence.measures.items()],
        curves=_curves(evidence.run),
        columns=_columns(evidence),
        during=_by_title(evidence.during),
        balance=[_balance(name, counts) for name, counts in evidence.data.classes.items() if counts],
        judged=JUDGED.get(evidence.judged_on, f"{evidence.judged_on} rows"),
        caveat=CAVEATS.get(evidence.judged_on, ""),
        split_total=sum(evidence.data.splits.values()) or 1,
    )


def _by_title(pictures: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return pictures of several passes, those of one title together."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for picture in pictures:
        found.setdefault(picture["title"], []).append(picture)
    return found


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "amount": _format.amount,
        "number": _format.number,
        "percent": _format.percent,
        "duration": _format.duration,
        "setting": _format.setting,
        "shorten": _format.shorten,
        "png": lambda uri: uri if PNG.fullmatch(str(uri)) else "",
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _target(target: TargetEvidence, seconds: float) -> dict[str, Any]:
    """Return what the template shows of one target."""
    scored = target.score
    main = scored["main"]
    best = scored["metrics"].get(main, {"value": None, "low": None, "high": None})
    return {
        "evidence": target,
        "category": target.kind == "category",
        "n": scored["n"],
        "unseen": _unseen(scored),
        "label": METRICS[main].label,
        "value": _format.metric(main, best["value"]),
        "interval": _format.interval(main, best["low"], best["high"]) if best["low"] is not None else "",
        "metrics": [_metric_row(name, value, main) for name, value in scored["metrics"].items()],
        "chart": _rivals(target, main, best),
        "rivals": target.baselines,
        "costs": _costs(target, seconds),
        "matrix": _matrix(scored.get("confusion")),
        "per_class": _per_class(scored.get("per_class", [])),
        "calibration": _calibration(target),
        "mistakes": _mistakes(target),
        "slices": _slices(target),
    }


def _unseen(scored: Mapping[str, Any]) -> str:
    """Return what is to be said of rows of a class never seen in training."""
    count = scored.get("unseen", 0)
    if not count:
        return ""
    rows = "1 row has" if count == 1 else f"{count:,} rows have"
    return (
        f"{rows} a class never seen in training; each counts as an error in the accuracy, "
        "and the other metrics are of the rest."
    )


def _metric_row(name: str, value: Mapping[str, Any], main: str) -> dict[str, Any]:
    known = METRICS.get(name)
    return {
        "label": known.label if known else name,
        "better": known.better if known else "",
        "value": _format.metric(name, value["value"]),
        "interval": _format.interval(name, value["low"], value["high"]),
        "main": name == main,
    }


def _measure_row(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    interval = _format.interval(name, value["low"], value["high"]) if value["low"] is not None else ""
    return {
        "label": name.replace("_", " "),
        "value": _format.number(value["value"]),
        "interval": interval,
        "n": value["n"],
    }


def _rivals(target: TargetEvidence, main: str, best: Mapping[str, Any]) -> Any:
    rows = [{"name": "this model", "kind": "model", **best}]
    for rival in target.baselines:
        value = rival["metrics"].get(main) or {"value": None, "low": None, "high": None}
        rows.append({"name": rival["name"], "kind": "other", **value})
    better = METRICS[main].better
    rows.sort(key=lambda r: (r["value"] is None, (r["value"] or 0) * (-1 if better == "higher" else 1)))
    words = "; ".join(f"{r['name']} {_format.metric(main, r['value'])}" for r in rows)
    return plots.dots(rows, main, f"{METRICS[main].label}, {better} is better: {words}")


def _costs(target: TargetEvidence, seconds: float) -> str:
    """Return how long the model and the simple methods took, in words."""
    times = [("this model", seconds)] if seconds else []
    times += [(r["name"], r["seconds"]) for r in target.baselines if not r["failed"]]
    return ", ".join(f"{name} {_format.duration(taken)}" for name, taken in times)


def _matrix(confusion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the confusion matrix, or only the worst pairs of very many classes.

    A cell's tone is its share of its row; mistakes, which are rare, are toned more strongly.
    """
    if not confusion:
        return None
    classes, counts = confusion["classes"], confusion["counts"]
    if len(classes) > WHOLE_MATRIX or confusion["of"] > len(classes):
        return {"pairs": confusion["pairs"], "of": confusion["of"], "rows": []}
    rows = []
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = sum(row) or 1
        cells = [
            {"count": n, "right": i == j, "tone": round(min(1.0, n / total * (1 if i == j else FAINT)), 3)}
            for j, n in enumerate(row)
        ]
        rows.append({"name": name, "cells": cells, "total": sum(row)})
    return {"classes": classes, "rows": rows, "of": confusion["of"], "pairs": confusion["pairs"]}


def _per_class(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of the classes that occur, the worst first where there are many."""
    least = min((row["recall_low"] for row in table if row["support"]), default=0.0)
    rows = [
        row | {"whisker": plots.whisker(row["recall_low"], row["recall_high"], row["recall"], (least, 1.0))}
        for row in table
        if row["support"]
    ]
    if len(rows) > CLASS_ROWS:
        rows.sort(key=lambda row: row["f1"] or 0)
    return {"count": len(rows), "shown": rows[:CLASS_ROWS], "folded": rows[CLASS_ROWS:][:CLASSES_FOLDED]}


def _calibration(target: TargetEvidence) -> dict[str, Any]:
    found = target.calibration
    if not found:
        return {}
    if target.kind != "category":
        chart = plots.scatter(found["points"], found["bands"], target.name)
        return {"chart": chart, "words": _residual_words(found)}
    chart = plots.reliability(found["bins"], "How often the model was right, by how sure it was")
    return {"chart": chart, "words": _calibration_words(found)}


def _calibration_words(found: Mapping[str, Any]) -> str:
    if found["ece"] is None:
        return ""
    lean = found["confidence"] - found["accuracy"]
    gap = (
        f"On average it says {_format.percent(found['confidence'])} and is right {_format.percent(found['accuracy'])} "
        f"of the time; the expected calibration error is {_format.percent(found['ece'])}. "
    )
    if found["ece"] <= found["expected_high"]:
        return gap + (
            f"A perfectly calibrated model would show about {_format.percent(found['expected'])} on so many rows: "
            "its probabilities can be taken at their word."
        )
    way = "surer than it should be" if lean > 0 else "less sure than it could be"
    return gap + (
        f"A perfectly calibrated model would show about {_format.percent(found['expected'])} on so many rows, "
        f"so it is {way}."
    )


def _residual_words(found: Mapping[str, Any]) -> str:
    if found["bias"] is None:
        return ""
    side = "too high" if found["bias"] > 0 else "too low"
    return (
        f"Half of the predictions are within {_format.number(found['within']['50'])} of the truth, nine in ten within "
        f"{_format.number(found['within']['90'])}. On average they are {_format.number(abs(found['bias']))} {side}. "
        "The band holds the middle 90 % of the true values around each prediction."
    )


def _mistakes(target: TargetEvidence) -> dict[str, Any]:
    """Return the mistakes as cards of images or texts, or, of rows of a table, as one table."""
    cards = [_mistake(mistake, target.kind) for mistake in target.mistakes]
    if any(card["images"] for card in cards):
        return {"cards": cards, "style": "", "folded": [], "table": [], "columns": []}
    if any(card["texts"] for card in cards):
        return {"cards": cards[:TEXTS], "style": "wide", "folded": cards[TEXTS:], "table": [], "columns": []}
    columns = list(dict.fromkeys(name for card in cards for name in card["columns"]))[:MISTAKE_COLUMNS]
    return {"cards": [], "style": "", "folded": [], "table": cards[:TABLE_ROWS], "columns": columns}


def _mistake(mistake: Mapping[str, Any], kind: str) -> dict[str, Any]:
    shown = {key: mistake.get(key) or {} for key in ("images", "texts", "columns")}
    if kind == "category":
        said, truth = mistake["predicted"], mistake["truth"]
        sure = f"{_format.percent(mistake['probability'], 1)} sure"
        return {**shown, "said": said, "truth": truth, "detail": sure, "row": mistake["row"]}
    said, truth = _format.number(mistake["predicted"]), _format.number(mistake["truth"])
    detail = f"{_format.number(abs(mistake['error']))} too {'high' if mistake['error'] > 0 else 'low'}"
    return {**shown, "said": said, "truth": truth, "detail": detail, "row": mistake["row"]}


def _slices(target: TargetEvidence) -> dict[str, Any]:
    """Return the parts that do worse, and all of them, with the error as it is read for this kind of target."""
    share = target.kind == "category"
    top = max((part["high"] for part in target.slices), default=1.0) or 1.0
    rows = [
        part
        | {
            "shown": _format.percent(part["error"]) if share else _format.number(part["error"]),
            "rest": _format.percent(part["others"]) if share else _format.number(part["others"]),
            "whisker": plots.whisker(part["low"], part["high"], part["error"], (0.0, top)),
        }
        for part in target.slices
    ]
    label = "share wrong" if share else "mean absolute error"
    return {"worse": [r for r in rows if r["worse"]][:12], "rows": rows[:SLICES], "label": label, "count": len(rows)}


def _curves(run: RunEvidence) -> list[dict[str, Any]]:
    """Return one chart for each measure of the epochs: the loss first, of training and validation rows."""
    measures: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}}
    for epoch in run.epochs:
        for name, value in epoch.items():
            if name in NOT_MEASURES or not isinstance(value, (int, float)):
                continue
            measure = name.removeprefix("train_")
            part = "validation" if measure == name else "training"
            measures.setdefault(measure, {}).setdefault(part, []).append((float(epoch["epoch"]), float(value)))
    drawn = []
    for measure, series in measures.items():
        share = measure in SHARES and all(0 <= value <= 1 for points in series.values() for _, value in points)
        chart = plots.curves(series, f"{measure} by epoch", share=share, mark=run.best_epoch)
        if chart:
            drawn.append({"title": measure[:1].upper() + measure[1:], "chart": chart})
    return drawn


def _balance(name: str, counts: Mapping[str, int]) -> str:
    """Return how even a target's classes are, in words."""
    least, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
    start = f"{name}: {len(counts):,} classes"
    if counts[least] == counts[most]:
        return f"{start} of {counts[most]:,} training rows each."
    small, large = (_format.shorten(label, 40) for label in (least, most))
    return f"{start}, from {counts[least]:,} training rows ({small}) to {counts[most]:,} ({large})."


def _columns(evidence: Evidence) -> dict[str, Any]:
    columns = evidence.data.columns
    return {"shown": columns[:COLUMNS], "folded": columns[COLUMNS:][:COLUMNS_FOLDED], "count": len(columns)}
