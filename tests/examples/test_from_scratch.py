"""The network in plain numpy learns, its gradients are right, and it ends where PyTorch's ends."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parent.parent.parent / "examples" / "from_scratch.py"


@pytest.fixture(scope="module")
def program() -> dict:
    return runpy.run_path(str(FILE))


def test_it_ends_with_the_weights_of_pytorch_and_reads_digits(program: dict) -> None:
    found = program["main"]()
    assert found["largest difference from PyTorch"] < 1e-6
    assert found["accuracy on test images"] > 0.96
    assert found["loss after"] < 0.05 < found["loss before"]


def test_its_gradients_are_slopes_of_the_loss(program: dict) -> None:
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(7, 5)), draw.integers(3, size=7)
    w = program["first_weights"](5, 6, 3)
    gradient = program["backward"](w, x, y)

    def loss_at(name: str, place: tuple[int, ...], step: float) -> float:
        moved = {key: value.copy() for key, value in w.items()}
        moved[name][place] += step
        return program["cross_entropy"](program["forward"](moved, x)[2], y)

    for name, slopes in gradient.items():
        for place in np.ndindex(slopes.shape):
            slope = (loss_at(name, place, 1e-5) - loss_at(name, place, -1e-5)) / 2e-5
            assert slope == pytest.approx(slopes[place], abs=1e-8)
