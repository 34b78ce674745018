"""A small trained-like model, its artifact, and a preprocessing that needs no other room."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from fathom.artifact import rebuild, save
from fathom.core import catalog
from fathom.core.config import build
from fathom.core.types import DataSpec, Field, Stats
from fathom.data._store import TensorStore

SPEC = DataSpec(
    inputs=(
        Field(name="a", kind="number", source="a", stats=Stats(quantiles=(-1.0, 0.0, 1.0))),
        Field(name="b", kind="number", source="b", stats=Stats(quantiles=(-1.0, 0.1, 1.0))),
    ),
    targets=(Field(name="kind", kind="category", source="kind", classes=("nö", "yes", "may|be"), counts=(9, 8, 7)),),
    rows=24,
)
METRICS = {
    "test": {
        "kind": {
            "kind": "category",
            "n": 12,
            "main": "accuracy",
            "metrics": {
                "accuracy": {"value": 0.75, "low": 0.5, "high": 0.9},
                "auroc": {"value": float("nan"), "low": None, "high": None},
            },
        }
    },
    "baselines": [{"name": "majority", "target": "kind", "metrics": {"accuracy": {"value": 0.375}}}],
}
FILES = {"report.html": "<p>curves</p>", "config.toml": 'source = "x"\n', "evidence.json": b"{}"}


@dataclass
class Scaling:
    """Takes columns of a frame as they are; rows with a null are set aside."""

    spec: DataSpec
    written = ()

    def transform(self, frame: pl.DataFrame, *, folder=None, with_targets=False, paths=True):
        columns = [field.source for field in self.spec.inputs]
        values = frame.select(pl.col(columns).cast(pl.Float32)).to_numpy().reshape(-1, len(columns))
        kept = np.flatnonzero(~np.isnan(values).any(1))
        lost = sorted(set(range(frame.height)) - set(kept.tolist()))
        aside = tuple(SimpleNamespace(where="", row=row + 1, column=None, reason="a number is missing") for row in lost)
        store = TensorStore({"number": torch.tensor(values[kept])})
        return SimpleNamespace(store=store, rows=kept, set_aside=aside)

    def save(self, folder: Path) -> None:
        (folder / "preprocess.json").write_bytes(msgspec.json.encode(self.spec))

    @classmethod
    def load(cls, folder: Path) -> Scaling:
        return cls(msgspec.convert(json.loads((folder / "preprocess.json").read_bytes()), DataSpec))


def objective(spec: DataSpec = SPEC, model: str = "mlp", seed: int = 0, **options):
    """Return (model entry, objective entry, the objective with random weights)."""
    torch.manual_seed(seed)
    part, goal = catalog.find("models", model), catalog.find("objectives", "supervised")
    part = catalog.Entry(part.room, part.name, part.module, build(type(part.config), options))
    module = goal.module.build(goal.config, spec, part.module.build(part.config, spec))
    return part, goal, module


def write(folder: Path, module_seed: int = 0, spec: DataSpec = SPEC, **changes) -> Path:
    part, goal, module = objective(spec, seed=module_seed, width=8, members=2)
    values = {"model": part, "objective": goal, "module": module, "spec": spec, "preprocess": Scaling(spec)}
    return save(folder, **{**values, "metrics": METRICS, "files": FILES, **changes})


@pytest.fixture(autouse=True)
def _own_preprocessing(monkeypatch):
    monkeypatch.setattr(rebuild, "import_module", lambda name: SimpleNamespace(Preprocess=Scaling))


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """An artifact to read; whoever changes it changes it back."""
    return write(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """An artifact of the test's own."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def frame() -> pl.DataFrame:
    values = np.random.default_rng(0).normal(size=(37, 2))
    return pl.DataFrame({"a": values[:, 0], "b": values[:, 1]})
