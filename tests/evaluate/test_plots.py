"""Numbers as they are read, and charts whose marks stand where they should."""

import re

import pytest

from fathom.evaluate import _format, plots


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.0, "0"),
        (12345, "12,345"),
        (523.41, "523.4"),
        (12345.678, "12,346"),
        (0.98765, "0.988"),
        (0.028412, "0.0284"),
        (-5.5, "−5.500"),
        (1e-7, "1e−07"),
        (3e17, "3e+17"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_numbers(value, words):
    assert _format.number(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.84, "0.8 s"), (84.2, "84 s"), (725, "12 min 5 s"), (12000, "3 h 20 min")]
)
def test_durations(seconds, words):
    assert _format.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(812, "812"), (61706, "61,706"), (2_783_114, "2.78 million"), (7.1e9, "7.1 billion")]
)
def test_amounts(count, words):
    assert _format.amount(int(count)) == words


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 8), (1234, 1239), (1e-9, 3e-9), (0, 1e12), (5, 5)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_and_inside(low, high, log):
    if log and low <= 0:
        return
    scale = plots.Scale(low, high, 0, 100, log)
    ticks = scale.ticks(5)
    assert len(ticks) <= 6
    assert all(scale.low * (1 - 1e-9) - 1e-12 <= tick <= scale.high * (1 + 1e-9) for tick in ticks)
    assert scale(scale.low) == 0
    assert scale(scale.high) == 100
    assert scale(high * 10 + 1) == 100


def test_log_scale_puts_equal_ratios_at_equal_distances():
    scale = plots.Scale(1, 100, 0, 100, log=True)
    assert scale(10) == 50
    assert scale.ticks(5) == [1, 10, 100] or 10 in scale.ticks(5)


def row(name: str, value: float, kind: str = "other") -> dict:
    return {"name": name, "value": value, "low": value - 0.01, "high": value + 0.01, "kind": kind}


def test_a_value_far_from_the_contest_becomes_an_arrow():
    near = [row("this model", 0.91, "model"), row("trees", 0.89)]
    assert "beyond" not in plots.dots(near, "accuracy", "")
    drawn = plots.dots([*near, row("majority", 0.1)], "accuracy", "")
    assert drawn.count('class="beyond"') == 1
    assert drawn.count("<circle") == 2
    assert "10.0\N{NO-BREAK SPACE}%" in drawn


def test_better_models_stand_further_right():
    drawn = plots.dots([row("a", 0.7, "model"), row("b", 0.8), row("c", 0.9)], "accuracy", "")
    centres = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)]
    assert centres == sorted(centres)
    assert len(centres) == 3


def test_curves_survive_a_value_that_is_not_a_number():
    drawn = plots.curves({"training": [(1, 2.0), (2, float("nan")), (3, 1.0)], "validation": []}, "Loss")
    assert "nan" not in drawn
    assert drawn.count("<polyline") == 1
    assert plots.curves({"training": [(1, float("inf"))]}, "Loss") == ""


def test_labels_at_the_ends_of_close_curves_do_not_overlap():
    close = {"training": [(0, 1.0), (9, 0.50)], "validation": [(0, 1.0), (9, 0.501)]}
    drawn = plots.curves(close, "Loss")
    heights = [float(y) for y in re.findall(r'<text class="label c\d" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert abs(heights[0] - heights[1]) >= 15


def test_what_comes_from_data_is_escaped():
    assert "<b>" not in plots.dots([row("<b>", 0.5)], "accuracy", "<b>")
    assert "<b>" not in plots.scatter([(1.0, 2.0)], [], "<b>")
