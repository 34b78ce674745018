"""A folder's files are its registry; files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.files import replacing, sha256, write_text


def test_files_and_presets_are_names() -> None:
    names = catalog.names("models")
    assert names["resnet"] == "resnet" and names["resnet50"] == "resnet"
    assert all(not name.startswith("_") for name in names)
    entry = catalog.find("models", "resnet50")
    assert entry.config == entry.module.presets["resnet50"]


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'resnet50'"):
        catalog.find("models", "resnet5O")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    before = sha256(path)

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert sha256(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
