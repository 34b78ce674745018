"""Weights of half the bytes write what the full ones write: the same tokens, checked where it is close."""

from __future__ import annotations

import pytest
import torch

from fathom.core.types import DataSpec, Field
from fathom.generate import Script, Settings, halves, write
from fathom.models import gpt, llama

FIELD = Field(name="text", kind="text", shape=(20,), vocabulary=300, special=(-1, -1, -1, -1, -1))
SCRIPT = Script(lambda tokens: "", FIELD)
PROMPTS = [[5, 9, 33, 12, 40, 7], [8], [50, 51, 52, 3]]
MODELS = {
    "llama, tied": (llama, llama.Config(64, 3, 4, 2, hidden=96, context=200)),
    "llama, untied": (llama, llama.Config(64, 2, 4, 2, hidden=96, context=200, tied=False)),
    "gpt": (gpt, gpt.Config(width=64, depth=2, num_heads=4, context=200)),
}


@pytest.fixture(params=sorted(MODELS))
def model(request) -> torch.nn.Module:
    family, config = MODELS[request.param]
    torch.manual_seed(0)
    network = family.build(config, DataSpec(inputs=(FIELD,))).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return network


def written(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, worth: float, patience: int = 0, **options: float
) -> list:
    monkeypatch.setattr(halves, "WORTH", worth)
    monkeypatch.setattr(halves, "PATIENCE", patience)
    return write(model, PROMPTS, SCRIPT, Settings(tokens=60, **options))


def test_greedy_tokens_are_those_of_the_full_weights(model, monkeypatch):
    used = counted(monkeypatch)
    wanted = written(model, monkeypatch, 1e12)
    assert not used
    for again in range(2):
        assert written(model, monkeypatch, 0) == wanted
        # Once to measure, and each token but the first, and at first the second, with which halves are made.
        assert len(used) == 59 + again
        used.clear()


def test_halves_are_made_once_so_many_tokens_were_written(model, monkeypatch):
    used = counted(monkeypatch)
    wanted = written(model, monkeypatch, 1e12)
    assert written(model, monkeypatch, 0, patience=60) == wanted
    assert not used
    assert halves._known(model) is None
    assert written(model, monkeypatch, 0, patience=40) == wanted
    assert len(used) == 19  # of 59 tokens behind the first, 40 by the full weights, and one with which halves are made
    used.clear()
    assert written(model, monkeypatch, 0, patience=40) == wanted
    assert len(used) == 60  # they are there already


def test_only_the_rows_that_are_close_are_read_again(model, monkeypatch):
    """However wide the margin: one row is decided by the full weights alone, while the others go on by halves."""
    found, reread = [], halves.Checked._reread

    def watched(self, rows, scores):
        before = scores.clone()
        after = reread(self, rows, scores)
        others = [row for row in range(len(scores)) if row not in rows.tolist()]
        assert torch.equal(after[others], before[others])
        found.append(len(others))
        return after

    monkeypatch.setattr(halves.Checked, "_reread", watched)
    monkeypatch.setattr(halves, "SAFETY", 60.0)
    wanted = written(model, monkeypatch, 1e12)
    assert written(model, monkeypatch, 0) == wanted
    assert 0 < sum(found) < len(PROMPTS) * len(found)  # some rows, and not all, were left to halves


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each step that halves make."""
    used: list[int] = []
    halved = halves.Checked._halved
    monkeypatch.setattr(halves.Checked, "_halved", lambda self, tokens: used.append(1) or halved(self, tokens))
    return used


def test_close_calls_are_decided_by_the_full_weights(model, monkeypatch):
    """Halves that are badly wrong, and known to be, change nothing: every token is read again."""
    packed = halves._packed
    noise = torch.Generator().manual_seed(0)

    def wrong(weight, bias):
        return packed(weight * (1 + 0.3 * torch.randn(weight.shape, generator=noise)), bias)

    wanted = written(model, monkeypatch, 1e12)
    monkeypatch.setattr(halves, "_packed", wrong)
    monkeypatch.setattr(halves, "SAFETY", 0.0)
    assert written(model, monkeypatch, 0) != wanted
    monkeypatch.setattr(halves, "SAFETY", 8.0)
    assert written(model, monkeypatch, 0) == wanted


def test_the_network_is_left_as_it_was(model, monkeypatch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = {"text:text": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad():
        wanted = model(tokens).tokens
        written(model, monkeypatch, 0)
        assert torch.equal(model(tokens).tokens, wanted)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_changed_weights_are_packed_anew(model, monkeypatch):
    first = written(model, monkeypatch, 0)
    assert halves.halves(model) is halves.halves(model)
    kept = halves.halves(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert halves.halves(model) is not kept
    again = written(model, monkeypatch, 0)
    assert again == written(model, monkeypatch, 1e12) and again != first


def test_drawing_by_halves_is_repeatable(model, monkeypatch):
    first, again = (written(model, monkeypatch, 0, temperature=1.0, seed=3) for _ in range(2))
    assert first == again != written(model, monkeypatch, 0, temperature=1.0, seed=4)


def test_weights_that_half_cannot_hold_stay_full(model, monkeypatch):
    monkeypatch.setattr(halves, "WORTH", 0)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() > 1)[0, 0] = 1e6
    assert halves.halves(model) is None
    assert halves.halves(model.double()) is None
