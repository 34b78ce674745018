from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fathom.core.objective import Objective
from fathom.core.types import Average, Batch, Loss, Phase
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from tests.engine import toys

CPU = torch.device("cpu")


class Tokens(Objective):
    """A loss that is a mean over tokens, of which each row has another number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(6, 1)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        counts = batch["count"]  # [B]
        error = (self.model(batch["number"]).squeeze(1) - batch["target:y"]).square()
        return Loss((error * counts).sum() / counts.sum(), weight=counts.sum())

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.model(batch["number"]).squeeze(1)}


def _gradient(objective: Objective, parts: list[Batch], clip: float = 0.0) -> Tensor:
    plan = Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=clip)
    before = torch.cat([p.detach().flatten().clone() for p in objective.parameters()])
    Stepper(objective, plan, CPU)(0, 0.0, 1.0, parts)
    return before - torch.cat([p.detach().flatten() for p in objective.parameters()])


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_uneven_parts_give_the_gradient_of_the_whole(weighted: bool) -> None:
    batch = toys.data(rows=20).train.gather(torch.arange(20)) | {"count": torch.arange(1.0, 21.0)}
    parts = [{k: t[a:b] for k, t in batch.items()} for a, b in ((0, 3), (3, 4), (4, 20))]
    make = Tokens if weighted else lambda: toys.Regression(dropout=0.0, norm=False)
    whole, pieced = _gradient(make(), [batch]), _gradient(make(), parts)
    torch.testing.assert_close(pieced, whole, rtol=1e-6, atol=1e-6)
    equal_shares = torch.stack([_gradient(make(), [part]) for part in parts]).mean(0)
    assert (equal_shares - whole).abs().max() > 1e-3  # the naive mean of means is another gradient


def test_a_gradient_longer_than_the_limit_is_shortened_to_it() -> None:
    batch = toys.data(rows=20).train.gather(torch.arange(20))
    long = _gradient(toys.Regression(0.0, False), [batch])
    short = _gradient(toys.Regression(0.0, False), [batch], clip=0.5)
    assert long.norm() > 0.5
    torch.testing.assert_close(short, long * 0.5 / long.norm())


def test_phases_move_their_own_weights_by_their_own_gradients_only() -> None:
    objective = toys.Adversarial()
    plan = Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=0.0)
    stepper = Stepper(objective, plan, CPU)
    batch = toys.data(rows=8).train.gather(torch.arange(8))

    by_hand = toys.Adversarial()
    torch.manual_seed(4)
    maker = [*by_hand.model.parameters(), by_hand.tied.bias]
    grads = torch.autograd.grad(by_hand.losses(batch, "maker").total, maker)
    with torch.no_grad():
        for p, g in zip(maker, grads, strict=True):
            p -= 0.1 * g
    judge = list(by_hand.judge.parameters())
    grads = torch.autograd.grad(by_hand.losses(batch, "judge").total, judge)
    with torch.no_grad():
        for p, g in zip(judge, grads, strict=True):
            p -= 0.05 * g  # the phase has half the learning rate
        for target, source in zip(by_hand.trailing.parameters(), by_hand.model.parameters(), strict=True):
            target.lerp_(source, 1 - 0.9)

    torch.manual_seed(4)
    stepper(0, 0.0, 0.1, [batch])
    for name, tensor in toys.weights(objective).items():
        torch.testing.assert_close(tensor, toys.weights(by_hand)[name], msg=name)

    before = toys.weights(objective)
    stepper(1, 0.1, 0.1, [batch])  # the maker moves once in two steps
    after = toys.weights(objective)
    assert torch.equal(before["model.0.weight"], after["model.0.weight"])
    assert not torch.equal(before["judge.0.weight"], after["judge.0.weight"])


class Poisoned(toys.Regression):
    """A loss that is not finite, or a gradient that is not, where a row says so."""

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        found = super().losses(batch)
        if not (batch["number"][:, 0] == 77).any():
            return found
        zero = (self.model[0].weight * 0).sum()  # type: ignore[index,operator]
        return Loss(found.total + zero.sqrt(), found.parts, found.weight)  # the slope of a root at zero is infinite


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 77.0])
def test_a_step_that_is_not_finite_changes_nothing(immediate: bool, optimizer: str, value: float) -> None:
    """`immediate` is what a CPU does; the other way, a GPU's, runs here too."""
    torch.manual_seed(0)
    objective = Poisoned()
    stepper = Stepper(objective, Plan(optimizer=optimizer, learning_rate=0.1), CPU)  # type: ignore[arg-type]
    stepper.immediate = immediate
    good = toys.data(rows=16).train.gather(torch.arange(16))
    for step in range(3):
        stepper(step, 0.0, 0.1, [good])
    before = toys.weights(objective) | {n: t.clone() for n, t in stepper.tensors().items()}
    bad = {k: t.clone() for k, t in good.items()}
    bad["number"][3, 0] = value
    stepper(3, 0.0, 0.1, [bad])
    after = toys.weights(objective) | stepper.tensors()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert int(stepper.streak) == int(stepper.skipped) == 1
    stepper(4, 0.0, 0.1, [good])
    assert int(stepper.streak) == 0 and int(stepper.skipped) == 1
    assert not torch.equal(before["model.0.weight"], objective.model[0].weight)  # type: ignore[index]


def test_the_part_that_is_not_finite_is_named() -> None:
    stepper = Stepper(toys.Regression(), Plan(), CPU)
    batch = toys.data(rows=8).train.gather(torch.arange(8))
    batch["target:y"][2] = math.nan
    stepper(6, 0.0, 0.1, [batch])
    assert stepper.trouble == "loss part 'absolute' is nan at step 7"


class Frozen(toys.Regression):
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("main", ()),)


def test_nothing_to_learn_is_refused() -> None:
    from fathom.core.errors import TrainingError

    with pytest.raises(TrainingError, match="Phase 'main' has no parameter"):
        Stepper(Frozen(), Plan(), CPU)


def test_moving_average_equals_its_formula() -> None:
    torch.manual_seed(0)
    objective = toys.Regression()
    stepper = Stepper(objective, Plan(average=0.5, learning_rate=0.1), CPU)
    batch = toys.data(rows=16).train.gather(torch.arange(16))
    names = ("model.0.weight", "model.1.running_mean")
    expected = {n: toys.weights(objective)[n] for n in names}
    for step in range(12):
        stepper(step, 0.0, 0.1, [batch])
        decay = min(0.5, (1 + step) / (10 + step))
        for n in names:
            expected[n] = decay * expected[n] + (1 - decay) * toys.weights(objective)[n]
    assert stepper.average is not None
    for n in names:
        torch.testing.assert_close(stepper.average.values[n], expected[n])
    assert int(stepper.average.values["model.1.num_batches_tracked"]) == 12


def test_an_objectives_average_rises_along_its_cosine_and_copies_buffers() -> None:
    from fathom.engine.weights import Trailing

    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.zeros_(target.weight)
    source.running_mean.fill_(5.0)  # type: ignore[union-attr]
    Trailing([Average(source, target, decay=0.5, final_decay=1.0)]).update(0.5)
    assert target.weight.tolist() == pytest.approx([0.25] * 3)  # decay is 0.75 half way
    assert target.running_mean.tolist() == [5.0] * 3  # type: ignore[union-attr]
    source.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    source.running_mean.fill_(9.0)  # type: ignore[union-attr]
    Trailing([Average(source, target, 0.75, buffers="averaged")]).update(0.5)
    assert target.running_mean.tolist() == [6.0] * 3  # type: ignore[union-attr]
    assert target.num_batches_tracked == 7
