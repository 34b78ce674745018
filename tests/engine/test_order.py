import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine import order


@given(rows=st.integers(1, 500), batch=st.integers(1, 600), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_each_row_stands_once_in_an_epoch_in_even_batches(rows: int, batch: int, seed: int, epoch: int) -> None:
    found = order.batches(rows, min(batch, rows), seed, epoch)
    assert sorted(torch.cat(found).tolist()) == list(range(rows))
    lengths = {len(b) for b in found}
    assert max(lengths) <= batch and max(lengths) - min(lengths) <= 1
    assert len(found) == order.steps_per_epoch(rows, min(batch, rows))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    first = torch.cat(order.batches(100, 10, seed=3, epoch=4))
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(first, torch.cat(order.batches(100, 32, seed=3, epoch=4)))
    assert not torch.equal(first, torch.cat(order.batches(100, 10, seed=4, epoch=3)))
    assert not torch.equal(first, torch.cat(order.batches(100, 10, seed=3, epoch=5)))


def test_no_last_batch_of_one_row() -> None:
    assert [len(b) for b in order.batches(129, 128, 0, 0)] == [65, 64]


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=200), count=st.integers(1, 5), seed=st.integers(0, 99))
def test_rows_of_a_value_stand_together_and_each_stands_once(values: list[int], count: int, seed: int) -> None:
    of_row = torch.tensor(values)
    (found,) = order.batches(len(values), len(values), seed, 0, of_row, count)
    assert sorted(found.tolist()) == list(range(len(values)))
    left, at = [values.count(value) for value in range(6)], 0
    while at < len(found):
        value = int(of_row[found[at]])
        size = min(count, left[value])
        assert of_row[found[at : at + size]].tolist() == [value] * size
        left[value] -= size
        at += size


def test_bundles_are_spread_over_the_epoch() -> None:
    of_row = torch.arange(400) % 4
    found = order.batches(400, 40, 0, 0, of_row, 4)
    assert all(len(of_row[batch].unique()) >= 3 for batch in found)
    assert not torch.equal(torch.cat(found), torch.cat(order.batches(400, 40, 0, 1, of_row, 4)))


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4))
def test_mixed_seeds_fit_a_generator(numbers: list[int]) -> None:
    assert 0 <= order.mix(*numbers) < 2**63


def test_neighbouring_seeds_share_no_low_bits() -> None:
    low = {order.mix(seed, step) & 0xFFFFFFFF for seed in range(30) for step in range(300)}
    assert len(low) > 8990  # PyTorch's CPU generator looks at these bits only; 9000 draws collide about never


@pytest.mark.parametrize(("rows", "parts", "expected"), [(10, 3, [4, 3, 3]), (2, 2, [1, 1]), (7, 1, [7])])
def test_sizes(rows: int, parts: int, expected: list[int]) -> None:
    assert order.sizes(rows, parts) == expected
