"""Balance: how often classes are said, brought to how often they are wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fathom.core.types import Field
from fathom.engine.weights import Trailing
from fathom.layers.balance import Balance


def leaning(rows: int = 4_000) -> torch.Tensor:
    """Return probabilities [B, 3] that say the first class too often."""
    torch.manual_seed(0)
    return (2 * torch.randn(rows, 3) + torch.tensor([1.5, 0.0, -0.5])).softmax(1)


def balancing(counts: tuple[int, ...], rounds: int) -> Balance:
    return Balance(Field(name="kind", kind="category", classes=("a", "b", "c"), counts=counts), rounds)


def settled(balance: Balance, found: torch.Tensor, steps: int = 1_500) -> torch.Tensor:
    trailing = Trailing(balance.averages())
    for step in range(steps):
        start = 100 * step % len(found)
        balance(found[start : start + 100])
        trailing.update(0.0)
    return balance.eval()(found)


def sinkhorn(p: np.ndarray, wanted: np.ndarray, rounds: int) -> np.ndarray:
    """Rows to a sum of one and columns to what is wanted, in turns; rows last."""
    for _ in range(rounds):
        p = p * wanted / p.mean(0)
        p = p / p.sum(1, keepdims=True)
    return p


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_its_rounds_are_sinkhorns_of_all_rows_seen(rounds: int) -> None:
    found = leaning()
    wanted = np.array([20, 50, 30]) / 100
    expected = sinkhorn(found.double().numpy(), wanted, rounds)
    np.testing.assert_allclose(settled(balancing((19, 49, 29), rounds), found), expected, atol=0.02)


def test_more_rounds_come_closer_to_what_is_wanted() -> None:
    found = leaning()
    off = [float((settled(balancing((99, 99, 99), n), found).mean(0) - 1 / 3).abs().max()) for n in (0, 1, 3)]
    assert off[0] > 2 * off[1] > 4 * off[2]


def test_nothing_changes_before_a_step_is_done_nor_while_nothing_is_learned() -> None:
    found, balance = leaning(50), balancing((9, 9, 9), 2)
    trailing = Trailing(balance.averages())
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(balance(found), found)
    trailing.update(0.0)
    before = {key: value.clone() for key, value in balance.state_dict().items()}
    with torch.no_grad():
        assert not torch.allclose(balance(found), found)
    assert not torch.allclose(balance.eval()(found), found)
    assert all(torch.equal(before[key], value) for key, value in balance.state_dict().items())
