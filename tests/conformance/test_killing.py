"""Every objective of the catalog, killed in a step and in a save and gone on with, ends as if nothing had been.

So do those whose options make them remember more, sums, some with wrappers, and some with steps recorded or compiled.
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
from tests.conformance.killing import Task

PLAIN = [(Task(name), "") for name in catalog.files("objectives")]
FORMS = [
    (Task("supervised"), "recorded"),
    (Task("adversarial"), "recorded"),
    (Task("next_token"), "recorded"),
    (Task("supervised"), "compiled"),
]
OPTIONS = [
    (Task("consistency", {"method": "mean_teacher"}), ""),
    (Task("consistency", {"method": "steady_match", "threshold": 0.3}), ""),
    (Task("autoencode", {"kind": "quantised", "groups": 2, "entries": 4}), ""),
    (Task("adversarial", {"kind": "wasserstein", "judge_steps": 2}), ""),  # its generator moves at every other step
    (Task("contrast", {"method": "dropout"}, example="masked_token"), ""),
]
TOGETHER = [
    (Task("sam(mixup(supervised))"), ""),
    (Task("adversarial_training(supervised)"), "recorded"),
    (Task("supervised+0.5*contrast", example="metric"), ""),
    (Task("ewc(supervised)", {"ewc": {"strength": 10.0}}, earlier=True), ""),
    (Task("replay(supervised)", earlier=True), ""),
    (Task("noisy_student(supervised)", {"noisy_student": {"teachers": ["earlier"]}}, "consistency", True), ""),
    (Task("noisy_student(supervised)", {"noisy_student": {"teachers": ["earlier"]}}, "consistency", True), "recorded"),
]


@pytest.mark.parametrize(("task", "form"), [*PLAIN, *FORMS, *OPTIONS, *TOGETHER], ids=lambda value: str(value))
def test_killed_and_resumed_equals_undisturbed_and_the_seed_decides(
    task: Task, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)  # put back after the test
    monkeypatch.setattr(loop, "SHARE", 1.0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conformance.killing", "torch._dynamo"])
    for number, kill in enumerate(("step", "save")):
        process = context.Process(target=killing.child, args=(task, str(tmp_path), kill, number > 0, form))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list(tmp_path.glob("checkpoint-*.safetensors"))
    resumed = killing.run(task, tmp_path, resume=True, form=form)
    whole, again = killing.run(task, None, form=form), killing.run(task, None, form=form)
    assert [n for n, value in whole.items() if not _equal(value, again[n])] == []
    assert [n for n, value in whole.items() if not _equal(value, resumed[n])] == []


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
