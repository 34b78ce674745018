"""Objectives by name, alone and together: what is read, where options go, and what sums do."""

from __future__ import annotations

import pytest
import torch

from fathom.core import compose
from fathom.core.config import as_dict
from fathom.core.errors import ConfigError
from fathom.core.types import Loss, Phase
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from fathom.objectives._sum import Sum
from fathom.objectives.supervised import Config, Supervised
from fathom.wrappers import sam
from tests.conformance.samples import batch_of
from tests.engine import toys
from tests.wrappers.earlier import NUMBERS, Small, built

CPU = torch.device("cpu")
SGD = Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=0.0)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("supervised", "supervised"),
        (" supervised + .5 * contrast ", "supervised+0.5*contrast"),
        ("1*supervised", "supervised"),
        ("1e-3*supervised", "0.001*supervised"),
        ("mixup", "mixup(supervised)"),
        ("sam( mixup(supervised) + 2*contrast )", "sam(mixup(supervised)+2*contrast)"),
        ("0.25*fgsm(supervised)+contrast", "0.25*fgsm(supervised)+contrast"),
    ],
)
def test_names_are_read_to_one_spelling(given: str, read: str) -> None:
    tree = compose.parse(given)
    assert str(tree) == read and compose.parse(str(tree)) == tree


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("supervisd", "no objective 'supervisd'. Did you mean 'supervised'"),
        ("mixp(supervised)", "no wrapper 'mixp'. Did you mean 'mixup'"),
        ("mixup(supervisd)", "Did you mean 'supervised'"),
        ("supervised(mixup)", "'supervised' is an objective and holds no other"),
        ("supervised+supervised", "names 'supervised' twice"),
        ("mixup+supervised", "names 'supervised' twice"),
        ("mixup(supervised", "at its end: ')' is expected"),
        ("supervised)", "at ')'"),
        ("supervised+", "at its end"),
        ("2supervised", "'*' is expected"),
        ("0*supervised", "above 0"),
        ("-1*supervised", "name of an objective"),
        ("1e999*supervised", "above 0"),
        ("", "at its end"),
        ("mixup[supervised]", "at '[supervised]'"),
        ("supervised" * 100, "at most 500"),
    ],
)
def test_what_cannot_be_read_says_where(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose.parse(given)
    assert said in str(error.value)


def test_options_stand_under_their_part() -> None:
    entry = compose.chosen(
        {"name": "mixup(supervised)", "mixup": {"alpha": 0.4}, "supervised": {"label_smoothing": 0.1}}
    )
    found = as_dict(entry.config)
    assert (found["mixup"]["alpha"], found["supervised"]["label_smoothing"]) == (0.4, 0.1)
    assert entry.name == "mixup(supervised)"
    again = compose.chosen({"name": entry.name, **found})
    assert as_dict(again.config) == found


def test_where_one_name_is_written_its_options_may_stand_alone() -> None:
    for options in ({"alpha": 0.4}, {"mixup": {"alpha": 0.4}}):
        assert compose.chosen({"name": "mixup", **options}).config.mixup.alpha == 0.4
    for options in ({"dropout": 0.4}, {"supervised": {"dropout": 0.4}}):
        assert compose.chosen({"name": "supervised", **options}).config.dropout == 0.4


def test_a_preset_keeps_what_is_not_set_anew() -> None:
    entry = compose.chosen({"name": "fgsm(supervised)", "fgsm": {"epsilon": 0.1}})
    assert (entry.config.fgsm.steps, entry.config.fgsm.epsilon) == (1, 0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 1.0}, "objective.mixup.alpha"),
        ({"alpa": 1.0}, "no part 'alpa'"),
        ({"mixup": {"alpa": 1.0}}, "'objective.mixup.alpa'. Did you mean 'alpha'"),
        ({"mixup": 3}, "'objective.mixup' is a group"),
        ({"mixup": {"alpha": "much"}}, "'objective.mixup.alpha' was given 'much'"),
    ],
)
def test_a_wrong_option_is_refused_by_its_place(options: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose.chosen({"name": "mixup(supervised)", **options})
    assert said in str(error.value)


def test_a_recipe_speaks_to_the_parts_that_have_its_options() -> None:
    plain, both = compose.find("supervised"), compose.find("mixup(supervised)")
    assert compose.settings({"label_smoothing": 0.1, "other": 1}, plain) == {"label_smoothing": 0.1}
    assert compose.settings({"label_smoothing": 0.1}, both) == {"supervised": {"label_smoothing": 0.1}}


def test_without_a_past_wrappers_are_left_out() -> None:
    entry = compose.find("sam(mixup(supervised))")
    assert type(compose.build(entry, NUMBERS, Small(NUMBERS))).__name__ == "Supervised"
    assert built("sam(mixup(supervised))", NUMBERS).kept().model.width == 5


def two() -> Sum:
    torch.manual_seed(0)
    model = Small(NUMBERS)
    smooth = Supervised(Config(label_smoothing=0.3), NUMBERS, model)
    return Sum(model, NUMBERS, [("plain", 1.0, Supervised(Config(), NUMBERS, model)), ("smooth", 0.5, smooth)])


def test_a_sums_gradient_is_the_weighted_sum_of_gradients() -> None:
    task, batch = two(), batch_of(NUMBERS, 9)
    leaves = list(task.model.parameters())
    found = torch.autograd.grad(task.losses(batch).total, leaves)
    each = [torch.autograd.grad(part.losses(batch).total, leaves) for part in task.parts.values()]
    for g, a, b in zip(found, *each, strict=True):
        torch.testing.assert_close(g, a + 0.5 * b)
    task.double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    assert torch.autograd.gradcheck(lambda *_: task.losses(batch).total, tuple(task.parameters()))


def test_parts_that_look_at_one_batch_share_one_pass_through_the_model() -> None:
    task, batch, calls = two(), batch_of(NUMBERS, 4), []
    task.model.first.register_forward_hook(lambda *_: calls.append(1))
    task.losses(batch), task.metrics(batch), task.predict(batch)
    assert len(calls) == 3
    assert "forward" not in task.model.__dict__


def test_a_sum_tells_its_parts_and_is_chosen_by_their_sum() -> None:
    task, batch = two(), batch_of(NUMBERS, 6)
    found = task.metrics(batch)
    assert next(iter(found)) == "loss"
    torch.testing.assert_close(found["loss"], found["plain.loss"] + 0.5 * found["smooth.loss"])
    assert {"plain", "smooth", "plain.kind"} <= task.losses(batch).parts.keys()
    told = task.summary({name: float(value.detach().mean()) for name, value in found.items()})
    assert told.keys() == found.keys()
    assert task.predicts == NUMBERS.targets


class Tokens(Supervised):
    """A loss that is a mean over other units than rows, of which each row has another number."""

    def losses(self, batch: dict, phase: str = "main") -> Loss:
        counts = batch["count"]
        cost = self.model(batch).pooled.square().mean(1)
        return Loss((cost * counts).sum() / counts.sum(), weight=counts.sum())


def test_accumulation_weights_each_summand_by_its_own_units() -> None:
    batch = batch_of(NUMBERS, 20) | {"count": torch.arange(1.0, 21.0)}
    moved = []
    for cuts in ([(0, 20)], [(0, 3), (3, 4), (4, 20)]):
        torch.manual_seed(0)
        model = Small(NUMBERS)
        parts = [("rows", 1.0, Supervised(Config(), NUMBERS, model)), ("tokens", 2.0, Tokens(Config(), NUMBERS, model))]
        task = Sum(model, NUMBERS, parts)
        before = [p.detach().clone() for p in task.parameters()]
        Stepper(task, SGD, CPU)(0, 0.0, 1.0, [{k: v[a:b] for k, v in batch.items()} for a, b in cuts])
        moved.append([b - p.detach() for b, p in zip(before, task.parameters(), strict=True)])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_part_with_turns_of_its_own_keeps_them() -> None:
    adversarial = toys.Adversarial()
    plain = toys.Regression(dropout=0.0)
    task = Sum(adversarial.model, NUMBERS, [("plain", 1.0, plain), ("adversarial", 0.5, adversarial)])
    phases = {phase.name: phase for phase in task.phases()}
    assert list(phases) == ["main", "adversarial.maker", "adversarial.judge"]
    assert phases["adversarial.maker"].every == 2 and len(task.averages()) == 1
    assert {id(p) for p in phases["main"].parameters} == {id(p) for p in plain.parameters()}
    batch = toys.data(rows=8).train.gather(torch.arange(8))
    torch.manual_seed(1)
    found = task.losses(batch, "adversarial.judge").total
    torch.manual_seed(1)
    torch.testing.assert_close(found, 0.5 * adversarial.losses(batch, "judge").total)


def test_a_sum_of_climbing_parts_climbs() -> None:
    model = Small(NUMBERS)
    climbing = sam.build(sam.Config(0.2), NUMBERS, Supervised(Config(), NUMBERS, model))
    task = Sum(model, NUMBERS, [("plain", 1.0, climbing)])
    assert [phase.climb for phase in task.phases()] == [0.2]
    assert Phase("main", ()).climb == 0.0
