"""`fathom bench`: what a step takes, and what the tuner makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.api import bench
from fathom.core.errors import ConfigError
from tests.api.test_cli import fathom


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "MINUTES", 0.02)
    monkeypatch.setattr("fathom.engine.bench.SECONDS", 0.05)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    rows = [f"{i % 7},{i % 11 / 3},{'yes' if i % 3 else 'no'}" for i in range(300)]
    path.write_text("\n".join(["a,b,label", *rows]))
    return path


def test_a_step_is_measured_and_told(table: Path) -> None:
    options = ("--set", 'data.target=["label"]', "--set", "engine.batch_size=50")
    row = json.loads(fathom("bench", "mlp", "--source", table, *options, "--json").stdout)
    assert row["model"] == "mlp" and row["batch_size"] == 50
    assert row["gain"] == pytest.approx(row["plain_ms"] / row["tuned_ms"])
    assert row["samples_per_second"] == pytest.approx(50 / row["tuned_ms"] * 1e3)
    assert 0 < row["share_of_limit"] < 1.5
    assert row["settings"]["form"] in ("plain", "recorded") and row["settings"]["threads"] >= 1
    told = fathom("bench", "mlp", "--source", table, *options).stdout
    assert "over PyTorch's defaults" in told and "of the" in told


def test_mistakes_are_one_sentence(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "There is no model 'resnet81'" in fathom("bench", "resnet81", code=2).stderr
    told = fathom("bench", "lenet", "--source", table, "--set", 'data.target=["label"]', code=2).stderr
    assert "lenet" in told and len(told.splitlines()) == 1
    monkeypatch.setattr(bench, "_measured", lambda *given: (_ for _ in ()).throw(ConfigError("It takes graphs.")))
    assert "takes none of the bundled samples; name data with --source" in fathom("bench", "gcn", code=2).stderr
