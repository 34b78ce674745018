"""A file that is served later means what the same rows meant in training, though its cells suggest other types."""

import gzip

import numpy as np
import polars as pl
import pytest

from fathom.data import Preprocess, infer, read

ROWS = 60
TARGETS = ("price", "sold")


def table():
    """Text columns whose cells look like numbers or truths in part of the rows, and a column of each other kind."""
    rng = np.random.default_rng(0)
    thousands = [f"{v // 1000}.{v % 1000:03d}" for v in rng.integers(1000, 9999, ROWS)]
    thousands[::5] = [f"{v:.1f}".replace(".", ",") for v in rng.uniform(1000, 9999, ROWS // 5)]
    return pl.DataFrame(
        {
            "truth": rng.choice(["True", "False", "Unknown"], ROWS).tolist(),
            "version": rng.choice(["1.0", "2.0", "1.10", "1.1", "other"], ROWS).tolist(),
            "zip": rng.choice(["07030", "10001", "94103"], ROWS).tolist(),
            "amount": thousands,
            "weight": [None if i % 10 == 0 else round(v, 3) for i, v in enumerate(rng.normal(5, 2, ROWS))],
            "doors": rng.integers(2, 6, ROWS).tolist(),
            "grade": [float(i % 4) if i % 7 else 2.5 for i in range(ROWS)],
            "fresh": rng.choice(["yes", "no"], ROWS).tolist(),
            "new": rng.choice([True, False], ROWS).tolist(),
            "when": [f"{i % 28 + 1}.{i % 12 + 1}.2024" for i in range(ROWS)],
            "day": [f"2024{i % 12 + 1:02d}{i % 28 + 1:02d}" for i in range(ROWS)],
            "said": [f"thing {i} is fine, I would say" if i % 3 else f"{i}.50" for i in range(ROWS)],
            "price": [v.replace("7", "8") for v in thousands],
            "sold": rng.choice(["1.0", "0.5", "none"], ROWS).tolist(),
        }
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The training file and its preprocessing, saved and loaded as it is before serving."""
    folder = tmp_path_factory.mktemp("served")
    whole = table()
    whole.write_csv(folder / "train.csv")
    frame = read(folder / "train.csv").frame
    kinds = {"grade": "category", "day": "datetime", "said": "text"}
    fitted, prepared = Preprocess.fit(frame, infer(frame, TARGETS, kinds), TARGETS)
    fitted.save(folder)
    return whole, Preprocess.load(folder), prepared.store, folder / "rows.csv"


def same(found, store, rows):
    for name, tensor in found.store.columns.items():
        assert np.array_equal(tensor.numpy(), store.columns[name].numpy()[rows]), name


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_one_row_is_what_it_was_among_many(served, separator):
    whole, fitted, store, path = served
    for row in range(ROWS):
        whole[row].write_csv(path, separator=separator)
        rows = read(path, text=fitted.text_columns)
        found = fitted.transform(rows.frame, with_targets=True)
        assert len(found.rows) == 1 and not found.set_aside, row
        same(found, store, [row])


def test_rows_that_all_look_like_numbers_are_what_they_were(served):
    whole, fitted, store, path = served
    rows = [i for i in range(ROWS) if "," not in whole["amount"][i] and whole["truth"][i] != "Unknown" and i % 3 == 0]
    assert len(rows) > 5
    whole[rows].write_csv(path)
    assert read(path).frame.schema["amount"] == pl.Float64  # 1.234, a thousand times too little
    same(fitted.transform(read(path, text=fitted.text_columns).frame, with_targets=True), store, rows)
    packed = path.with_name("rows.csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    same(fitted.transform(read(packed, text=fitted.text_columns).frame, with_targets=True), store, rows)


def test_only_plain_numbers_are_left_to_the_cells(served):
    assert set(served[0].columns) - served[1].text_columns == {"weight", "doors"}


def test_typed_values_are_the_classes_that_text_was(served):
    """Frames and JSON have types of their own."""
    whole, fitted, store, _ = served
    rows = [i for i in range(ROWS) if whole["truth"][i] != "Unknown" and whole["version"][i] in ("1.0", "2.0")]
    typed = whole[rows].with_columns(pl.col("truth") == "True", pl.col("version").cast(pl.Float64))
    assert typed["truth"].n_unique() == 2 and typed["version"].n_unique() == 2
    found = fitted.transform(read(typed).frame)
    fields = [f.name for f in fitted.spec.inputs if f.kind == "category"]
    ours, theirs = found.store.columns["category"].numpy(), store.columns["category"].numpy()[rows]
    for name in ("truth", "version"):
        place = fields.index(name)
        assert (ours[:, place] == theirs[:, place]).all() and (ours[:, place] > 0).all()
