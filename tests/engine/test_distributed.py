"""Two processes end where one does: same order, same gradients, same checkpoints, and they stop together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.core.errors import ConfigError
from fathom.engine import distributed, shard
from fathom.engine.checkpoint import Checkpoints
from fathom.engine.plan import Plan
from tests.engine import team, toys

PLAN = Plan(epochs=3, batch_size=32, threads=1, precision="fp32")  # 203 rows: batches of 29, which two cannot halve


def _close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def _close_history(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for (train, valid, best), (train_, valid_, best_) in zip(found, expected, strict=True):
        assert train == pytest.approx(train_, rel=1e-4) and valid == pytest.approx(valid_, rel=1e-4)
        assert best == best_


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("plain", {"average": 0.9, "optimizer": "sgd"}),
        ("plain", {"accumulate": 3, "clip": 0.1}),
        ("duel", {"accumulate": 2}),
        ("deep", {"shard": True, "average": 0.9, "accumulate": 2}),
    ],
    ids=["sgd-average", "accumulate", "phases", "shard"],
)
def test_two_processes_learn_what_one_does(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    plan = replace(PLAN, **change)
    weights, history = team.alone(kind, plan)
    first, second = team.run(2, tmp_path, kind, plan)
    assert _same(first[0], second[0])
    _close(first[0], weights)
    _close_history(first[1]["history"], history)
    assert first[1]["history"] == second[1]["history"]
    assert first[1]["saved"] and not second[1]["saved"]  # one process writes


def test_each_row_is_seen_once_and_varied_in_a_way_of_its_own(tmp_path: Path) -> None:
    (_, first), (_, second) = team.run(2, tmp_path, "logged", replace(PLAN, epochs=1, keep="last"))
    rows = toys.data().train.columns["number"][:, 0].tolist()  # type: ignore[attr-defined]
    valid = toys.data().valid.columns["number"][:, 0].tolist()  # type: ignore[union-attr]
    assert sorted(first["seen"] + second["seen"]) == sorted(rows + valid)
    assert abs(len(first["seen"]) - len(second["seen"])) <= 8  # a row for each of seven batches, and one to validate
    assert not set(first["drawn"]) & set(second["drawn"])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(before: int, after: int, tmp_path: Path) -> None:
    plan = replace(PLAN, average=0.9, accumulate=2)
    weights, history = team.alone("duel", plan)
    team.run(before, tmp_path, "duel", plan, stop=1)
    left = team.run(after, tmp_path, "duel", plan, resume=True)
    assert all(told["started"] == 7 for _, told in left)
    for found, told in left:
        _close(found, weights)
        _close_history(told["history"], history)


def test_spread_weights_are_gone_on_with_by_one_process(tmp_path: Path) -> None:
    weights, _ = team.alone("deep", PLAN)
    team.run(2, tmp_path, "deep", replace(PLAN, shard=True, checkpoint_seconds=0.0), data="quiet", stop=2)
    found, _ = Checkpoints(tmp_path / "run").load()
    assert found is not None and found.tensors["weight/model.1.weight"].shape == (1, 6)  # whole
    ((after, _),) = team.run(1, tmp_path, "deep", PLAN, resume=True)
    _close(after, weights)


def test_a_resumed_run_of_two_is_equal_to_the_bit(tmp_path: Path) -> None:
    plan = replace(PLAN, average=0.9, accumulate=2)
    whole = team.run(2, tmp_path / "whole", "varied", plan, data="varied")
    team.run(2, tmp_path / "pieces", "varied", plan, data="varied", stop=2)
    pieces = team.run(2, tmp_path / "pieces", "varied", plan, data="varied", resume=True)
    assert pieces[0][1]["started"] == 14
    for (found, told), (expected, told_) in zip(pieces, whole, strict=True):
        assert _same(found, expected)
        assert told["history"] == told_["history"]


def test_a_loss_that_is_not_finite_in_one_process_is_left_out_by_all(tmp_path: Path) -> None:
    left = team.run(2, tmp_path, "plain", PLAN, data="spoilt")
    assert _same(left[0][0], left[1][0])
    for found, told in left:
        assert told["ended"] == "complete" and "left out so far: 1" in told["warned"][0]
        assert all(t.isfinite().all() for t in found.values())


def test_memory_that_runs_out_in_one_process_makes_smaller_parts_in_all(tmp_path: Path) -> None:
    left = team.run(2, tmp_path, "short", PLAN)
    assert _same(left[0][0], left[1][0])
    assert [told["chosen"] for _, told in left] == [["2"], ["2"]]


def test_a_signal_to_one_process_is_heeded_by_all_after_the_same_step(tmp_path: Path) -> None:
    left = team.run(2, tmp_path, "terminated", PLAN)
    assert [told["ended"] for _, told in left] == ["terminated", "terminated"]
    found, _ = Checkpoints(tmp_path / "run").load()
    assert found is not None and 9 <= found.values["position"][2] <= 12
    weights, _ = team.alone("varied", PLAN)
    resumed = team.run(2, tmp_path, "varied", PLAN, resume=True)
    assert resumed[0][1]["ended"] == "complete" and resumed[0][0].keys() == weights.keys()


def test_batches_that_cannot_be_shared_are_refused() -> None:
    world = distributed.World()
    world.size = 8
    with pytest.raises(ConfigError, match=r"Batches of 6 rows cannot be shared by 8 processes"):
        world.check(rows=64, batch_size=7)
    world.check(rows=64, batch_size=8)


def test_what_cannot_be_spread_is_refused() -> None:
    with pytest.raises(ConfigError, match="'Duel' moves some of them in turn"):
        shard.refuse_what_cannot(team.Duel(), "adamw")
    with pytest.raises(ConfigError, match="'muon' needs whole matrices"):
        shard.refuse_what_cannot(team.Deep(), "muon")


def test_shares_of_a_batch_are_all_of_it() -> None:
    index = torch.arange(29)
    worlds = [distributed.World() for _ in range(4)]
    for rank, world in enumerate(worlds):
        world.rank, world.size = rank, 4
    shares = [world.share_of(index) for world in worlds]
    assert torch.equal(torch.cat(shares), index) and {len(s) for s in shares} == {7, 8}
