"""Models from a file of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import fathom
from fathom.core.errors import ArtifactError, ConfigError

QUICK: dict[str, Any] = {
    "engine": {"epochs": 2, "threads": 1, "precision": "fp32", "batch_size": 16},
    "evaluate": {"baselines": False},
}
OWN = """
import torch
from torch import nn
from beside import WIDTH
from fathom.core.types import Features

class Wide(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.width = WIDTH
        self.layer = nn.Linear(len(spec.numbers), self.width)

    def forward(self, batch):
        return Features(pooled=torch.relu(self.layer(batch["number"])))

def build(spec):
    return Wide(spec)

def broken(spec):
    return 1 / 0

def other(spec):
    return 12
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 12\n")
    (tmp_path / "mine.py").write_text(OWN)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(80, 3))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": np.where(x.sum(1) > 0, "up", "down")})
    frame.write_csv(tmp_path / "table.csv")
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from fathom.cli import main; main()", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_file_of_ones_own_from_the_command_line(own: Path) -> None:
    quick = ["--epochs", "2", "--set", "evaluate.baselines=false", "--set", "engine.threads=1"]
    done = command(own, "fit", "table.csv", "--target", "label", "--model", "mine.py:Wide", "--out", "out", *quick)
    assert done.returncode == 0, done.stderr
    done = command(own, "predict", "out", "table.csv", "--model", "mine.py:build")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 81, done.stderr
    done = command(own, "predict", "out", "table.csv")
    assert done.returncode == 2 and "--model path.py:build" in done.stderr and "Traceback" not in done.stderr


def test_every_verb_takes_a_file_of_ones_own(own: Path) -> None:
    table, mine = str(own / "table.csv"), str(own / "mine.py")
    model = fathom.fit(table, "label", model=f"{mine}:build", config=QUICK, out=own / "out")
    for given in (f"{mine}:Wide", f"{mine}:build"):
        loaded = fathom.load(own / "out", model=given)
        np.testing.assert_array_equal(loaded.predict(table)["probability"], model.predict(table)["probability"])
    from typer.testing import CliRunner

    from fathom.cli import app

    for words in (["evaluate", "out", table], ["report", "out"], ["info", "out"]):
        words[1] = str(own / "out")
        assert CliRunner().invoke(app, [*words, "--model", f"{mine}:build"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.py:build", "There is no file 'nowhere.py'"),
        ("mine.py", "not of the form path.py:build"),
        ("mine.py:biuld", "has no function 'biuld'.*Did you mean 'build'"),
        ("mine.py:WIDTH", "has no function 'WIDTH'"),
        ("mine.py:broken", r"mine.py', line 20: broken\(spec\) fails with ZeroDivisionError"),
        ("mine.py:other", "int has no whole number `width`"),
        ("typo.py:build", r"typo.py', line 2: the file fails with SyntaxError"),
    ],
)
def test_mistakes_in_ones_own_file_are_one_line(
    name: str, told: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "typo.py").write_text("x = 1\ndef build(:\n")
    monkeypatch.chdir(own)
    with pytest.raises(ConfigError, match=told):
        fathom.fit("table.csv", "label", model=name, config=QUICK)


def test_a_config_file_never_has_code_run(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no model 'mine\.py:build'"):
        fathom.fit(str(own / "table.csv"), "label", config={**QUICK, "model": {"name": "mine.py:build"}})


def test_a_model_of_the_catalog_is_loaded_without_ones_own(own: Path) -> None:
    fathom.fit(str(own / "table.csv"), "label", model="perceptron", config=QUICK, out=own / "out")
    with pytest.raises(ArtifactError, match="rebuilds its own model, 'perceptron'; load it without model="):
        fathom.load(own / "out", model=f"{own / 'mine.py'}:build")
