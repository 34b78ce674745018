"""Learning from few labels against the papers' formulas in numpy, and what missing targets come to."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from fathom.api.config import Settings
from fathom.api.prepare import prepare
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import Picked, TensorStore
from fathom.engine.capture import Recordings
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.weights import Trailing
from fathom.models import vit
from fathom.objectives import consistency
from fathom.objectives.consistency import Config, repeats
from tests.conformance.samples import batch_of
from tests.objectives.differences import as_differences_say

IMAGE = Field(name="photo", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
CLASS = Field(name="label", kind="category", classes=("a", "b", "c"), counts=(3, 3, 3))
SPEC = DataSpec(inputs=(IMAGE,), targets=(CLASS,), rows=36)
ALL = ["fixmatch", "steady_match", "mean_teacher"]


def objective(seed: int = 0, spec: DataSpec = SPEC, **options) -> consistency.Consistency:
    torch.manual_seed(seed)
    return consistency.build(Config(**options), spec, vit.build(vit.Config(width=16, depth=1, num_heads=2), spec))


def batch_with_gaps(rows: int = 12, labelled: int = 4) -> dict[str, torch.Tensor]:
    batch = batch_of(SPEC, rows)
    batch["target:label"][labelled:] = -1
    return batch


def softmax(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().softmax(-1).numpy()


def said_by(model: torch.nn.Module, head: torch.nn.Module, image: torch.Tensor) -> np.ndarray:
    return softmax(head(model({"image:photo": image}).pooled)[:, 0])


def parts_of(task, batch, weak, strong, said, sure) -> tuple[float, float]:
    """ℓ_s of the four labelled rows of twelve, and ℓ_u of what is said of all of them, surely enough."""
    truth = batch["target:label"].numpy()
    labelled = -np.log(weak[np.arange(4), truth[:4]]).sum() / (12 * task.share)
    return labelled, (-np.log(strong[np.arange(12), said]) * sure).mean()


def test_fixmatch_is_the_papers_sum():
    """ℓ_s: cross-entropy of labels; ℓ_u: of strong views against what is said, surely enough, of weak ones."""
    task, batch = objective(threshold=0.4, weight=0.7), batch_with_gaps()
    torch.manual_seed(5)
    found = task.losses(batch)
    torch.manual_seed(5)
    image = batch["image:photo"].float()
    weak, strong = (said_by(task.model, task.head, each) for each in (image, task.strong(image)))
    sure, said = weak.max(1) >= 0.4, weak.argmax(1)
    assert 0 < sure.sum() < 12
    labelled, unlabelled = parts_of(task, batch, weak, strong, said, sure)
    assert found.total.item() == pytest.approx(labelled + 0.7 * unlabelled, rel=1e-5)
    assert found.parts["sure"].item() == pytest.approx(sure.mean())


def test_steady_match_takes_the_classes_of_the_average_aligned():
    """q̃ = normalise(q · p(y) / p̃(y)) of ReMixMatch, q of the teacher, p̃ the mean of what was said before."""
    label = Field(name="label", kind="category", classes=CLASS.classes, counts=(8, 2, 5))
    spec = DataSpec(inputs=(IMAGE,), targets=(label,), rows=36)
    task, batch = objective(spec=spec, method="steady_match", threshold=0.45), batch_with_gaps()
    with torch.no_grad():
        for p in task.teacher_head.parameters():
            p.add_(torch.randn_like(p))
        task.balance.said[0].value.copy_(torch.tensor([0.2, 0.6, 0.2]))
    torch.manual_seed(5)
    found = task.losses(batch)
    torch.manual_seed(5)
    image = batch["image:photo"].float()
    weak, strong = (said_by(task.model, task.head, each) for each in (image, task.strong(image)))
    told = said_by(task.teacher, task.teacher_head, image)
    aligned = told * (np.array([9, 3, 6]) / 18) / np.array([0.2, 0.6, 0.2])
    aligned /= aligned.sum(1, keepdims=True)
    sure, said = aligned.max(1) >= 0.45, aligned.argmax(1)
    assert 0 < sure.sum() < 12 and (said != told.argmax(1)).any()
    labelled, unlabelled = parts_of(task, batch, weak, strong, said, sure)
    assert found.total.item() == pytest.approx(labelled + unlabelled, rel=1e-5)
    now, said = task.balance.now[0], task.balance.said[0]
    np.testing.assert_allclose(now.value.numpy(), told.mean(0), rtol=1e-5)
    trails = task.averages()[-1]
    assert (trails.source, trails.target, trails.decay, trails.buffers) == (now, said, 0.99, "averaged")


def test_steady_match_tells_sharpened_probabilities():
    """Sharpen(q, T) = q^(1/T) / Σ q^(1/T) of MixMatch, of every image, sure or not."""
    task, batch = objective(method="steady_match", temperature=0.5), batch_with_gaps()
    with torch.no_grad():
        for p in task.teacher_head.parameters():
            p.add_(torch.randn_like(p))
    torch.manual_seed(5)
    found = task.losses(batch)
    torch.manual_seed(5)
    image = batch["image:photo"].float()
    weak, strong = (said_by(task.model, task.head, each) for each in (image, task.strong(image)))
    told = said_by(task.teacher, task.teacher_head, image) ** 2  # classes are equally frequent: nothing to align
    told /= told.sum(1, keepdims=True)
    assert (told.max(1) < 0.95).any()
    labelled = -np.log(weak[np.arange(4), batch["target:label"].numpy()[:4]]).sum() / (12 * task.share)
    assert found.total.item() == pytest.approx(labelled - (told * np.log(strong)).sum(1).mean(), rel=1e-5)


def test_mean_teacher_is_the_papers_distance():
    """J = E ‖f(x, θ', η') − f(x, θ, η)‖²."""
    task, batch = objective(method="mean_teacher", weight=3.0), batch_with_gaps()
    with torch.no_grad():
        for p in task.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    torch.manual_seed(5)
    found = task.losses(batch)
    torch.manual_seed(5)
    image = batch["image:photo"]
    student = softmax(task.head(task.model({"image:photo": task.other(image)}).pooled)[:, 0])
    teacher = softmax(task.teacher_head(task.teacher({"image:photo": task.other(image)}).pooled)[:, 0])
    labelled = -np.log(student[np.arange(4), batch["target:label"].numpy()[:4]]).sum() / (12 * task.share)
    distance = ((student - teacher) ** 2).sum(1).mean()
    assert distance > 1e-4
    assert found.total.item() == pytest.approx(labelled + 3 * distance, rel=1e-5)
    torch.testing.assert_close(
        task.eval().predict(batch)["label"],
        task.teacher_head(task.teacher(batch).pooled)[:, 0].softmax(1),
    )


def test_no_gradient_reaches_what_is_agreed_with():
    task, batch = objective(threshold=0.0), batch_with_gaps(labelled=0)
    torch.manual_seed(0)
    task.losses(batch).total.backward()
    found = [p.grad.clone() for p in task.head.parameters()]
    task.zero_grad()
    torch.manual_seed(0)
    strong = task.strong(batch["image:photo"])
    said = task.predict(batch)["label"].argmax(1)
    logits = task.head(task.model({"image:photo": strong}).pooled)[:, 0]
    torch.nn.functional.cross_entropy(logits, said).backward()
    for a, p in zip(found, task.head.parameters(), strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-6)
    teacher = objective(method="mean_teacher")
    teacher.losses(batch_with_gaps()).total.backward()
    assert all(p.grad is None for p in (*teacher.teacher.parameters(), *teacher.teacher_head.parameters()))


@pytest.mark.parametrize("method", ALL)
def test_micro_batches_have_the_gradient_of_one_batch(method):
    """Also where one of them holds no label at all; without chance, for each draws its own views."""
    task = objective(method=method, crop=1.0, jitter=0.0, turn=0.0, shear=0.0, erase=0.0, threshold=0.0)
    for views in (task.strong, task.other):
        object.__setattr__(views, "shape", 1.0)
        object.__setattr__(views, "crop", (1.0, 1.0))
    batch = batch_with_gaps()
    task.losses(batch).total.backward()
    whole = [p.grad.clone() for p in task.parameters() if p.grad is not None]
    task.zero_grad()
    for part in (slice(0, 4), slice(4, 12)):
        loss = task.losses({key: value[part] for key, value in batch.items()})
        (loss.total * loss.weight / 12).backward()
    parts = [p.grad for p in task.parameters() if p.grad is not None]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_gradients_are_those_of_differences(method):
    task, batch = objective(method=method, threshold=0.3).double(), batch_with_gaps(5, 2)
    names = ("head.linear.bias", "model.leading")
    assert as_differences_say(task, batch, names)


@pytest.mark.parametrize("method", ALL)
def test_it_learns_and_resumes_to_the_bit(method, tmp_path):
    batch = batch_with_gaps(48, 24)
    batch["image:photo"] = (
        batch["image:photo"] // 4 + 90 * batch_of(SPEC, 48)["target:label"][:, None, None, None]
    ).to(torch.uint8)
    plan = Plan(epochs=15, batch_size=16, learning_rate=3e-3, threads=1, precision="fp32", accumulate=2, keep="last")
    data = TrainingData(train=TensorStore(batch))
    ends = []
    for stops in (False, True):
        task = objective(method=method, momentum=0.8)
        if stops:
            records = train(task, data, plan, tmp_path)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 3:
                    records.close()
                    break
            task = objective(seed=4, method=method, momentum=0.8)
        for _ in train(task, data, plan, tmp_path if stops else None, resume=stops):
            pass
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
    with torch.no_grad():
        said = task.eval().predict(batch)["label"].argmax(1)
    assert (said[24:] == batch_of(SPEC, 48)["target:label"][24:]).float().mean() > 0.9  # rows that had no label


def test_a_teacher_trails_less_closely_by_the_end():
    for given, end in ((None, 0.999), (0.9, 0.99)):
        options = {} if given is None else {"momentum": given}
        found = [(each.decay, each.final_decay) for each in objective(method="mean_teacher", **options).averages()]
        assert found == [(given or 0.99, pytest.approx(end))] * 2


def test_rows_with_a_label_stand_more_often():
    assert repeats(Config(), 250, 10_000) == 6  # about one row in eight
    assert repeats(Config(), 5_000, 10_000) == 1
    assert repeats(Config(), 0, 10) == 1
    store = TensorStore({"number": torch.arange(5.0)[:, None]})
    picked = Picked(store, torch.tensor([4, 4, 0]))
    assert len(picked) == 3
    assert picked.gather(torch.tensor([2, 1])) == {"number": pytest.approx(torch.tensor([[0.0], [4.0]]))}


@pytest.mark.parametrize("several", [True, False])
def test_rows_without_a_target_are_learned_from_or_set_aside(several):
    labels = [("a", "b")[i % 2] if i % 5 < 3 else (None, "")[i % 2] for i in range(100)]
    frame = pl.DataFrame({"size": [float(i) for i in range(100)], "label": labels})
    settings = Settings({"data": {"target": ["label"]}})
    asked = (lambda labelled, rows: 3) if several else None
    material = prepare(frame, None, settings, 0, repeats=asked)
    codes = material.train.prepared.store.columns["target:label"]
    spec = material.preprocess.spec
    judged = len(material.judge[1].prepared.rows)
    assert spec.targets[0].classes == ("a", "b")
    assert sum(spec.targets[0].counts) == int((codes >= 0).sum()) == 60 - judged
    if several:
        assert int((codes < 0).sum()) == 40  # none is spent on judging
        assert spec.rows == len(codes) == 100 - judged
        assert len(material.learned) == len(codes) + 2 * (60 - judged)
        found = material.learned.gather(torch.arange(len(material.learned)))["target:label"]
        assert int((found >= 0).sum()) == 3 * (60 - judged)
        assert (material.labelled.prepared.store.columns["target:label"] >= 0).all()
        assert any("have no 'label'" in note for note in material.notes)
        assert not material.set_aside
    else:
        assert (codes >= 0).all() and len(material.set_aside) == 40
        assert material.learned is material.train.prepared.store
        assert material.labelled is material.train


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 1.0}, r"objective\.threshold"),
        ({"temperature": -1.0}, r"objective\.temperature"),
        ({"crop": 2.0}, r"objective\.crop"),
    ],
)
def test_bad_options_are_a_sentence(options, said):
    with pytest.raises(ConfigError, match=said):
        objective(**options)


def test_what_it_cannot_learn_from_is_said():
    assert "one target column of classes, empty where" in consistency.accepts(DataSpec(inputs=(IMAGE,)))
    assert "one image column" in consistency.accepts(DataSpec(inputs=(), targets=(CLASS,)))


def test_a_step_that_tallies_what_is_said_can_be_recorded():
    """A recording is played only where it leaves what the plain step leaves, to the bit: buffers too."""
    task = objective(method="steady_match").train()
    (phase,) = task.phases()
    recordings = Recordings(task, task.losses, phase.name, list(phase.parameters))
    trailing, rows = Trailing(task.averages()), 0
    for _ in range(8):
        played, before = recordings.take(batch_with_gaps()), task.balance.now[0].rows.clone()
        trailing.update(0.0)
        rows += 12 * (played is not None)
    assert rows > 0 and before == task.balance.said[0].rows == rows
