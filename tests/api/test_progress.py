"""What is printed while a model trains, where nothing can be drawn over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fathom.api.progress import watch
from fathom.engine.records import Epoch, Record, Step


def step(seconds: float, number: int) -> Step:
    return Step(
        step=number, steps=5000, epoch=2, progress=0.1, train={"loss": 0.5}, learning_rate=0.1,
        samples_per_second=1234.5, seconds=seconds, seconds_left=65.0,
    )  # fmt: skip


def epoch(seconds: float) -> Epoch:
    return Epoch(
        epoch=2, step=9, train={"loss": 0.5}, valid={}, learning_rate=0.1, samples_per_second=10.0, seconds=seconds,
        seconds_left=1.0, best=False,
    )  # fmt: skip


def test_a_long_epoch_tells_every_minute_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run begins its count at once with the seconds of before."""
    given: list[Record] = [step(900.0, 1), step(930.0, 2), step(961.0, 1200), step(1000.0, 4), epoch(1010.0)]
    given += [step(1022.0, 5), step(1071.0, 1300)]

    def records() -> Iterator[Record]:
        yield from given

    assert list(watch(records(), show=True)) == given
    assert capsys.readouterr().err.splitlines() == [
        "epoch 2, step 1,200 of 5,000: loss 0.5 · 1,234 samples/s · 1:05 left",
        "epoch 2: train loss 0.5 · 10 samples/s · 16:50, 0:01 left",
        "epoch 2, step 1,300 of 5,000: loss 0.5 · 1,234 samples/s · 1:05 left",
    ]


def test_nothing_is_printed_where_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(watch(iter([step(0.0, 1), step(99.0, 2)]), show=False))) == 2
    assert not capsys.readouterr().err
