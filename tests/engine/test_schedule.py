import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine import schedule
from fathom.engine.pace import Pace


def test_cosine_equals_pytorchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert schedule.factor(step / 50, "cosine", 0.0) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_linear_with_warm_up_equals_its_formula() -> None:
    assert [schedule.factor(p / 10, "linear", 0.2) for p in range(11)] == pytest.approx(
        [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    )


def test_constant_stays_after_warm_up() -> None:
    assert schedule.factor(0.05, "constant", 0.1) == 0.5
    assert {schedule.factor(p, "constant", 0.1) for p in (0.1, 0.5, 1.0)} == {1.0}


@given(
    st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]), st.sampled_from([0.0, 0.05, 0.5, 0.999, 1.0])
)
def test_the_factor_is_a_share(progress: float, kind: str, warmup: float) -> None:
    assert 0 <= schedule.factor(progress, kind, warmup) <= 1


def test_a_decay_rises_along_half_a_cosine() -> None:
    assert schedule.decay(0.0, 0.9, 1.0) == pytest.approx(0.9)
    assert schedule.decay(1.0, 0.9, 1.0) == pytest.approx(1.0)
    assert schedule.decay(0.25, 0.9, 1.0) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)
    assert schedule.decay(0.7, 0.9, None) == 0.9


def test_progress_takes_the_middle_of_each_step() -> None:
    pace = Pace(steps_per_epoch=5, epochs=2, minutes=0)
    assert [pace.progress(step) for step in range(10)] == pytest.approx([(step + 0.5) / 10 for step in range(10)])


def test_progress_never_jumps_when_the_length_is_planned_anew() -> None:
    pace = Pace(steps_per_epoch=100, epochs=1_000_000, minutes=1)
    pace.plan(0, elapsed=0, step_seconds=0.1, validation_seconds=0)
    assert pace.total == int(60 * 0.97 / 0.1)
    before = [pace.progress(step) for step in range(200)]
    pace.adjust(200, elapsed=20, step_seconds=0.2, validation_seconds=0)  # the machine got slower
    assert 200 < pace.total < 400
    after = [pace.progress(step) for step in range(200, pace.total)]
    steps = [b - a for a, b in zip(before + after, (before + after)[1:], strict=False)]
    assert min(steps) > 0 and max(steps) < 0.01 and after[-1] > 0.99


def test_the_progress_of_the_step_before_a_new_plan_is_still_a_share() -> None:
    pace = Pace(steps_per_epoch=100, epochs=1_000_000, minutes=1)
    pace.plan(0, elapsed=0, step_seconds=0.1, validation_seconds=0)
    pace.adjust(1, elapsed=1, step_seconds=0.5, validation_seconds=0)  # far fewer steps are left than were planned
    assert 0 <= pace.progress(0) <= pace.progress(1)


def test_a_run_out_of_time_ends_now() -> None:
    pace = Pace(steps_per_epoch=100, epochs=1_000_000, minutes=1)
    pace.plan(0, elapsed=0, step_seconds=0.1, validation_seconds=1)
    pace.adjust(400, elapsed=58.9, step_seconds=0.1, validation_seconds=1)
    assert pace.total == 400


def test_epochs_end_a_run_before_its_time() -> None:
    pace = Pace(steps_per_epoch=10, epochs=3, minutes=60)
    pace.plan(0, elapsed=0, step_seconds=0.01, validation_seconds=0)
    assert pace.total == 30
