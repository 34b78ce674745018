"""What the tuner chooses, what it tells, and what it remembers; on a clock of the tests' own."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.core.types import Batch, Loss
from fathom.engine import compiled, remember, tune
from fathom.engine.bench import measure
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Chose
from fathom.engine.run import Run
from tests.engine import toys

# 2,800 steps; not every processor computes in bf16, so that it is measured in a test of its own
PLAN = Plan(epochs=400, batch_size=29, threads=1, memory="returned", precision="fp32")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fathom" / "tuned.json"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds a step of each form, by which the clock goes; `compiling` is added once, `bf16` to every step in it."""
    table, clock = {"plain": 0.050, "recorded": 0.050, "compiled": 0.050, "compiling": 0.0, "bf16": 0.0}, [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    kept = Run.train_on

    def train_on(self: Run, index: torch.Tensor) -> None:
        kept(self, index)
        clock[0] += table[self.knobs.form] + (table["bf16"] if self.knobs.precision == "bf16" else 0.0)
        if self.knobs.form == "compiled":
            clock[0] += table["compiling"]
            table["compiling"] = 0.0

    class NotCompiled:
        def __init__(self, objective: Any) -> None:
            self.losses = objective.losses

        def __call__(self, batch: Batch, phase: str = "main") -> Loss:
            return self.losses(batch, phase)

    monkeypatch.setattr(Run, "train_on", train_on)
    monkeypatch.setattr("fathom.engine.form.CompiledLosses", NotCompiled)
    monkeypatch.setattr(compiled, "possible", lambda device: True)
    return table


def _tuned(change: Callable[[Run], None] = lambda run: None, **options: Any) -> tuple[Run, list[Chose]]:
    run = Run(toys.Regression(), toys.data(), replace(PLAN, **options))
    run.random.swap()
    try:
        change(run)
        return run, tune.tune(run)
    finally:
        run.leave()
        run.random.swap()


def test_recorded_steps_are_taken_where_they_gain(seconds: dict[str, float]) -> None:
    seconds["recorded"] = 0.020
    run, (chosen, summary) = _tuned()
    assert run.knobs.form == "recorded"
    assert (chosen.what, chosen.value, chosen.gain) == ("form", "recorded steps", pytest.approx(2.5))
    assert (summary.what, summary.value, summary.gain) == ("settings", "recorded steps", pytest.approx(2.5))
    assert "compiling (about" in summary.why and "would not pay back" in summary.why


def test_what_gains_too_little_is_left(seconds: dict[str, float]) -> None:
    seconds["recorded"] = 0.049
    run, (chosen, summary) = _tuned()
    assert run.knobs.form == "plain" and chosen.gain == summary.gain == 1.0


def test_a_form_that_is_asked_for_is_not_measured(seconds: dict[str, float]) -> None:
    seconds["recorded"] = 0.001
    run, chosen = _tuned(form="plain")
    assert run.knobs.form == "plain" and not chosen


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="others are not asked")
@pytest.mark.parametrize(
    ("able", "more", "kept"), [(True, -0.030, "bf16"), (True, 0.030, "fp32"), (False, -0.030, "fp32")]
)
def test_bf16_is_taken_where_the_processor_has_it_and_it_gains(
    able: bool, more: float, kept: str, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: able)
    seconds["bf16"] = more
    run, chosen = _tuned(precision="auto", form="plain")
    assert run.knobs.precision == kept
    assert [(choice.what, choice.value) for choice in chosen] == (
        [("precision", kept), ("settings", kept)] if able else []
    )


def test_compiling_is_tried_in_a_long_run_and_kept_if_it_gains(seconds: dict[str, float]) -> None:
    seconds |= {"compiled": 0.025, "compiling": 9.0}
    run, (*_, summary) = _tuned(epochs=4000)  # 1,400 s
    assert run.knobs.form == "compiled"
    assert summary.why == "compiled in 9 s, 2.00×" and summary.value == "compiled steps"
    assert summary.gain == pytest.approx(2.0)


def test_compiling_that_gains_nothing_is_told_and_not_tried_again(seconds: dict[str, float], cache: Path) -> None:
    seconds |= {"compiled": 0.060, "compiling": 9.0}
    run, (*_, summary) = _tuned(epochs=4000)
    assert run.knobs.form == "plain" and summary.why.startswith("compiled in 9 s it is no faster")
    seconds["compiled"] = 0.001
    run, (*_, summary) = _tuned(epochs=4000)
    assert run.knobs.form == "plain" and "when last measured) would not pay back" in summary.why


def test_what_was_found_is_remembered_and_measured_once_more(seconds: dict[str, float], cache: Path) -> None:
    seconds["recorded"] = 0.020
    _tuned()
    (kept,) = json.loads(cache.read_text()).values()
    assert kept["knobs"]["form"] == "recorded"
    run, (again, summary) = _tuned()
    assert run.knobs.form == "recorded" and again.what == "remembered" and summary.gain == pytest.approx(2.5)
    seconds["recorded"] = 0.080  # no longer true
    run, chosen = _tuned()
    assert run.knobs.form == "plain" and chosen[0].what == "form"


@pytest.fixture
def by_threads(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds a plain step by the number of threads, of which there are two; a recorded one takes half of that."""
    table, threads = {1: 0.05, 2: 0.05}, [2]
    monkeypatch.setattr("torch.get_num_threads", lambda: threads[0])
    monkeypatch.setattr("torch.set_num_threads", lambda count: threads.__setitem__(0, count))
    kept = Run.train_on

    def train_on(self: Run, index: torch.Tensor) -> None:
        seconds.update(plain=table[threads[0]], recorded=table[threads[0]] / 2, compiled=table[threads[0]])
        kept(self, index)

    monkeypatch.setattr(Run, "train_on", train_on)
    return table


def test_two_threads_are_not_remembered_where_one_is_faster_now(by_threads: dict[int, float]) -> None:
    by_threads |= {1: 0.055, 2: 0.03}
    assert _tuned(threads=0)[0].knobs.threads == 2
    by_threads |= {1: 0.03, 2: 0.055}
    run, (again, _) = _tuned(threads=0)
    assert run.knobs.threads == 1 and run.knobs.form == "recorded"
    assert again.what == "remembered" and again.gain == pytest.approx(0.055 / 0.015)


def test_other_work_is_noticed_before_anything_waits_for_it(by_threads: dict[int, float], cache: Path) -> None:
    by_threads |= {1: 0.3, 2: 9.0}
    run, (noticed, *_, summary) = _tuned(threads=0)
    assert run.knobs.threads == 1 and noticed.what == "threads" and noticed.gain == pytest.approx(30)
    assert "other work keeps the processor busy: 9e+03 ms for 4 rows; 1 thread: 300" in noticed.why
    assert summary.value.startswith("1 thread") and summary.gain == pytest.approx(30)
    assert run.seconds < 4 * 9
    assert [kept["knobs"] for kept in json.loads(cache.read_text()).values()] == [None]  # it may be over by then


def test_what_was_not_tried_is_not_remembered(
    seconds: dict[str, float], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(tune, "LONGEST", 0.2)  # seconds: for the threads, not for the form as well
    seconds["recorded"] = 0.020
    run, chosen = _tuned(threads=0)
    assert [choice.what for choice in chosen] == ["threads", "settings"] and run.knobs.form == "plain"
    assert not cache.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"KEY": 3}', '{"KEY": {"knobs": {"form": "magic", "threads": "x"}}}']
)
def test_a_damaged_cache_is_done_without(text: str, seconds: dict[str, float], cache: Path) -> None:
    seconds["recorded"] = 0.020
    run, _ = _tuned()
    cache.write_text(text.replace("KEY", remember.key(run)))
    run, _ = _tuned()
    assert run.knobs.form == "recorded"


def test_a_cache_that_cannot_be_written_is_done_without(
    seconds: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    seconds["recorded"] = 0.020
    run, _ = _tuned()
    assert run.knobs.form == "recorded"


def test_short_runs_leave_no_trace(seconds: dict[str, float], cache: Path) -> None:
    seconds["recorded"] = 0.020
    _, chosen = _tuned(epochs=10)
    assert not chosen and not cache.exists()


def test_models_batches_and_wishes_are_kept_apart() -> None:
    keys = [remember.key(Run(toys.Regression(), toys.data(), plan)) for plan in (PLAN, replace(PLAN, batch_size=30))]
    keys.append(remember.key(Run(toys.Regression(norm=False), toys.data(), PLAN)))
    keys.append(remember.key(Run(toys.Regression(), toys.data(), replace(PLAN, form="plain"))))
    assert len(set(keys)) == 4
    assert keys[0] == remember.key(Run(toys.Regression(), toys.data(), replace(PLAN, epochs=3, seed=9)))


def test_measuring_changes_nothing_but_the_knobs(seconds: dict[str, float]) -> None:
    seconds |= {"compiled": 0.060, "compiling": 9.0}
    before = toys.weights(toys.Regression())
    run, chosen = _tuned(epochs=4000)
    after = toys.weights(run.objective)
    assert chosen and all(torch.equal(before[name], after[name]) for name in before)
    assert run.step == run.epoch == run.batch == 0 and not run.stepper.meter.sums


def test_bench_measures_both_settings_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.engine.bench.SECONDS", 0.05)
    found = measure(toys.Regression(), toys.data(), replace(PLAN, epochs=20))
    assert found.batch_size == 29 and found.plain_ms > 0 and found.tuned_ms > 0 and found.limit > 1
    operations = 3 * 2 * 29 * (6 * 16 + 16) - 2 * 29 * 6 * 16  # no gradient of the inputs
    assert found.gigaflops * found.tuned_ms * 1e6 == pytest.approx(operations)


def test_memory_that_is_kept_changes_no_bit_and_ends_with_the_run() -> None:
    from fathom.engine import allocator

    kept, plain = toys.Regression(), toys.Regression()
    for objective, memory in ((kept, "kept"), (plain, "returned")):
        seen = set()
        for _ in train(objective, toys.data(), replace(PLAN, epochs=3, memory=memory)):  # type: ignore[arg-type]
            seen.add(allocator._State.name)
        assert memory in seen or not allocator.possible()
        assert allocator._State.name == "returned"
    assert toys.same(kept, plain)
