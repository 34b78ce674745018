"""What is made of the data before training."""

import polars as pl
import torch

from fathom.api.config import Settings
from fathom.api.prepare import prepare


def test_a_test_file_is_read_as_the_training_file(tmp_path):
    """Its cells alone would say that "1.234" is little, and True a truth."""
    rows = pl.DataFrame(
        {
            "amount": [f"{i % 9 + 1}.{i * 7 % 900 + 100}" if i % 2 else f"{i},5" for i in range(60)],
            "truth": [("True", "False", "Unknown")[i % 3] for i in range(60)],
            "y": [("1.0", "2.0", "other")[i % 3] for i in range(60)],
        }
    )
    rows.write_csv(tmp_path / "train.csv")
    rows[1::6].extend(rows[3::6]).write_csv(tmp_path / "test.csv")  # no comma, no word but True and False
    material = prepare(
        tmp_path / "train.csv",
        tmp_path / "test.csv",
        Settings({"data": {"target": ["y"]}, "split": {"valid": 0.0}}),
        seed=0,
    )
    assert {c.name: c.format for c in material.columns}["amount"] == ","
    judge, train = material.test.prepared.store.columns, material.train.prepared.store.columns
    assert len(judge["number"]) == 20 and not material.set_aside
    for name in judge:
        known = {tuple(row) for row in train[name].reshape(60, -1).tolist()}
        assert {tuple(row) for row in judge[name].reshape(20, -1).tolist()} <= known, name
    assert torch.equal(judge["category"].unique(), torch.tensor([1, 2], dtype=judge["category"].dtype))
