"""Targets and categories: from labels to codes and back."""

import numpy as np
import polars as pl
import pytest

from fathom.core.errors import DataError
from fathom.core.types import UNKNOWN
from fathom.data._categories import CategoryEncoder
from fathom.data._targets import TargetEncoder


def category(values, boolean=False, most=10_000):
    return CategoryEncoder.fit("c", pl.Series("c", values), boolean, most)


def codes(encoder, values):
    found = np.zeros((len(values), 1), dtype=np.int32)
    return encoder.encode(pl.Series("c", values), np.zeros((len(values), 0)), found), found[:, 0].tolist()


def target(values, kind, format=""):
    return TargetEncoder.fit("y", kind, pl.Series("y", values), format)


def test_classes_stand_by_frequency_then_by_letter():
    encoder = category(["b", "a", "c", "c", None, "a", "b", "c"])
    assert encoder.classes == (UNKNOWN, "c", "a", "b")
    assert codes(encoder, ["a", "b", "c", "d", None]) == (1, [2, 3, 1, 0, 0])


def test_beyond_the_cap_the_rarest_are_unknown():
    assert category(["a"] * 3 + ["b"] * 2 + ["c"], most=2).classes == (UNKNOWN, "a", "b")


def test_a_label_that_looks_like_our_own_is_unknown():
    assert codes(category([UNKNOWN, "a", "a"]), [UNKNOWN, "a"])[1] == [0, 1]


@pytest.mark.parametrize("values", [[True, False], [1, 0], [1.0, 0.0], ["yes", "no"], ["TRUE", "False"], ["1", "0"]])
def test_truth_is_the_same_in_all_its_words(values):
    encoder = category(["y", "n", None], boolean=True)
    assert encoder.classes == (UNKNOWN, "false", "true") and codes(encoder, values) == (0, [2, 1])


def test_a_boolean_in_words_of_its_own_is_a_category():
    encoder = category(["left", "right", "left"], boolean=True)
    assert not encoder.boolean and encoder.classes == (UNKNOWN, "left", "right")


def test_target_classes_stand_in_natural_order_with_their_counts():
    assert target(["10", "9", "x", "9", "-1"], "category").classes == ("-1", "9", "10", "x")
    assert target([3, 1, 3, 2], "category").classes == ("1", "2", "3")
    encoder = target(["b", "a", "b", None], "category")
    assert (encoder.classes, encoder.counts) == (("a", "b"), (1, 2))
    values, gaps = encoder.encode(pl.Series("y", ["b", "z", None]))
    assert values[0] == 1 and values.dtype == np.int64 and gaps.tolist() == [False, True, True]
    values, gaps = encoder.encode(pl.Series("y", ["b", "z", None, ""]), unseen=True)
    assert values.tolist() == [1, -1, -1, -1] and gaps.tolist() == [False, False, True, True]
    assert encoder.reason("z") == "target 'y' is 'z', a class that no training row has"
    assert encoder.reason(None) == "target 'y' is missing"


def test_a_boolean_target_keeps_the_user_s_words_and_knows_others():
    encoder = target(["no", "yes", "no"], "boolean")
    assert encoder.classes == ("no", "yes")
    for same in (["yes", "no"], [True, False], ["True", "FALSE"], [1, 0]):
        assert encoder.encode(pl.Series("y", same))[0].tolist() == [1, 0]
    assert encoder.encode(pl.Series("y", ["yes", "perhaps", "true"]))[1].tolist() == [False, True, False]
    assert target([True, False, True], "boolean").classes == ("false", "true")


def test_number_targets_keep_their_unit():
    encoder = target(["1.234,5", "10", None, "x"], "number", ",")
    values, gaps = encoder.encode(pl.Series("y", ["1.234,5", "10", None, "x"]))
    assert (
        values[:2].tolist() == [1234.5, 10]
        and values.dtype == np.float32
        and gaps.tolist() == [False, False, True, True]
    )
    assert encoder.reason("x") == "target 'y' is 'x', which is not a number"
    stats = encoder.measured(values[:2]).stats
    assert (stats.mean, stats.minimum, stats.maximum) == ((622.25,), (10,), (1234.5,))


@pytest.mark.parametrize(
    "values, kind, message",
    [
        (["a", "a"], "category", "1 different values"),
        ([None, None], "category", "0 different values"),
        ([5.0, 5.0, None], "number", "one number only, 5"),
        ([None, float("inf")], "number", "no number"),
        (["a b c"], "text", "of kind text"),
        (["2024-01-01"], "datetime", "of kind datetime"),
    ],
)
def test_what_cannot_be_predicted_is_refused(values, kind, message):
    with pytest.raises(DataError, match=f"Target 'y'.*{message}"):
        target(values, kind)


def test_many_whole_numbers_are_told_apart_as_few_are():
    values = [*range(-700, 800), 5, 5, 9_000]
    encoder = category(values[:-1])
    some = encoder.classes[1:]
    assert codes(encoder, values)[1] == [some.index(str(v)) + 1 if str(v) in some else 0 for v in values]
    dense = [v for v in values if v < 1000]
    assert codes(encoder, dense) == (0, [some.index(str(v)) + 1 for v in dense])
