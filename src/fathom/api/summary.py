"""What a person reads in the terminal when a model is trained, looked at or evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fathom.evaluate import METRICS


def describe_model(info: Mapping[str, Any]) -> str:
    """Return a few lines: what the model is, how good, whether it was worth it, and what to do next."""
    metrics = info["metrics"]
    name = info["model"].get("name") or info["model"].get("class", "model")
    count = len({field["source"] for field in info["inputs"]})
    columns = f"{count} column{'s' if count != 1 else ''}"
    targets = ", ".join(metrics["test"]) or ", ".join(target["name"] for target in info["targets"])
    task = info["objective"].get("name") or info["objective"].get("class", "")
    does = f"predicts {targets} from {columns}" if metrics["test"] else f"trained for '{task}' on {columns}"
    lines = [
        f"{name}, {info['parameters']:,} parameters, {does}",
        f"trained on {info['training_rows']:,} rows, judged on {metrics['rows']:,} {metrics['judged_on']} rows",
    ]
    lines += _scores(metrics["test"], metrics.get("baselines", ()))
    lines += _measures(metrics.get("measures", {}))
    for target, verdict in metrics.get("verdict", {}).items():
        if verdict:
            lines.append(f"{target}: {verdict['sentence']}" if len(metrics["verdict"]) > 1 else verdict["sentence"])
    folder = info["folder"]
    if folder:
        lines += [
            f"model:   {folder}",
            f"report:  {folder}/report.html",
            f"next:    fathom predict {folder} NEW_ROWS    fathom evaluate {folder} OTHER_ROWS",
        ]
    return "\n".join(lines)


def describe_scores(scores: Mapping[str, Any]) -> str:
    """Return the result of `Model.evaluate` as text."""
    aside = f", {scores['set_aside_count']:,} set aside" if scores["set_aside_count"] else ""
    return "\n".join(
        [
            f"{scores['source']}: {scores['rows']:,} rows{aside}",
            *_scores(scores["targets"], ()),
            *_measures(scores["measures"]),
        ]
    )


def _scores(targets: Mapping[str, Any], rivals: Any) -> Iterator[str]:
    """Yield, for each target, its metrics, and the main one of each baseline beside it."""
    for target, score in targets.items():
        shown = [
            (METRICS[name].label, amount(name, entry)) for name, entry in score["metrics"].items() if name in METRICS
        ]
        width = max(map(len, (label for label, _ in shown)), default=0)
        yield f"{target}:"
        for label, value in shown:
            yield f"  {label:<{width}}  {value}"
        main = score["main"]
        theirs = [r for r in rivals if r["target"] == target and main in r["metrics"] and not r["failed"]]
        if theirs:
            yield f"  {METRICS[main].label} of simple methods on the same rows:"
            name_width = max(len(rival["name"]) for rival in theirs)
            for rival in theirs:
                yield f"    {rival['name']:<{name_width}}  {amount(main, rival['metrics'][main])}"


def _measures(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the means of an objective's own measures."""
    labels = {name: name.replace("_", " ") for name in found}
    width = max(map(len, labels.values()), default=0)
    for name, entry in found.items():
        yield f"  {labels[name]:<{width}}  {amount(name, entry)}"


def amount(name: str, entry: Mapping[str, Any]) -> str:
    """Return a metric's value with its interval, as people write it."""
    if entry["value"] is None:
        return "–"
    share = name in METRICS and METRICS[name].share

    def plain(value: float) -> str:
        return f"{100 * value:.1f} %" if share else f"{value:.4g}"

    if entry.get("low") is None or entry.get("high") is None:
        return plain(entry["value"])
    return f"{plain(entry['value'])}  [{plain(entry['low'])} – {plain(entry['high'])}]"
