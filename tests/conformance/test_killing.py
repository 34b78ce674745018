"""Every objective of the catalog, killed in a step and in a save and gone on with, ends as if nothing had been.

So do some with wrappers around them, and some with their steps recorded or compiled.
"""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest
import torch

from fathom.core import catalog
from fathom.engine import loop
from tests.conformance import killing

PLAIN = [(name, "") for name in catalog.files("objectives")]
FORMS = [
    ("supervised", "recorded"),
    ("adversarial", "recorded"),
    ("next_token", "recorded"),
    ("supervised", "compiled"),
]
WRAPPED = [
    ("sam(mixup(supervised))", ""),
    ("adversarial_training(supervised)", "recorded"),
]


@pytest.mark.parametrize(("name", "form"), [*PLAIN, *FORMS, *WRAPPED])
def test_killed_and_resumed_equals_undisturbed_and_the_seed_decides(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)  # put back after the test
    monkeypatch.setattr(loop, "SHARE", 1.0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conformance.killing", "torch._dynamo"])
    for number, kill in enumerate(("step", "save")):
        process = context.Process(target=killing.child, args=(name, str(tmp_path), kill, number > 0, form))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list(tmp_path.glob("checkpoint-*.safetensors"))
    resumed = killing.run(name, tmp_path, resume=True, form=form)
    whole, again = killing.run(name, None, form=form), killing.run(name, None, form=form)
    assert [n for n, value in whole.items() if not _equal(value, again[n])] == []
    assert [n for n, value in whole.items() if not _equal(value, resumed[n])] == []


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
