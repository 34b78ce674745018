"""The report's charts: small SVG, drawn from plain values, coloured by the page's style (so light or dark).

dots          values with their intervals, one row each
curves        one or more lines over the epochs, labelled at their ends
reliability   accuracy against confidence
scatter       predicted against true values
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from fathom.evaluate import _format

WIDTH = 480


class Scale:
    """Maps values to pixels, linearly or by logarithm."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        if not high > low:
            low, high = (low / 2, low * 2) if log else (low - 0.5, high + 0.5)
        self.log = log
        self.low, self.high = low, high
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        bounded = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(bounded / self.low) / math.log(self.high / self.low)
        else:
            share = (bounded - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values inside the range."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = 10 ** math.floor(math.log10((self.high - self.low) / wanted))
        step *= next((m for m in (1, 2, 5) if (self.high - self.low) / (m * step) <= wanted), 10)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def dots(rows: Sequence[Mapping[str, Any]], metric: str, title: str) -> Markup:
    """Values with their intervals.

    Args:
        rows: {"name", "value", "low", "high", "kind": "model" or "other"}; those without a value are left out.
        metric: by which numbers are written.
        title: for those who cannot see the chart.
    """
    shown = [row for row in rows if row["value"] is not None]
    if not shown:
        return Markup("")
    label = min(215.0, max(110.0, 6.9 * max(len(row["name"]) for row in shown) + 16))
    right = WIDTH - 66
    x = Scale(*_contest(shown), label, right)
    height = 34 * len(shown) + 30
    parts = []
    for tick in x.ticks(4):
        parts.append(_line(x(tick), 6, x(tick), height - 26, "grid"))
        parts.append(_text(x(tick), height - 8, _tick(metric, tick), "tick", "middle"))
    for i, row in enumerate(shown):
        y = 34 * i + 22
        style = "model" if row["kind"] == "model" else "other"
        parts.append(_text(label - 14, y + 4, _format.shorten(row["name"], 30), f"name {style}", "end"))
        if not x.low <= row["value"] <= x.high:
            parts.append(_beyond(label if row["value"] < x.low else right, y, -1 if row["value"] < x.low else 1))
        else:
            if row["low"] is not None and row["high"] is not None:
                parts.append(_line(x(row["low"]), y, x(row["high"]), y, f"interval {style}"))
            parts.append(_circle(x(row["value"]), y, 5.5, f"dot {style}"))
        parts.append(_text(WIDTH, y + 4, _format.metric(metric, row["value"]), f"value {style}", "end"))
    return _svg(parts, height, title)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, share: bool = False, mark: float | None = None
) -> Markup:
    """Lines over the epochs.

    Args:
        series: by name, (epoch, value) pairs.
        title: for those who cannot see the chart.
        share: write values in percent.
        mark: the epoch whose weights were kept.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return Markup("")
    values = sorted(y for points in kept.values() for _, y in points)
    epochs = [x for points in kept.values() for x, _ in points]
    log = values[0] > 0 and values[-1] > 12 * values[0]
    top = values[-1] if log or len(values) < 8 else min(values[-1], 3 * values[int(0.9 * len(values))])
    height, left, right = 264, 48, WIDTH - 96
    spread = (top - values[0]) or abs(top) * 0.1 or 1.0
    y = Scale(values[0] if log else min(values[0], max(0.0, values[0] - 0.15 * spread)), top, height - 34, 12, log)
    x = Scale(min(epochs), max(epochs), left, right)
    parts = []
    for tick in y.ticks(5):
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, _format.percent(tick, 0) if share else _plain(tick), "tick", "end"))
    for tick in x.ticks(6):
        if tick == int(tick):
            parts.append(_text(x(tick), height - 14, _plain(tick), "tick", "middle"))
    parts.append(_text((left + right) / 2, height, "epoch", "tick", "middle"))
    if mark is not None and min(epochs) <= mark <= max(epochs):
        parts.append(_line(x(mark), 12, x(mark), height - 34, "mark"))
    ends = _apart({name: y(points[-1][1]) for name, points in kept.items()}, 15)
    for i, (name, points) in enumerate(kept.items()):
        path = " ".join(f"{x(a)},{y(b)}" for a, b in _thin(points, 240))
        parts.append(Markup('<polyline class="curve c{}" points="{}"/>').format(i % 4, path))
        parts.append(_circle(x(points[-1][0]), y(points[-1][1]), 3, f"dot c{i % 4}"))
        parts.append(_text(right + 9, ends[name] + 4, _format.shorten(name, 15), f"label c{i % 4}", "start"))
    return _svg(parts, height, title)


def reliability(bins: Sequence[Mapping[str, float]], title: str) -> Markup:
    """Accuracy against confidence, with the share of rows at each confidence below."""
    height, left, right, floor = 360, 48, WIDTH - 20, 262
    x, y = Scale(0, 1, left, right), Scale(0, 1, floor, 12)
    parts = [_line(x(0), y(0), x(1), y(1), "mark")]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, _format.percent(tick, 0), "tick", "end"))
        parts.append(_text(x(tick), height - 18, _format.percent(tick, 0), "tick", "middle"))
    total = sum(b["count"] for b in bins) or 1
    most = max((b["count"] for b in bins), default=1)
    for b in bins:
        tall = round(50 * b["count"] / most, 1)
        width = round(x(b["to"]) - x(b["from"]) - 2, 1)
        bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
        sure, right_share = _format.percent(b["confidence"]), _format.percent(b["accuracy"])
        words = f"{b['count']:,} rows of confidence {sure}: {right_share} right"
        parts.append(bar.format(x(b["from"]) + 1, height - 34 - tall, width, tall, words))
        parts.append(_line(x(b["confidence"]), y(b["low"]), x(b["confidence"]), y(b["high"]), "interval model thin"))
    points = " ".join(f"{x(b['confidence'])},{y(b['accuracy'])}" for b in bins)
    parts.append(Markup('<polyline class="curve c0" points="{}"/>').format(points))
    for b in bins:
        parts.append(
            _circle(x(b["confidence"]), y(b["accuracy"]), 2.5 + 4.5 * math.sqrt(b["count"] / total), "dot model")
        )
    parts.append(
        _text((left + right) / 2, height - 2, "how sure the model was (bars: share of rows)", "tick", "middle")
    )
    return _svg(parts, height, title)


def scatter(points: Sequence[Sequence[float]], bands: Sequence[Mapping[str, float]], name: str) -> Markup:
    """Predicted (across) against true values (up), with the middle 90 % of the truth around each prediction."""
    if not points:
        return Markup("")
    values = [v for point in points for v in point] + [b[k] for b in bands for k in ("low", "high", "predicted")]
    low, high = min(values), max(values)
    log = low > 0 and high > 40 * low
    height, left, right, floor = 372, 62, WIDTH - 12, 328
    x, y = Scale(low, high, left, right, log), Scale(low, high, floor, 16, log)
    short = _format.shorten(name, 24)
    parts = []
    for tick in x.ticks(5):
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, _plain(tick), "tick", "end"))
        parts.append(_text(x(tick), floor + 18, _plain(tick), "tick", "middle"))
    if bands:
        around = [(x(b["predicted"]), y(b["high"])) for b in bands] + [
            (x(b["predicted"]), y(b["low"])) for b in reversed(bands)
        ]
        parts.append(Markup('<polygon class="band" points="{}"/>').format(" ".join(f"{a},{b}" for a, b in around)))
    parts.append(_line(x(low), y(low), x(high), y(high), "mark"))
    parts += [_circle(x(guess), y(truth), 2.2, "point") for truth, guess in points]
    parts.append(_text((left + right) / 2, height - 4, f"predicted {short}", "tick", "middle"))
    parts.append(_text(left - 8, 2, f"true {short}", "tick", "start"))
    return _svg(parts, height, f"Predicted against true {name}")


def whisker(low: float | None, high: float | None, value: float | None, bounds: tuple[float, float]) -> Markup:
    """A value and its interval, small enough for a table's cell."""
    if value is None:
        return Markup("")
    x = Scale(bounds[0], bounds[1], 4, 116)
    parts = [_line(4, 8, 116, 8, "grid")]
    if low is not None and high is not None:
        parts.append(_line(x(low), 8, x(high), 8, "interval model"))
    parts.append(_circle(x(value), 8, 4, "dot model"))
    return Markup('<svg class="whisker" viewBox="0 0 120 16" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def _contest(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the range to draw: of all rows, but without the farthest where it would squeeze the others together."""

    def span(some: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        bounds = [row[key] for row in some for key in ("low", "high", "value") if row[key] is not None]
        return min(bounds), max(bounds)

    middle = sorted(row["value"] for row in rows)[len(rows) // 2]
    near = sorted(rows, key=lambda row: abs(row["value"] - middle))[: max(2, len(rows) - 1)]
    low, high = span(rows)
    if 2.5 * (span(near)[1] - span(near)[0]) < high - low:
        low, high = span(near)
    pad = (high - low) * 0.12 or abs(low) * 0.05 or 1.0
    return low - pad, high + pad


def _beyond(x: float, y: float, way: int) -> Markup:
    """An arrow at the chart's edge, for a value that lies beyond it."""
    points = f"{x},{y} {x - 7 * way},{y - 5} {x - 7 * way},{y + 5}"
    return Markup('<polygon class="beyond" points="{}"/>').format(points)


def _svg(parts: Iterable[Markup], height: float, title: str) -> Markup:
    frame = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, height, title, Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(style, x1, y1, x2, y2)


def _circle(x: float, y: float, radius: float, style: str) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(style, x, y, round(radius, 1))


def _text(x: float, y: float, words: str, style: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        style, round(x, 1), round(y, 1), anchor, escape(words)
    )


def _tick(metric: str, value: float) -> str:
    return _format.metric(metric, value).replace(".0\N{NO-BREAK SPACE}%", "\N{NO-BREAK SPACE}%")


def _plain(value: float) -> str:
    """Return a tick's label, short: 2,000 · 0.05 · 1e+06."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2g}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [
            m * 10.0**e
            for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for m in multiples
            if low <= m * 10.0**e <= high
        ]
        if len(ticks) <= wanted + 1:
            return ticks
    return ticks[:: math.ceil(len(ticks) / wanted)]


def _apart(places: Mapping[str, float], least: float) -> dict[str, float]:
    """Return heights of labels, moved down where they would overlap."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = max(place, last + least)
        moved[name] = last
    return moved


def _thin(points: Sequence[tuple[float, float]], most: int) -> Sequence[tuple[float, float]]:
    """Return at most about `most` points, the last among them."""
    step = max(1, math.ceil(len(points) / most))
    return [*points[:-1:step], points[-1]]
