"""The forms of a step: recorded, it is the plain step to the bit; compiled, it resumes to the bit."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fathom.core.errors import TrainingError
from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss, TrainingData
from fathom.data._store import TensorStore
from fathom.engine import loop
from fathom.engine.compiled import CompiledLosses
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Finished
from tests.engine import toys

PLAN = Plan(epochs=4, batch_size=32, threads=1, form="recorded")


class Convolution(Objective):
    """Convolutions, norm, pooling, dropout and attention: the operations that networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2), nn.Dropout(0.2)),
            *(nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(2)),
        )
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def scores(self, batch: Batch) -> Tensor:
        tokens = self.model(batch["image"].float() / 255).transpose(1, 2)  # [B, T, D]
        return self.head(self.norm(tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        each = nn.functional.cross_entropy(self.scores(batch), batch["target:y"], reduction="none")
        return Loss(each.mean(), {"worst": each.max()}, weight=float(len(each)))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.scores(batch).softmax(-1)}


class Tokens(Objective):
    """Embeddings and a tied read-out, whose weight is a tensor: the number of real tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        text = batch["text"].long()
        scores = torch.tanh(self.mix(self.model(text[:, :-1]))) @ self.model.weight.T
        real = (text[:, 1:] > 0).float()
        each = nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten(), reduction="none")
        return Loss((each * real.flatten()).sum() / real.sum(), weight=real.sum())

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {}


class Counting(toys.Regression):
    """A loss that changes with the number of calls, which no recording can know."""

    calls = 0

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        Counting.calls += 1
        found = super().losses(batch, phase)
        return Loss(found.total * (1 + Counting.calls % 2), found.parts, found.weight)


class Drawing(toys.Regression):
    """A loss with Python's own random numbers in it."""

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        found = super().losses(batch, phase)
        return Loss(found.total * (1 + random.random()), found.parts, found.weight)


class Branching(toys.Regression):
    """A loss that looks at its numbers before it decides."""

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        found = super().losses(batch, phase)
        return found if found.total > 1 else Loss(found.total * 2, found.parts, found.weight)


class Choosing(toys.Regression):
    """A loss over all rows but one: a batch with it is met when the recordings of others have been checked."""

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        error = self.predict(batch)["y"] - batch["target:y"]
        chosen = error[batch["number"][:, 0] < 2.1]
        return Loss(chosen.square().mean(), weight=float(len(error)))


def images() -> TrainingData:
    draw = torch.Generator().manual_seed(5)
    pictures = torch.randint(256, (100, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return TrainingData(train=TensorStore({"image": pictures, "target:y": pictures.sum((1, 2, 3)) % 3}))


def texts() -> TrainingData:
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 20, (100, 9), generator=draw, dtype=torch.int32)
    tokens[torch.arange(9) >= torch.randint(3, 10, (100, 1), generator=draw)] = 0
    return TrainingData(train=TensorStore({"text": tokens}))


CASES = {
    "regression": (toys.Regression, toys.data),
    "adversarial": (toys.Adversarial, toys.data),
    "convolution": (Convolution, images),
    "tokens": (Tokens, texts),
}


def _whole(objective: Objective, plan: Plan, data: TrainingData, folder: Path | None = None) -> Finished:
    *_, last = train(objective, data, plan, folder)
    assert isinstance(last, Finished)
    return last


def _recorded(records: object) -> list[bool]:
    """Whether each recording that a run made was still trusted at its end."""
    return [shape.recording is not None for found in records for shape in found._found.values()]  # type: ignore[attr-defined]


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The recordings that runs make."""
    from fathom.engine import form

    made: list[object] = []
    kept = form.Recordings.__init__
    monkeypatch.setattr(form.Recordings, "__init__", lambda self, *given: (made.append(self), kept(self, *given))[1])
    return made


@pytest.mark.parametrize("change", [{}, {"optimizer": "sgd", "average": 0.9}, {"precision": "bf16"}, {"clip": 0.01}])
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_run_equals_a_plain_one_to_the_bit(
    case: str, change: dict[str, object], forms: list[object]
) -> None:
    make, data = CASES[case]
    plan = replace(PLAN, **change)  # type: ignore[arg-type]
    recorded, plain = make(), make()
    left, right = _whole(recorded, plan, data()), _whole(plain, replace(plan, form="plain"), data())
    assert toys.same(recorded, plain)
    assert [e.train for e in left.history] == [e.train for e in right.history]
    assert left.form == "recorded" and right.form == "plain"
    trusted = _recorded(forms)
    assert trusted and all(trusted) == (case != "adversarial")  # which replaces a buffer at every step


@pytest.mark.parametrize("make", [Counting, Drawing, Branching, Choosing])
def test_what_is_no_fixed_sequence_of_operations_is_run_as_it_is(
    make: type[toys.Regression], forms: list[object]
) -> None:
    Counting.calls = 0
    recorded, plain = make(), make()
    data = toys.data(augment=make is not Choosing)
    _whole(recorded, PLAN, data)
    assert _recorded(forms) == [False] * len(_recorded(forms))
    if make is not Counting:  # whose number of calls is another one
        _whole(plain, replace(PLAN, form="plain"), data)
        assert toys.same(recorded, plain)


def test_accumulated_parts_are_not_recorded(forms: list[object]) -> None:
    recorded, plain = toys.Regression(), toys.Regression()
    _whole(recorded, replace(PLAN, accumulate=2), toys.data())
    _whole(plain, replace(PLAN, accumulate=2, form="plain"), toys.data())
    assert not forms and toys.same(recorded, plain)


@pytest.mark.parametrize("form", ["recorded", "compiled"])
def test_a_run_in_pieces_equals_a_whole_one(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    plan = replace(PLAN, form=form, average=0.9, batch_size=29)  # 203 rows are seven batches of one size
    whole = toys.Regression()
    _whole(whole, plan, toys.data())
    records = train(toys.Regression(), toys.data(), plan, tmp_path)
    for _ in range(12):
        next(records)
    records.close()
    torch._dynamo.reset()  # as in another process
    resumed = toys.Regression()
    *_, last = train(resumed, toys.data(), plan, tmp_path, resume=True)
    assert isinstance(last, Finished) and last.form == form
    assert toys.same(whole, resumed)
    if form == "compiled":
        plain = _whole(toys.Regression(), replace(plan, form="plain"), toys.data())
        for ours, theirs in zip(last.history, plain.history, strict=True):
            assert ours.train["loss"] == pytest.approx(theirs.train["loss"], rel=0.01)


def test_as_many_objectives_as_wanted_are_compiled_in_one_process() -> None:
    with torch._dynamo.config.patch(recompile_limit=1):  # how often the compiler takes up the same piece of code
        for rows in (6, 7):
            batch = toys.data().train.gather(torch.arange(rows))
            assert CompiledLosses(toys.Regression())(batch).total.isfinite()


def test_losses_that_cannot_be_compiled_are_refused_with_one_sentence() -> None:
    batch = toys.data().train.gather(torch.arange(8))
    with pytest.raises(TrainingError, match=r"The step cannot be compiled \(.*engine.form=recorded or plain"):
        CompiledLosses(Branching())(batch)
