"""Preprocessing as a whole: the same at training and at serving, saved and loaded, on odd tables."""

import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fathom.core.config import build
from fathom.core.errors import ArtifactError, ConfigError, DataError
from fathom.core.types import UNKNOWN, DataSpec
from fathom.data import PrepareConfig, Preprocess, infer, read

ROWS = 120
TARGETS = ("price", "sold")


def png(rng, mode="RGB", size=(9, 7)):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def frame():
    """A table with a column of every kind, with gaps, one unreadable image and one missing target."""
    rng = np.random.default_rng(0)
    images = [png(rng) for _ in range(ROWS)]
    images[7] = b"not an image"
    price = rng.lognormal(size=ROWS).tolist()
    price[11] = None
    return pl.DataFrame(
        {
            "weight": [None if i % 10 == 0 else float(v) for i, v in enumerate(rng.normal(5, 2, ROWS))],
            "written": [f"{v:.2f}".replace(".", ",") for v in rng.normal(100, 20, ROWS)],
            "colour": rng.choice(["red", "green", "größe"], ROWS).tolist(),
            "fresh": rng.choice(["yes", "no"], ROWS).tolist(),
            "when": pl.Series("when", [f"2024-0{i % 9 + 1}-{i % 28 + 1:02d}" for i in range(ROWS)]).str.to_datetime(),
            "review": [
                f"A {w} thing, number {i}, which I would buy again" for i, w in enumerate(["fine", "poor"] * 60)
            ],
            "photo": images,
            "nothing": [None] * ROWS,
            "price": price,
            "sold": rng.choice([True, False], ROWS).tolist(),
        }
    )


@pytest.fixture(scope="module")
def fitted(frame):
    return Preprocess.fit(frame, infer(frame, TARGETS), TARGETS)


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        assert torch.equal(one[key], other[key]), key


def test_every_kind_becomes_the_tensors_its_spec_promises(fitted):
    preprocess, prepared = fitted
    spec, columns, rows = preprocess.spec, prepared.store.columns, len(prepared.rows)
    assert rows == spec.rows == len(prepared.store) == ROWS - 2
    assert columns["number"].shape == (rows, len(spec.numbers)) and columns["number"].dtype == torch.float32
    assert columns["category"].shape == (rows, len(spec.categories))
    assert columns["image:photo"].shape == (rows, *spec.images[0].shape) == (rows, 3, 7, 9)
    assert columns["text:review"].shape == (rows, *spec.texts[0].shape)
    assert {f.name for f in spec.categories} == {"weight.missing", "colour", "fresh"}
    assert [f.name for f in spec.numbers] == [
        "weight",
        "written",
        "when.elapsed",
        "when.month",
        "when.day",
        "when.weekday",
    ]
    batch = prepared.store.gather(torch.tensor([3, 1]))
    assert batch["category"].dtype == batch["text:review"].dtype == batch["target:sold"].dtype == torch.int64
    assert torch.equal(batch["number"], columns["number"][[3, 1]])
    assert torch.isfinite(columns["number"]).all()


def test_rows_without_a_target_or_an_image_are_set_aside_with_their_reason(fitted):
    prepared = fitted[1]
    assert [(one.row, one.column) for one in prepared.set_aside] == [(8, "photo"), (12, "price")]
    assert [one.reason for one in prepared.set_aside] == ["not an image of a known format", "target 'price' is missing"]
    assert 7 not in prepared.rows and 11 not in prepared.rows and (np.diff(prepared.rows) > 0).all()


def test_rows_of_the_table_are_told_from_lines_of_a_file(fitted, tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,2\n3\n5,6\n7,\n8,9\n")
    table = read(tmp_path / "t.csv")
    prepared = Preprocess.fit(table.frame, infer(table.frame, ("y",)), ("y",))[1]
    assert table.set_aside[0].place == f"{tmp_path / 't.csv'}, line 3"
    assert [one.place for one in prepared.set_aside] == ["the table, row 3"]  # the first is 1,2; line 3 is no row
    assert table.frame.row(2) == (7, None)


def test_rows_of_unseen_classes_are_kept_only_to_evaluate_on(frame):
    known = frame.with_columns(pl.when(pl.int_range(ROWS) < 60).then(pl.lit("a")).otherwise(pl.lit("b")).alias("y"))
    columns = infer(known, ("y", "price"))
    preprocess, trained = Preprocess.fit(known, columns, ("y", "price"))
    assert not trained.unseen
    strange = known[:20].with_columns(y=pl.Series(["a", "z", None, "z", "b", "a", "a", "z", "b", *"abababababa"]))
    usual = preprocess.transform(strange, with_targets=True)
    assert not usual.unseen and (usual.store.columns["target:y"] >= 0).all()
    assert [one.row for one in usual.set_aside] == [2, 3, 4, 8, 12]
    judged = preprocess.transform(strange, with_targets=True, unseen=True)
    assert [one.row for one in judged.set_aside] == [3, 8, 12]  # no class, no image, no price
    assert judged.unseen == {"y": 2} and judged.rows[:4].tolist() == [0, 1, 3, 4]
    assert judged.store.columns["target:y"][:4].tolist() == [0, -1, -1, 1]
    assert "Target 'y': 2 rows are of a class that no training row has." in judged.notes


def test_images_as_bytes_and_as_paths_may_stand_in_one_column(tmp_path):
    rng = np.random.default_rng(0)
    data = [png(rng) for _ in range(6)]
    (tmp_path / "there.png").write_bytes(data[1])
    photo = [{"bytes": d, "path": None} for d in data]
    photo[1] = {"bytes": None, "path": "there.png"}
    photo[2] = {"bytes": None, "path": None}
    frame = read({"photo": photo, "y": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]}).frame
    columns = infer(frame, ("y",))
    preprocess, prepared = Preprocess.fit(frame, columns, ("y",), folder=tmp_path)
    assert columns[0].kind == "image" and prepared.rows.tolist() == [0, 1, 3, 4, 5]
    alone = read({"photo": data[1:2], "y": [1.5]}).frame
    assert torch.equal(
        prepared.store.columns["image:photo"][1], preprocess.transform(alone).store.columns["image:photo"][0]
    )


def test_statistics_are_those_of_the_training_tensors(fitted):
    preprocess, prepared = fitted
    number = prepared.store.columns["number"].numpy()
    gaps = prepared.store.columns["category"][:, 0].numpy() == 2
    for place, field in enumerate(preprocess.spec.numbers):
        values = number[~gaps, place] if field.name == "weight" else number[:, place]
        assert np.isclose(values.mean(), field.stats.mean[0], atol=1e-6) and np.isclose(
            values.std(), field.stats.std[0]
        )
        assert (values.min(), values.max()) == (field.stats.minimum[0], field.stats.maximum[0])
        assert (np.diff(field.stats.quantiles) > 0).all() and len(field.stats.quantiles) <= 65
    pixels = prepared.store.columns["image:photo"].numpy().astype(np.float64)
    assert np.allclose(pixels.mean((0, 2, 3)), preprocess.spec.images[0].stats.mean)
    assert np.allclose(pixels.std((0, 2, 3)), preprocess.spec.images[0].stats.std)
    price, sold = preprocess.spec.targets
    raw = prepared.store.columns["target:price"].numpy()
    assert np.isclose(price.stats.mean[0], raw.mean(), rtol=1e-6) and np.isclose(
        price.stats.std[0], raw.std(), rtol=1e-6
    )
    assert sold.classes == ("false", "true")
    assert sold.counts == tuple(np.bincount(prepared.store.columns["target:sold"]).tolist())


def test_serving_the_training_rows_gives_the_training_tensors_to_the_bit(frame, fitted):
    preprocess, prepared = fitted
    again = preprocess.transform(frame, with_targets=True)
    same(prepared.store.columns, again.store.columns)
    assert again.set_aside == prepared.set_aside and (again.rows == prepared.rows).all()


def test_what_is_loaded_is_what_was_saved(frame, fitted, tmp_path):
    preprocess, prepared = fitted
    preprocess.save(tmp_path)
    loaded = Preprocess.load(tmp_path)
    assert loaded == preprocess and loaded.spec == preprocess.spec and isinstance(loaded.spec, DataSpec)
    assert {p.name for p in tmp_path.iterdir()} == {"preprocess.json", "tokenizer-0.json"}
    same(prepared.store.columns, loaded.transform(frame, with_targets=True).store.columns)


def test_a_row_means_the_same_alone_and_among_others(frame, fitted):
    preprocess, prepared = fitted
    row = int(prepared.rows[40])
    alone = preprocess.transform(frame[row : row + 1]).store.gather(torch.tensor([0]))
    among = prepared.store.gather(torch.tensor([40]))
    same(alone, {key: value for key, value in among.items() if not key.startswith("target:")})


def test_fitting_twice_learns_the_same(frame, fitted):
    assert Preprocess.fit(frame, infer(frame, TARGETS), TARGETS)[0] == fitted[0]


def test_columns_may_be_moved_retyped_and_joined_by_others(frame, fitted):
    preprocess, prepared = fitted
    changed = frame[prepared.rows].select(
        pl.lit("x").alias("other"),
        *(pl.col(name) for name in reversed(frame.columns) if name not in TARGETS),
    )
    changed = changed.with_columns(
        pl.col("colour").cast(pl.Categorical),
        pl.col("weight").cast(pl.String),
        pl.col("fresh") == "yes",
        pl.col("when").cast(pl.Date),
        photo=pl.struct(bytes="photo", path=pl.lit(None, pl.String)),
    )
    among = {key: value for key, value in prepared.store.columns.items() if not key.startswith("target:")}
    same(among, preprocess.transform(changed).store.columns)


def test_a_frame_born_in_pandas_is_the_same_table():
    data = {"size": [1, 2, None, 4] * 5, "kind": ["a", "b", None, "a"] * 5, "y": [0.5, 1.5, 2.5, 3.5] * 5}
    ours = pl.DataFrame(data)
    preprocess, prepared = Preprocess.fit(ours, infer(ours, ("y",)), ("y",))
    theirs = pl.from_pandas(pd.DataFrame(data).astype({"kind": "category"}), nan_to_null=False)
    assert theirs.schema["size"] == pl.Float64  # pandas made whole numbers with a gap fractions
    same(prepared.store.columns, preprocess.transform(theirs, with_targets=True).store.columns)


def test_whole_numbers_as_classes_survive_becoming_fractions():
    frame = pl.DataFrame({"code": [1, 2, 3, 1] * 6, "y": [0.1, 0.2, 0.3, 0.4] * 6})
    preprocess, prepared = Preprocess.fit(frame, infer(frame, ("y",), {"code": "category"}), ("y",))
    retyped = preprocess.transform(frame.with_columns(pl.col("code").cast(pl.Float64)))
    assert torch.equal(retyped.store.columns["category"], prepared.store.columns["category"])


def test_strange_values_count_as_unknown_and_missing_and_are_noted(frame, fitted):
    preprocess = fitted[0]
    strange = frame[:3].with_columns(
        colour=pl.Series(["violet", None, UNKNOWN]), weight=pl.Series(["much", "inf", "3"]), fresh=pl.Series([7, 1, 0])
    )
    prepared = preprocess.transform(strange)
    names = [f.name for f in preprocess.spec.categories]
    codes = {name: prepared.store.columns["category"][:, i].tolist() for i, name in enumerate(names)}
    assert codes == {"weight.missing": [2, 2, 1], "colour": [0, 0, 0], "fresh": [0, 2, 1]}
    assert any("'colour': 2 values" in note for note in prepared.notes)
    assert any("'weight': 2 values" in note for note in prepared.notes)


def test_no_rows_are_fine_when_serving_and_refused_when_learning(frame, fitted):
    nothing = fitted[0].transform(frame[:0], with_targets=True)
    assert len(nothing.store) == 0 and nothing.store.columns.keys() == fitted[1].store.columns.keys()
    with pytest.raises(DataError, match="no row"):
        Preprocess.fit(frame[:0], infer(frame, TARGETS), TARGETS)


def test_missing_columns_are_named(frame, fitted):
    with pytest.raises(DataError, match="lacks the columns 'colour', 'when', which"):
        fitted[0].transform(frame.drop("colour", "when"))
    with pytest.raises(DataError, match="lacks the column 'price'"):
        fitted[0].transform(frame.drop("price"), with_targets=True)
    assert len(fitted[0].transform(frame.drop("price", "sold")).rows) == ROWS - 1


def test_a_table_whose_rows_are_mostly_broken_is_refused(frame):
    broken = frame.with_columns(price=pl.Series([1.0, 2.0, *[None] * (ROWS - 2)]))
    with pytest.raises(DataError, match=r"Most rows .* target 'price' is missing"):
        Preprocess.fit(broken, infer(broken, TARGETS), TARGETS)


def test_who_has_few_labels_of_images_is_told_what_learns_without():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"image": [png(rng) for _ in range(20)], "kind": ["cat", "dog", *[None] * 18]})
    with pytest.raises(DataError, match=r"target 'kind' is missing\. Images without one .* '--objective consistency'"):
        Preprocess.fit(frame, infer(frame, ["kind"]), ["kind"])
    Preprocess.fit(frame, infer(frame, ["kind"]), ["kind"], missing=True)


def test_a_table_of_nothing_but_targets_is_refused():
    frame = pl.DataFrame({"y": [1.0, 2.0, 3.5], "z": ["a"] * 3})
    with pytest.raises(DataError, match="No column is left"):
        columns = tuple(replace(c, kind="constant") if c.name == "z" else c for c in infer(frame, ("y",)))
        Preprocess.fit(frame, columns, ("y",))


def test_derived_names_give_way_to_the_user_s_own():
    frame = pl.DataFrame({"a": [1.0, None, 3.0, 5.0], "a.missing": [0.5, 1.5, 2.5, 4.0], "y": [1.5, 2.5, 3.0, 4.0]})
    preprocess, _ = Preprocess.fit(frame, infer(frame, ("y",)), ("y",))
    assert sorted(f.name for f in preprocess.spec.inputs) == ["a", "a.missing", "a.missing'"]


def test_tensors_beyond_the_allowance_lie_in_files_and_hold_the_same(frame, fitted):
    columns = infer(frame, TARGETS)
    mapped, prepared = Preprocess.fit(frame, columns, TARGETS, config=PrepareConfig(memory=1e-9))
    same(fitted[1].store.columns, prepared.store.columns)
    assert mapped.spec == fitted[0].spec


def test_options_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"prepare\.vocabulary.*10.*300"):
        build(PrepareConfig, {"vocabulary": 10}, "prepare")


cells = st.one_of(
    st.none(), st.floats(allow_subnormal=True), st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, 1e16, 3.0])
)
words = st.one_of(
    st.none(), st.text(max_size=6), st.sampled_from([UNKNOWN, "", "nan", "1", "ß", "\u0000", "\U0001f600"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*[st.lists(s, min_size=n, max_size=n) for s in (cells, words, words)])
    )
)
def test_odd_tables_become_finite_tensors_that_serving_repeats(tmp_path_factory, columns):
    numbers, labels, sentences = columns
    frame = pl.DataFrame(
        {"x": numbers, "c": labels, "t": sentences, "d": [f"20{i:02d}-01-01" for i in range(len(numbers))]},
        schema={"x": pl.Float64, "c": pl.String, "t": pl.String, "d": pl.String},
    )
    known = infer(frame)
    kinds = {"x": "number", "c": "category", "t": "text", "d": "datetime"}
    known = tuple(replace(c, kind=kinds[c.name], format="%Y-%m-%d" if c.name == "d" else "") for c in known)
    preprocess, prepared = Preprocess.fit(frame, known)
    number = prepared.store.columns["number"]
    assert torch.isfinite(number).all() and len(number) == len(frame)
    same(prepared.store.columns, preprocess.transform(frame).store.columns)
    for field in preprocess.spec.numbers:
        assert np.isfinite([*field.stats.mean, *field.stats.std, *field.stats.quantiles]).all()
    for place, field in enumerate(preprocess.spec.categories):
        assert prepared.store.columns["category"][:, place].max() < len(field.classes)
    folder = tmp_path_factory.mktemp("saved")
    preprocess.save(folder)
    same(prepared.store.columns, Preprocess.load(folder).transform(frame).store.columns)


def edit(document, path, value):
    *steps, last = path
    for step in steps:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    "path, value",
    [
        (("version",), 2),
        (("rows",), -1),
        (("rows",), "many"),
        (("memory",), -5.0),
        (("numbers", 0, "scale", "factor"), None),
        (("numbers", 0, "scale", "how"), "eval"),
        (("numbers", 0, "scale", "knots"), [1.0]),
        (("numbers", 0, "column"), "unheard of"),
        (("numbers", 0, "column"), "colour"),
        (("categories", 0, "classes"), ["a", "b"]),
        (("categories", 0, "classes"), [UNKNOWN, "a", "a"]),
        (("dates", 0, "parts", 0, "name"), "__class__"),
        (("dates", 0, "first"), 2**63 - 1),
        (("texts", 0, "length"), 10**9),
        (("texts", 0, "frequencies"), [0.5]),
        (("images", 0, "height"), 10**6),
        (("images", 0, "channels"), 2),
        (("outcomes", 0, "kind"), "category"),
        (("outcomes", 1, "counts"), [1]),
        (("columns",), []),
    ],
)
def test_a_doctored_file_is_refused(fitted, tmp_path, path, value):
    fitted[0].save(tmp_path)
    file = tmp_path / "preprocess.json"
    document = json.loads(file.read_text())
    edit(document, path, value)
    file.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"preprocess\.json"):
        Preprocess.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": 1}'])
def test_a_damaged_file_is_refused(fitted, tmp_path, content):
    fitted[0].save(tmp_path)
    (tmp_path / "preprocess.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        Preprocess.load(tmp_path)


def test_a_missing_file_is_named(fitted, tmp_path):
    with pytest.raises(ArtifactError, match=r"preprocess\.json' cannot be read"):
        Preprocess.load(tmp_path)
    fitted[0].save(tmp_path)
    (tmp_path / "tokenizer-0.json").unlink()
    with pytest.raises(ArtifactError, match="tokenizer-0"):
        Preprocess.load(tmp_path)
