"""Language models that learn from one another, against numpy; and a student that begins as its teacher's layers."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import fathom
from fathom.core import compose
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Trained
from fathom.core.types import DataSpec, Field, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from fathom.models import bert, gpt, t5
from fathom.wrappers._tokens import inherit
from tests.conformance.samples import batch_of
from tests.objectives.differences import as_differences_say
from tests.objectives.stopping import whole_and_resumed
from tests.wrappers.earlier import Earlier

TITLE, BODY = (Field(name=n, kind="text", shape=(t,), vocabulary=v) for n, t, v in (("a", 5, 20), ("b", 9, 30)))
TWO, ONE = DataSpec(inputs=(TITLE, BODY), rows=20), DataSpec(inputs=(BODY,), rows=20)
SMALL = {"width": 8, "num_heads": 2, "dropout": 0.0}
NETWORKS = {
    "masked_token": lambda spec, **more: bert.build(bert.Config(**{**SMALL, "depth": 2, **more}), spec),
    "next_token": lambda spec, **more: gpt.build(gpt.Config(**{**SMALL, "depth": 2, **more}), spec),
    "spans": lambda spec, **more: t5.build(t5.Config(**{**SMALL, "depth": 1, **more}), spec),
}
OTHER = Field(name="c", kind="text", shape=(7,), vocabulary=30)
SPECS = {"masked_token": TWO, "next_token": ONE, "spans": DataSpec(inputs=(BODY,), targets=(OTHER,), rows=20)}
TASKS = {"masked_token": {}, "next_token": {}, "spans": {"corruption": "spans"}}


def task_of(kind: str, seed: int, **network: object) -> Objective:
    torch.manual_seed(seed)
    name = "masked_token" if kind == "spans" else kind
    entry = compose.chosen({"name": name, **TASKS[kind]})
    return compose.build(entry, SPECS[kind], NETWORKS[kind](SPECS[kind], **network))


def student(kind: str, wrapper: str = "distill", past: Earlier | None = None, seed: int = 0, **options: object):
    """Return a student of a wider and deeper teacher, unless told otherwise."""
    teacher = Trained("earlier", task_of(kind, 7).eval(), SPECS[kind])
    name = "masked_token" if kind == "spans" else kind
    entry = compose.chosen(
        {"name": f"{wrapper}({name})", wrapper: {"teacher": "earlier", **options}, name: TASKS[kind]}
    )
    torch.manual_seed(seed)
    return compose.build(entry, SPECS[kind], NETWORKS[kind](SPECS[kind], depth=1), past or Earlier(teacher))


def text_batch(kind: str, rows: int = 6) -> dict[str, torch.Tensor]:
    return batch_of(SPECS[kind], rows, seed=2)


def softmax(scores: np.ndarray) -> np.ndarray:
    found = np.exp(scores - scores.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


@pytest.mark.parametrize("tokens", ["all", "told"])
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_the_triple_loss_is_that_of_the_paper(kind: str, tokens: str) -> None:
    """α_ce · T² KL + α_mlm · L + α_cos (1 − cos), every score and state of every place written out."""
    task = student(kind, "distilbert", tokens=tokens, inherit=False).eval()
    teacher, batch = task._teacher[0], text_batch(kind, 12)
    with torch.no_grad():
        for p in (*teacher.parameters(), *task.parameters()):
            p.mul_(3)  # so that the two tell tokens with some certainty, and otherwise
    torch.manual_seed(3)
    loss = task.losses(batch)
    torch.manual_seed(3)
    question = task.inner.ask(batch)
    with torch.no_grad():
        answers = [each.answer(question) for each in (task.inner, teacher)]
        scores = [
            [each.scores(s.flatten(0, 1), i).unflatten(0, s.shape[:2]) for i, s in enumerate(answer.states)]
            for each, answer in zip((task.inner, teacher), answers, strict=True)
        ]
    apart, angles, own = [], [], []
    for column, (wanted, real) in enumerate(zip(question.wanted, question.real, strict=True)):
        for row, place in np.ndindex(*wanted.shape):
            ours, theirs = (s[column][row, place].double().numpy() for s in scores)
            to_tell = int(wanted[row, place])
            if to_tell >= 0:
                own.append(-np.log(softmax(ours)[to_tell]))
            if (real[row, place] and tokens == "all") or to_tell >= 0:
                p, q = softmax(theirs / 2), softmax(ours / 2)
                apart.append(4 * (p * np.log(p / q)).sum())
            if real[row, place]:
                s, t = (answer.states[column][row, place].double().numpy() for answer in answers)
                angles.append(1 - s @ t / np.linalg.norm(s) / np.linalg.norm(t))
    assert len(apart) > 5 and len(own) > 5
    parts = {"own": np.mean(own), "teacher": np.mean(apart), "cosine": np.mean(angles)}
    for name, expected in parts.items():
        assert loss.parts[name].item() == pytest.approx(expected, rel=1e-4)
    expected = (2 * parts["own"] + 5 * parts["teacher"] + parts["cosine"]) / 7
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert [float(term.weight) for term in loss.terms] == [len(own), len(apart), len(angles)]


def test_divergence_and_cosine_are_those_of_pytorch_as_the_authors_use_them() -> None:
    from fathom.wrappers._tokens import divergence

    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 12, 30).unbind(0)
    expected = torch.nn.KLDivLoss(reduction="batchmean")((ours / 2).log_softmax(-1), (theirs / 2).softmax(-1)) * 4
    torch.testing.assert_close(divergence(ours, theirs, 2.0).mean(), expected)
    task, batch = student("masked_token", cosine=1.0).eval(), text_batch("masked_token")
    torch.manual_seed(3)
    found = task.losses(batch).parts["cosine"]
    torch.manual_seed(3)
    question = task.inner.ask(batch)
    flat = [
        torch.cat([s[real] for s, real in zip(each.answer(question).states, question.real, strict=True)])
        for each in (task.inner, task._teacher[0])
    ]
    expected = torch.nn.CosineEmbeddingLoss()(*flat, torch.ones(len(flat[0])))
    torch.testing.assert_close(found, expected)


def test_what_a_teacher_tells_itself_costs_nothing() -> None:
    teacher = Trained("earlier", task_of("masked_token", 7).eval(), TWO)
    entry = compose.chosen({"name": "distill(masked_token)", "distill": {"teacher": "x", "share": 1.0, "cosine": 1.0}})
    task = compose.build(entry, TWO, teacher.objective.model, Earlier(teacher)).eval()
    task.inner.load_state_dict(teacher.objective.state_dict())
    loss = task.losses(text_batch("masked_token"))
    assert abs(loss.parts["teacher"].item()) < 1e-6 and abs(loss.parts["cosine"].item()) < 1e-6
    assert loss.parts["own"] > 1


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_gradients_are_those_of_differences(kind: str) -> None:
    task = student(kind, cosine=0.3, features=0.2).double().eval()
    task._teacher[0].double()
    names = [name for name, p in task.named_parameters() if p.requires_grad and p.numel() <= 64 and "norm" in name]
    names += [name for name, _ in task.named_parameters() if name.startswith("projection")]
    assert len(names) > 3
    assert as_differences_say(task, text_batch(kind, 2), names)


def test_accumulated_uneven_parts_give_the_gradient_of_the_whole() -> None:
    """Of texts of unlike lengths, whose terms count in units of their own; next_token draws nothing at random."""
    moved, batch = [], text_batch("next_token", 12)
    for cuts in ((0, 12), (0, 2, 3, 12)):
        task = student("next_token", cosine=0.3)
        before = [p.detach().clone() for p in task.parameters()]
        plan = Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=0.0)
        Stepper(task, plan, torch.device("cpu"))(
            0, 0.0, 1.0, [{k: v[a:b] for k, v in batch.items()} for a, b in pairwise(cuts)]
        )
        moved.append([b - p.detach() for b, p in zip(before, task.parameters(), strict=True)])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    plan = Plan(epochs=3, batch_size=4, threads=1, precision="fp32", average=0.9, accumulate=2)
    data = TrainingData(train=TensorStore(batch_of(TWO, 16)), valid=TensorStore(batch_of(TWO, 8, seed=1)))
    ends = whole_and_resumed(
        partial(student, "masked_token", "distilbert", features=0.1), data, plan, tmp_path, after=1
    )
    assert ends[0].keys() == ends[1].keys()
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
    assert not any("_teacher" in key for key in ends[0])


@pytest.mark.parametrize(("deep", "shallow", "taken"), [(4, 2, (0, 2)), (6, 2, (0, 3)), (3, 2, (0, 1)), (2, 2, (0, 1))])
def test_a_student_begins_with_every_so_manyth_layer(deep: int, shallow: int, taken: tuple[int, ...]) -> None:
    ours, theirs = task_of("masked_token", 0, depth=shallow), task_of("masked_token", 7, depth=deep)
    inherit(ours, theirs)
    for own, source in enumerate(taken):
        for key, value in ours.model.blocks[own].state_dict().items():
            assert torch.equal(value, theirs.model.blocks[source].state_dict()[key])
    assert torch.equal(ours.model.vectors[0].weight, theirs.model.vectors[0].weight)
    assert torch.equal(ours.tellers[1].linear.weight, theirs.tellers[1].linear.weight)
    with pytest.raises(ConfigError, match="the same model with fewer layers"):
        inherit(torch.nn.Linear(3, 3), theirs)


def test_a_student_of_another_width_learns_through_a_projection() -> None:
    teacher = Trained("earlier", task_of("masked_token", 7, width=12).eval(), TWO)
    task = student("masked_token", past=Earlier(teacher), cosine=1.0, share=0.0)
    assert task.projection.weight.shape == (12, 8)
    assert {id(p) for p in task.projection.parameters()} <= {id(p) for p in task.phases()[0].parameters}
    store = TensorStore(text_batch("masked_token", 16))
    before = float(task.losses(store.columns).parts["cosine"].detach())
    for _ in train(task, TrainingData(train=store), Plan(epochs=30, batch_size=16, learning_rate=1e-2, threads=1)):
        pass
    assert float(task.losses(store.columns).parts["cosine"].detach()) < 0.7 * before


def verses(path: Path) -> str:
    """Write short texts in which each word follows from the one before it."""
    words, random = ["one", "two", "three", "four", "five", "six", "seven", "eight"], np.random.default_rng(0)
    starts = random.integers(0, 8, 160)
    pl.DataFrame({"text": [" ".join(words[(s + i) % 8] for i in range(6)) for s in starts]}).write_csv(path)
    return str(path)


def test_from_texts_to_a_student_that_stands_alone(tmp_path: Path) -> None:
    source = verses(tmp_path / "texts.csv")
    common = {"epochs": 2, "sets": ["evaluate.baselines=false", "engine.threads=1", "data.kinds.text=text"]}
    model = {"name": "bert", "width": 16, "num_heads": 2, "depth": 4}
    fathom.fit(source, objective="masked_token", config={"model": model}, out=tmp_path / "teacher", **common)
    found = fathom.fit(
        source,
        objective="distilbert(masked_token)",
        config={"model": {**model, "depth": 2}, "objective": {"distilbert": {"teacher": str(tmp_path / "teacher")}}},
        out=tmp_path / "student",
        **common,
    )
    (tmp_path / "teacher").rename(tmp_path / "gone")
    alone = fathom.load(tmp_path / "student")
    assert alone.info()["objective"]["name"] == "distilbert(masked_token)"
    assert len(alone.module.model.blocks) == 2
    np.testing.assert_array_equal(alone.embed(source), found.embed(source))


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    teacher = Trained("earlier", task_of("next_token", 7).eval(), ONE)
    with pytest.raises(ConfigError, match="cannot teach this student to tell tokens: it was trained by NextToken"):
        student("masked_token", past=Earlier(teacher))
    other = Trained("earlier", task_of("masked_token", 7).eval(), ONE)
    with pytest.raises(ConfigError, match=r"it tells \[30\] tokens of each text column, the student \[20, 30\]"):
        student("masked_token", past=Earlier(other))
    written = Trained("earlier", task_of("spans", 7).eval(), TWO)
    with pytest.raises(ConfigError, match="only one reads and writes"):
        student("masked_token", past=Earlier(written))
    with pytest.raises(ConfigError, match=r"as in sam\(distill\(…\)\)"):
        entry = compose.chosen({"name": "distill(sam(masked_token))", "distill": {"teacher": "earlier"}})
        compose.build(entry, TWO, NETWORKS["masked_token"](TWO), Earlier(other))
    with pytest.raises(ConfigError, match="neither predicts a target nor tells tokens"):
        entry = compose.chosen({"name": "distill(contrast)", "distill": {"teacher": "earlier"}})
        compose.build(entry, ONE, bert.build(bert.Config(), ONE), Earlier(other))
