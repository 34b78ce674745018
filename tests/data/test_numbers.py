"""Numbers and dates on the scales that networks learn from."""

import datetime

import numpy as np
import polars as pl
import pytest
from sklearn.preprocessing import QuantileTransformer, RobustScaler

from fathom.data._dates import DateEncoder
from fathom.data._numbers import NumberEncoder, Scale


def fit(values, how="robust", format=""):
    series = pl.Series("x", values)
    return NumberEncoder.fit("x", series, np.arange(len(series)), how, format)


def encode(encoder, values):
    number = np.full((len(values), 1), np.nan, dtype=np.float32)
    category = np.zeros((len(values), int(encoder.flag)), dtype=np.int32)
    unread = encoder.encode(pl.Series("x", values), number, category)
    return number[:, 0], category, unread


def test_the_robust_scale_is_scikit_learn_s_smoothly_clipped():
    x = np.random.default_rng(0).lognormal(sigma=2, size=1001)
    s = RobustScaler().fit_transform(x[:, None])[:, 0]
    assert np.allclose(encode(fit(x), x)[0], s / np.sqrt(1 + (s / 3) ** 2), atol=1e-6)


def test_the_standard_scale_has_mean_0_and_deviation_1():
    z = encode(fit(np.random.default_rng(0).normal(1e6, 5, 1000), "standard"), [1e6, 1e6 + 5, 1e6 - 5])[0]
    assert np.allclose(z, [0, 1, -1], atol=0.15)


def test_the_quantile_scale_is_scikit_learn_s_within_the_data():
    x = np.random.default_rng(0).lognormal(sigma=2, size=5000)
    peer = QuantileTransformer(n_quantiles=1000, output_distribution="normal", subsample=None).fit_transform(x[:, None])
    z = encode(fit(x, "quantile"), x)[0]
    inside = np.abs(peer[:, 0]) < 2
    assert np.abs(z - peer[:, 0])[inside].max() < 0.02 and np.abs(z).max() < 4
    assert (np.diff(z[np.argsort(x)]) >= 0).all()


@pytest.mark.parametrize("how", ["robust", "quantile", "standard"])
def test_every_scale_keeps_order_and_stays_finite(how):
    x = [-1e308, -1e5, -1.0, 0.0, 5e-324, 0.5, 1.0, 3.0, 1e5, 1e308]
    z = encode(fit(x, how), x)[0]
    assert np.isfinite(z).all() and (np.diff(z) >= 0).all() and z[0] < z[-1]


@pytest.mark.parametrize("how", ["robust", "quantile", "standard"])
def test_a_constant_is_zero_wherever_it_is_served(how):
    assert encode(fit([7.0] * 5, how), [7.0, 8.0, None])[0].tolist() == [0, 0, 0]


def test_mostly_zeros_still_have_a_scale():
    z = encode(fit([0.0] * 90 + [10.0] * 10), [0.0, 10.0])[0]
    assert z[0] == 0 and z[1] > 1


def test_gaps_stand_at_the_median_and_are_flagged_where_training_had_some():
    encoder = fit([1.0, 2.0, None, 4.0, float("nan"), float("inf")])
    assert encoder.flag and [f.name for f in encoder.fields] == ["x", "x.missing"]
    number, category, unread = encode(encoder, [2.0, None, float("-inf")])
    assert number.tolist() == [0, 0, 0] and category[:, 0].tolist() == [1, 2, 2] and unread == 0
    whole = fit([1.0, 2.0, 3.0])
    assert not whole.flag and encode(whole, [None, 2.0])[0].tolist() == [0, 0]


def test_whole_numbers_truths_and_text_are_the_same_numbers():
    encoder = fit([1.0, 2.0, 3.0, 4.0, 0.0])
    expected = encode(encoder, [0.0, 1.0])[0]
    for same in ([0, 1], [False, True], ["0", "1.0"], [" 0 ", "1e0"]):
        assert (encode(encoder, same)[0] == expected).all()
    assert encode(encoder, ["1", "one", None])[2] == 1


def test_a_decimal_comma_is_read_as_in_training():
    encoder = fit(["1.000,5", "2,5", "3", "4"], format=",")
    assert encoder.median == 3.5
    plain = fit([1000.5, 2.5, 3.0, 4.0])
    assert encode(encoder, ["1.000,5", "2,5"])[0].tolist() == encode(plain, [1000.5, 2.5])[0].tolist()
    assert encode(encoder, [2.5])[0] == encode(plain, [2.5])[0]  # a number needs no format


def test_statistics_from_a_sample_are_near_those_of_all_rows():
    x = pl.Series("x", np.random.default_rng(0).normal(size=100_000))
    drawn = NumberEncoder.fit("x", x, np.arange(0, 100_000, 10), "robust", "")
    full = NumberEncoder.fit("x", x, np.arange(100_000), "robust", "")
    assert abs(drawn.scale.centre - full.scale.centre) < 0.05 and abs(drawn.scale.factor / full.scale.factor - 1) < 0.05
    assert len(full.stats.quantiles) == 65


@pytest.mark.parametrize(
    "bad",
    [{"centre": np.nan}, {"factor": np.inf}, {"knots": (1.0,), "scores": ()}, {"knots": (2.0, 1.0), "scores": (0, 1)}],
)
def test_a_scale_with_impossible_numbers_is_refused(bad):
    with pytest.raises(ValueError):
        Scale(how="robust", **bad)


def dates(values, dtype=None):
    return pl.Series("d", values, dtype=dtype)


def fit_dates(series, format=""):
    return DateEncoder.fit("d", series, np.arange(len(series)), format)


def parts(encoder, series):
    number = np.zeros((len(series), len(encoder.parts)), dtype=np.float32)
    category = np.zeros((len(series), int(encoder.flag)), dtype=np.int32)
    encoder.encode(series, number, category)
    raw = number / [p.scale.factor for p in encoder.parts] + [p.scale.centre for p in encoder.parts]
    return dict(zip([p.name for p in encoder.parts], raw.T.round(3), strict=True)), category


def test_a_moment_becomes_the_parts_that_vary():
    hours = dates(
        [datetime.datetime(2023, 12, 31, 23, 30), datetime.datetime(2024, 2, 29, 6), datetime.datetime(2024, 3, 4)]
    )
    found, _ = parts(fit_dates(hours), hours)
    assert {name: values.tolist() for name, values in found.items()} == {
        "elapsed": pytest.approx([0, 59.271, 63.021], abs=2e-3),
        "year": pytest.approx([2023, 2024, 2024]),
        "month": pytest.approx([12, 2, 3]),
        "day": pytest.approx([31, 29, 4]),
        "weekday": pytest.approx([7, 4, 1]),
        "hour": pytest.approx([23.5, 6, 0]),
    }
    same_year = dates([datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)])
    assert [p.name for p in fit_dates(same_year).parts] == ["elapsed", "day", "weekday"]


def test_dates_mean_the_same_however_they_are_stored():
    days = dates([datetime.date(2024, 1, 31), datetime.date(2023, 2, 1), datetime.date(2022, 7, 5)])
    encoder = fit_dates(dates(["31/01/2024", "01/02/2023", "05/07/2022"]), "%d/%m/%Y")
    expected = parts(encoder, dates(["31/01/2024", "01/02/2023", "05/07/2022"]))[0]
    zoned = days.cast(pl.Datetime("ns")).dt.replace_time_zone("Europe/Berlin")
    for stored in (days, days.cast(pl.Datetime("ms")), zoned):
        assert all((parts(encoder, stored)[0][name] == values).all() for name, values in expected.items())


def test_missing_dates_stand_at_the_mean_and_are_flagged():
    encoder = fit_dates(dates(["2024-01-01", None, "2024-03-01"]))
    assert encoder.flag
    number, category = np.ones((3, len(encoder.parts)), np.float32), np.zeros((3, 1), np.int32)
    unread = encoder.encode(dates(["2024-01-01", None, "tomorrow"]), number, category)
    assert unread == 1 and category[:, 0].tolist() == [1, 2, 2] and (number[1:] == 0).all() and (number[0] != 0).all()
