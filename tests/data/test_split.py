"""Which rows train, choose and test."""

import numpy as np
import polars as pl
import pytest

from fathom.core.errors import ConfigError, DataError
from fathom.data._columns import infer
from fathom.data._overlaps import overlaps
from fathom.data._split import SplitConfig, split


def divided(frame, target="y", seed=0, **options):
    columns = infer(frame, [target] if target else [])
    found = split(frame, columns, [target] if target else [], SplitConfig(**options), seed)
    parts = (found.train, found.valid, found.test)
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(frame)))
    return found


def table(rows=1000):
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "x": rng.normal(size=rows),
            "y": rng.choice(["a", "b", "c"], rows, p=[0.9, 0.08, 0.02]),
            "z": rng.exponential(size=rows),
            "who": rng.integers(0, 50, rows),
            "when": rng.integers(0, 365, rows),
        }
    )


def test_each_class_keeps_its_share():
    frame = table()
    found = divided(frame)
    shares = [(frame["y"].gather(part) == "c").mean() for part in (found.train, found.valid, found.test)]
    assert len(found.test) == 200 and len(found.valid) == 160 and np.ptp(shares) < 0.01


def test_each_range_of_a_number_keeps_its_share():
    frame = table()
    found = divided(frame, "z")
    tenths = np.floor(frame["z"].rank().to_numpy() / 1001 * 10)
    assert np.ptp(np.bincount(tenths[found.test].astype(int))) <= 2


def test_the_seed_decides():
    frame = table()
    first, again, other = divided(frame), divided(frame), divided(frame, seed=1)
    assert np.array_equal(first.test, again.test) and not np.array_equal(first.test, other.test)
    often = sum(np.isin(divided(frame, seed=seed).test, first.test).mean() for seed in range(1, 11)) / 10
    assert 0.1 < often < 0.3  # by chance, 0.2 of another draw's rows


@pytest.mark.parametrize("rows", [3, 4, 5, 7, 10, 21])
def test_tiny_tables_have_rows_in_every_part(rows):
    frame = pl.DataFrame({"x": range(rows), "y": ["a", "b", "c"][:3] * (rows // 3) + ["a"] * (rows % 3)})
    found = divided(frame)
    assert len(found.train) and len(found.valid) and len(found.test)


def test_a_class_of_one_row_is_trained_on():
    frame = pl.DataFrame({"x": range(50), "y": ["a"] * 25 + ["b"] * 24 + ["rare"]})
    assert all(49 in divided(frame, seed=seed).train for seed in range(20))


def test_shares():
    frame = table(6000)
    assert [len(p) for p in vars(divided(frame)).values()] == [4860, 540, 600]
    found = divided(frame, test=0.0, valid=0.5)
    assert len(found.test) == 0 and len(found.valid) == 3000
    for wrong in ({"test": 1.0}, {"valid": -0.1}, {"group": "a", "time": "b"}):
        with pytest.raises(ConfigError, match=r"split\."):
            SplitConfig(**wrong)


def test_groups_stay_whole():
    frame = table()
    found = divided(frame, group="who", test=0.3)
    sides = [set(frame["who"].gather(part)) for part in (found.train, found.valid, found.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert 0.25 < len(found.test) / 1000 < 0.35
    with pytest.raises(DataError, match="one group only"):
        divided(frame.with_columns(who=1), group="who")


def test_rows_without_a_group_are_groups_of_their_own():
    frame = table(100).with_columns(who=pl.lit(None, dtype=pl.Int64))
    assert len(divided(frame, group="who").test) == 20


@pytest.mark.parametrize(
    "write", [lambda s: s, lambda s: pl.select(pl.date(2020, 1, 1) + pl.duration(days=s)).to_series()]
)
@pytest.mark.parametrize("text", [False, True])
def test_the_latest_rows_test(write, text):
    frame = table()
    when = write(frame["when"])
    shown = when.cast(pl.String) if text else when
    found = divided(frame.with_columns(when=shown), time="when")
    train, valid, test = (when.gather(part) for part in (found.train, found.valid, found.test))
    assert train.max() < valid.min() and valid.max() < test.min()
    assert 180 < len(test) < 220


def test_a_column_of_parts_is_followed():
    parts = ["Train", "val", " test", "training"] * 25
    frame = table(100).with_columns(part=pl.Series(parts))
    found = divided(frame, column="part")
    assert [len(p) for p in vars(found).values()] == [50, 25, 25] and list(found.test) == list(range(2, 100, 4))
    without = frame.with_columns(part=pl.Series(["train", "test"] * 50))
    assert [len(p) for p in vars(divided(without, column="part")).values()] == [40, 10, 50]
    with pytest.raises(DataError, match=r"'part' says 'tset' in row 3; expected train, valid or test"):
        divided(frame.with_columns(part=pl.Series(["train", "train", "tset", "test"] * 25)), column="part")
    with pytest.raises(DataError, match="no row as train"):
        divided(frame.with_columns(part=pl.lit("test")), column="part")


def test_wrong_columns_are_named():
    with pytest.raises(DataError, match="Did you mean 'who'"):
        divided(table(), group="whom")
    with pytest.raises(DataError, match="no dates or numbers"):
        divided(table(), time="y")
    with pytest.raises(DataError, match="at least 3"):
        divided(table(2).with_columns(y=pl.Series(["a", "b"])))


def test_overlaps_compare_values_not_types():
    train = pl.DataFrame({"n": [1, 2, 3, None], "w": ["a", "b", "c", None], "b": [b"1", b"2", b"3", None]})
    test = pl.DataFrame(
        {"n": [1.0, 2.0, None, 9.0, 1.0], "w": ["a", "c", None, "z", "a"], "b": [b"1", b"2", None, b"9", b"1"]}
    )
    assert overlaps(train, test, ["n", "w", "b"]).tolist() == [0, 2, 4]
    assert overlaps(train, test, ["n"]).tolist() == [0, 1, 2, 4]
    assert overlaps(train, test, []).tolist() == [] and overlaps(train, test[:0], ["n"]).tolist() == []


def test_images_overlap_by_what_their_files_hold(tmp_path):
    for name, data in {"a.png": b"one", "b.png": b"two", "c.png": b"one", "d.png": b"three"}.items():
        (tmp_path / name).write_bytes(data)
    train = pl.DataFrame({"image": ["a.png", "b.png", None]})
    test = pl.DataFrame({"image": ["c.png", "d.png", "missing.png"]})
    assert overlaps(train, test, ["image"], tmp_path, tmp_path).tolist() == [0]


def test_planted_rows_are_found_among_many():
    frame = table(20_000).drop("y")
    test = pl.concat([frame[:40], table(500).drop("y").with_columns(pl.col("x") + 100)])
    assert overlaps(frame, test, frame.columns).tolist() == list(range(40))
