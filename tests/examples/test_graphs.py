"""A graph network finds the sides of a club that split, and learns them from the edges."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parent.parent.parent / "examples" / "graphs.py"


@pytest.fixture(scope="module")
def program() -> dict:
    return runpy.run_path(str(FILE))


def test_the_club_is_zacharys(program: dict) -> None:
    club = pytest.importorskip("networkx").karate_club_graph()
    spec, batch, sides = program["load"]()
    pairs = batch["graph:club:edges"][0].tolist()
    assert {frozenset(pair) for pair in pairs} == {frozenset(edge) for edge in club.edges()}
    assert len(pairs) == 78 and spec.inputs[0].shape == (34, 78, 34)
    assert sides.tolist() == [int(club.nodes[member]["club"] == "Officer") for member in range(34)]
    assert (batch["target:side"] >= 0).nonzero()[:, 1].tolist() == [0, 33]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_sides_tell_the_others(program: dict, seed: int) -> None:
    found = program["main"](seed)
    assert found["right"] >= 29 / 32
    assert found["loss after"] < 0.3 < found["loss before"]


def test_without_friendships_it_knows_nothing(program: dict) -> None:
    """What it finds it has from the edges: among strangers no side reaches anyone."""
    meets = program["MEETS"].copy()
    try:
        program["MEETS"].clear()
        program["MEETS"][0] = (0,)
        found = [program["main"](seed)["right"] for seed in range(3)]
    finally:
        program["MEETS"].update(meets)
    assert sum(found) / 3 < 0.75


def test_the_answer_is_a_probability_for_every_member(program: dict) -> None:
    spec, batch, _ = program["load"]()
    torch.manual_seed(0)
    objective = program["Nodes"](program["gcn"].build(program["gcn"].Config(both_ways=True), spec), 2).eval()
    with torch.no_grad():
        sides = objective.predict(batch)["side"]
    assert sides.shape == (1, 34, 2)
    torch.testing.assert_close(sides.sum(-1), torch.ones(1, 34))
