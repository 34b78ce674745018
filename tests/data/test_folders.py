"""Folders whose sub-folders are classes, and the samples, which are a folder too."""

import shutil

import polars as pl
import pytest
from PIL import Image

from fathom.core.errors import ConfigError, DataError
from fathom.data import _samples
from fathom.data._columns import infer
from fathom.data._source import read


def images(folder, count=3):
    for label in ("Katze", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4), i).save(folder / label / f"{i}.PNG")


def test_images_by_class(tmp_path):
    images(tmp_path)
    (tmp_path / "stray.png").write_bytes(b"")
    (tmp_path / "dog" / "notes.pdf").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(b"")
    table = read(tmp_path)
    assert table.target == ("label",) and table.split is None and table.folder == tmp_path
    assert table.frame.columns == ["image", "file", "label"] and table.inputs == ("image",)
    assert table.frame.rows()[:1] == [("Katze/0.PNG", "Katze/0.PNG", "Katze")] and len(table.frame) == 6
    assert sorted((s.where.rsplit("/", 1)[1], s.reason) for s in table.set_aside) == [
        ("notes.pdf", "it is no image"),
        ("stray.png", "it is not in a class's folder"),
    ]
    assert infer(table.frame, table.target, folder=table.folder)[0].why == "paths of image files"


def test_parts_above_the_classes(tmp_path):
    images(tmp_path / "train")
    images(tmp_path / "Val", 2)
    images(tmp_path / "test", 1)
    table = read(str(tmp_path))
    assert table.split == "split" and table.frame["split"].value_counts().sort("split")["count"].to_list() == [2, 6, 4]
    assert set(table.frame["label"]) == {"Katze", "dog"}


def test_texts_by_class(tmp_path):
    for label, data in {"gut": "schön".encode("cp1252"), "bad": "Ümlaut\n".encode()}.items():
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.txt").write_bytes(data)
        (tmp_path / label / "b.md").write_bytes(data)
    (tmp_path / "bad" / "empty.txt").write_bytes(b"")
    (tmp_path / "bad" / "binary.txt").write_bytes(b"a\0b\0\0\0\1")
    table = read(tmp_path)
    found = table.frame.select("text", "label").rows()
    assert found == [("Ümlaut", "bad"), ("Ümlaut", "bad"), ("schön", "gut"), ("schön", "gut")]
    assert table.frame["file"].to_list() == ["bad/a.txt", "bad/b.md", "gut/a.txt", "gut/b.md"]
    assert table.inputs == ("text",) and infer(table.frame, ("label",))[1].kind == "identifier"
    assert [s.reason for s in table.set_aside] == ["it cannot be read: it is not text", "it is empty"]


def test_folders_that_are_something_else(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds 1 other files \(1 .bin\); expected images"):
        read(tmp_path)
    (tmp_path / "table.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"give '.*table.csv' itself"):
        read(tmp_path)
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(DataError, match=r"give '.*table.csv' itself"):  # the text says what the table is
        read(tmp_path)


def test_images_without_classes_are_there_to_predict_for(tmp_path):
    images(tmp_path)
    (tmp_path / "dog" / "table.csv").write_text("a\n1\n")
    table = read(tmp_path / "dog")
    assert table.frame.to_dict(as_series=False) == {"image": ["0.PNG", "1.PNG", "2.PNG"], "file": [
        "0.PNG", "1.PNG", "2.PNG"]}  # fmt: skip
    assert (table.target, table.split, table.inputs) == ((), None, ("image",)) and table.folder == tmp_path / "dog"
    assert "have no classes" in table.notes[0] and [s.reason for s in table.set_aside] == ["it is no image"]
    one = read(str(tmp_path / "Katze" / "1.PNG"))
    assert one.frame.rows(named=True) == [{"image": "1.PNG", "file": "1.PNG"}] and one.folder == tmp_path / "Katze"
    assert [c.kind for c in infer(table.frame, folder=table.folder)] == ["image", "identifier"]


def test_texts_without_classes_are_there_to_predict_for(tmp_path):
    for name in ("b c d.txt", "a.md"):
        (tmp_path / name).write_text(f"says {name}")
    (tmp_path / "about.json").write_text("{}")
    table = read(tmp_path)
    assert table.frame.rows() == [("says a.md", "a.md"), ("says b c d.txt", "b c d.txt")]
    assert table.target == () and table.inputs == ("text",)
    assert infer(table.frame)[1].kind == "identifier"


def test_linked_folders_are_read_once(tmp_path):
    images(tmp_path / "elsewhere")
    here = tmp_path / "here"
    here.mkdir()
    for label in ("Katze", "dog"):
        (here / label).symlink_to(tmp_path / "elsewhere" / label)
    (here / "again").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "elsewhere" / "dog" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "dog" / "round").symlink_to(tmp_path / "elsewhere" / "dog")
    table = read(here)
    assert table.frame["label"].value_counts(sort=True).rows() == [("Katze", 3), ("again", 3)]
    assert [note.split("'")[1].removeprefix(f"{here}/") for note in table.notes] == ["dog", "again/round", "again/up"]


@pytest.mark.parametrize("name", _samples.names())
def test_samples_are_what_they_say(name):
    sample = _samples.find(name)
    table = read(name)
    assert len(table.frame) == sample.rows and table.target == sample.target and table.split == sample.split
    wanted = [*sample.target, *sample.inputs, *([sample.split] if sample.split else [])]
    assert set(wanted) <= set(table.frame.columns)
    assert sample.licence and sample.source and sample.title and not table.set_aside
    assert len(sample.notice.read_text(encoding="utf-8")) > 500


def test_samples_are_listed_from_their_folder(tmp_path, monkeypatch):
    assert {"diamonds", "fashion", "verses"} <= set(_samples.names())
    with pytest.raises(ConfigError, match="Did you mean 'diamonds'"):
        _samples.find("diamond")
    for path in _samples.FOLDER.glob("diamonds.*"):
        shutil.copy(path, tmp_path / path.name.replace("diamonds", "gems"))
    monkeypatch.setattr(_samples, "FOLDER", tmp_path)
    assert _samples.names() == ("gems",) and read("gems").target == ("price",)


def test_diamonds_are_whole():
    frame = read("diamonds").frame
    assert frame.shape == (53_940, 10) and frame.null_count().sum_horizontal().item() == 0
    assert frame.select(pl.col("price").min(), pl.col("price").max().alias("most")).row(0) == (326, 18_823)
