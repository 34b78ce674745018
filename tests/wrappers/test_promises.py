"""Every wrapper, alone and around others, keeps the promises of an objective."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from fathom.core import catalog, compose
from fathom.core.config import as_dict, build, describe
from fathom.core.types import TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from tests.conformance.samples import batch_of
from tests.wrappers.earlier import IMAGES, NUMBERS, built

CPU = torch.device("cpu")
EVERY = ("mixup", "adversarial_training", "sam", "ewc", "replay", "rules", "distill", "noisy_student")
NESTED = (*EVERY, "sam(mixup(supervised))", "distill(rules(ewc(supervised)))", "0.5*sam(mixup(supervised))")


@pytest.mark.parametrize("name", catalog.files("wrappers"))
def test_a_file_says_what_it_is(name: str) -> None:
    entry = catalog.find("wrappers", name)
    assert (entry.module.__doc__ or "").strip() and entry.module.REFERENCE
    assert dataclasses.is_dataclass(entry.config) and entry.config.__dataclass_params__.frozen
    assert all(told for *_, told in describe(type(entry.config)))
    assert build(type(entry.config), as_dict(entry.config)) == entry.config


def test_no_wrapper_has_the_name_of_an_objective() -> None:
    assert not set(catalog.names("wrappers")) & set(catalog.names("objectives"))


@pytest.mark.parametrize("name", NESTED)
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(name: str, tmp_path) -> None:
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", average=0.9, accumulate=2)
    data = TrainingData(train=TensorStore(batch_of(NUMBERS, 40)), valid=TensorStore(batch_of(NUMBERS, 16, seed=1)))
    ends = []
    for stops in (False, True):
        task = built(name, NUMBERS, noisy=True)
        folder = tmp_path / str(stops)
        if stops:
            records = train(task, data, plan, folder)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 2:
                    records.close()
                    break
            task = built(name, NUMBERS, noisy=True)
        for _ in train(task, data, plan, folder, resume=stops):
            pass
        ends.append({key: value.clone() for key, value in (*task.named_parameters(), *task.named_buffers())})
    assert ends[0].keys() == ends[1].keys()
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


@pytest.mark.parametrize("name", NESTED)
def test_what_is_kept_is_the_objective_alone(name: str) -> None:
    task = built(name, NUMBERS)
    entry = compose.chosen({"name": name})
    fresh = compose.build(entry, NUMBERS, task.model.__class__(NUMBERS))
    kept = task.kept()
    fresh.load_state_dict(kept.state_dict())
    batch = batch_of(NUMBERS, 5)
    for key, value in task.eval().predict(batch).items():
        assert torch.equal(value, fresh.eval().predict(batch)[key])
    assert list(kept.state_dict()) == list(fresh.state_dict())


@pytest.mark.parametrize("name", ["adversarial_training", "sam", "ewc", "rules", "distill", "noisy_student"])
def test_accumulated_uneven_parts_give_the_gradient_of_the_whole(name: str) -> None:
    moved = []
    batch = batch_of(NUMBERS, 20)
    for cuts in ((0, 20), (0, 3, 4, 20)):
        more = {"adversarial_training__random_start": False} if name == "adversarial_training" else {}
        task = built(name, NUMBERS, **more)
        before = [p.detach().clone() for p in task.parameters()]
        plan = Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=0.0)
        parts = [{k: v[a:b] for k, v in batch.items()} for a, b in pairwise(cuts)]
        Stepper(task, plan, CPU)(0, 0.0, 1.0, parts)
        moved.append([b - p.detach() for b, p in zip(before, task.parameters(), strict=True)])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rules", "distill", "noisy_student", "ewc", "sam"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    task = built(name, NUMBERS).double()
    for teacher in getattr(task, "_teacher", getattr(task, "_teachers", ())):
        teacher.double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch_of(NUMBERS, 5).items()}
    leaves = tuple(p for p in task.parameters() if p.requires_grad)

    assert task.losses(batch).total.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *_: task.losses(batch).total, leaves)


@pytest.mark.parametrize("name", ["mixup", "adversarial_training", "replay"])
def test_gradients_of_drawn_losses_are_those_of_finite_differences(name: str) -> None:
    task = built(name, NUMBERS).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch_of(NUMBERS, 5).items()}
    chosen = {}
    if name == "adversarial_training":  # what the attack finds is no function of the weights to differentiate
        chosen = {"attack": lambda given, phase="main": fixed}
        fixed = task.attack(batch)

    def loss(*_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return task.losses(batch).total

    for key, value in chosen.items():
        setattr(task, key, value)
    assert torch.autograd.gradcheck(loss, tuple(task.parameters()))


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_learns(name: str) -> None:
    task = built(name, NUMBERS, noisy=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.losses(batch_of(NUMBERS, 16)).total
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "fgsm", "pgd", "noisy_student"])
def test_images_are_learned_from(name: str) -> None:
    task = built(name, IMAGES)
    store = TensorStore(batch_of(IMAGES, 24))
    before = float(task.eval().inner.metrics(store.columns)["loss"].detach().mean())
    plan = Plan(epochs=60, batch_size=24, learning_rate=1e-2, keep="last", threads=1, precision="fp32")
    for _ in train(task, TrainingData(train=store), plan):
        pass
    assert float(task.eval().inner.metrics(store.columns)["loss"].detach().mean()) < before
