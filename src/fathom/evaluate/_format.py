"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

from fathom.evaluate.score import METRICS

NOTHING = "–"


def number(value: Any, digits: int = 4) -> str:
    """Return four significant digits, with thousands apart: 12,345 · 523.4 · 0.02841."""
    if value is None or not isinstance(value, (int, float)) or not math.isfinite(value):
        return NOTHING
    if isinstance(value, int) or (abs(value) >= 10 ** (digits - 1) and abs(value) < 1e15):
        return f"{value:,.0f}".replace("-", "−")
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}g}".replace("-", "−")
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(places - (abs(value) < 1), 0), 6)}f}".replace("-", "−")


def percent(value: Any, places: int = 1) -> str:
    """Return a share of one as a percentage: 90.8 %."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.{places}f}\N{NO-BREAK SPACE}%"


def amount(count: int) -> str:
    """Return 812, 61,706, 2.8 million or 1.3 billion."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"


def metric(name: str, value: Any) -> str:
    """Return a metric's value the way it is read."""
    if name in METRICS and METRICS[name].share:
        return percent(value)
    return number(value)


def interval(name: str, low: Any, high: Any) -> str:
    """Return "89.5 to 92.1", the unit left to the value beside it."""
    if low is None or high is None:
        return NOTHING
    if name in METRICS and METRICS[name].share:
        return f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{metric(name, low)} to {metric(name, high)}"


def duration(seconds: float) -> str:
    """Return "84 s", "12 min 5 s" or "3 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def setting(value: Any) -> str:
    """Return an option's value as a config file has it: true, 0.5, [a, b]."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(setting, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def shorten(text: str, longest: int) -> str:
    """Return the text, its end cut where it is too long."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
