"""Supervised learning against scikit-learn's and numpy's formulas."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error
from torch import nn

from fathom.core.types import DataSpec, Features, Field, Stats
from fathom.objectives import supervised
from fathom.objectives.supervised import Config

LABEL = Field(name="label", kind="category", classes=("a", "b", "c"), counts=(10, 9, 8))
RARE = Field(name="rare", kind="category", classes=("a", "b", "c"), counts=(900, 90, 10))
PRICE = Field(name="price", kind="number", stats=Stats(mean=(50.0,), std=(4.0,)))


class Given(nn.Module):
    """A model whose features are what the batch says: [B, D], or [B, K, D] of an ensemble."""

    def __init__(self, width: int = 5, members: int = 1) -> None:
        super().__init__()
        self.width, self.members = width, members

    def forward(self, batch: dict[str, torch.Tensor]) -> Features:
        return Features(pooled=batch["features"])


def objective(*targets: Field, members: int = 1, **options) -> supervised.Supervised:
    torch.manual_seed(0)
    spec = DataSpec(inputs=(), targets=targets, rows=27)
    return supervised.build(Config(**options), spec, Given(members=members)).eval()


def batch_for(*targets: Field, members: int = 1, rows: int = 40) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    shape = (rows, members, 5) if members > 1 else (rows, 5)
    batch = {"features": torch.randn(shape, generator=random)}
    for target in targets:
        if target.kind == "category":
            batch[target.target_key] = torch.randint(0, len(target.classes), (rows,), generator=random)
        else:
            batch[target.target_key] = 50 + 4 * torch.randn(rows, generator=random)
    return batch


def probabilities(task: supervised.Supervised, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Each member's own probabilities [B, K, C]."""
    return task.outputs(batch)[0].detach().double().softmax(-1).numpy()


def test_a_categorys_loss_is_the_log_loss():
    task, batch = objective(LABEL), batch_for(LABEL)
    expected = log_loss(batch["target:label"], probabilities(task, batch)[:, 0], labels=[0, 1, 2])
    assert task.losses(batch).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["auto", "balanced"])
def test_class_weights_are_sample_weights_of_the_log_loss(mode):
    task, batch = objective(RARE, class_weights=mode), batch_for(RARE)
    counts, truth = np.array(RARE.counts, float), batch["target:rare"].numpy()
    weight = counts ** (-0.5 if mode == "auto" else -1)
    weight *= counts.sum() / (weight * counts).sum()  # mean one over the training rows
    each = -np.log(probabilities(task, batch)[np.arange(40), 0, truth])
    assert task.losses(batch).total.item() == pytest.approx((each * weight[truth]).mean(), rel=1e-5)
    of_sklearn = log_loss(truth, probabilities(task, batch)[:, 0], sample_weight=weight[truth], labels=[0, 1, 2])
    assert task.losses(batch).total.item() == pytest.approx(of_sklearn * weight[truth].mean(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    truth = np.repeat([0, 1, 2], RARE.counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    weights = objective(RARE, class_weights="balanced").weights_0
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_classes_that_count_alike_are_not_weighted():
    assert objective(LABEL).weights_0 is None
    assert objective(RARE).weights_0 is not None
    assert objective(RARE, class_weights="none").weights_0 is None


def test_a_class_without_training_rows_has_a_finite_weight():
    empty = Field(name="rare", kind="category", classes=("a", "b", "c"), counts=(900, 90, 0))
    weights = objective(empty).weights_0
    assert weights.isfinite().all() and weights[2] > weights[1] > weights[0]


def test_label_smoothing_mixes_in_the_even_distribution():
    task, batch = objective(LABEL, label_smoothing=0.3), batch_for(LABEL)
    log_p = np.log(probabilities(task, batch)[:, 0])
    truth = np.eye(3)[batch["target:label"]]
    expected = -((0.7 * truth + 0.1) * log_p).sum(1).mean()
    assert task.losses(batch).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("squared", lambda guess, truth: mean_squared_error(truth, guess) / 16),
        ("absolute", lambda guess, truth: mean_absolute_error(truth, guess) / 4),
        (
            "huber",
            lambda guess, truth: np.where(
                abs(guess - truth) < 4, 0.5 * ((guess - truth) / 4) ** 2, abs(guess - truth) / 4 - 0.5
            ).mean(),
        ),
    ],
)
def test_a_numbers_loss_is_in_units_of_its_spread(loss, formula):
    task, batch = objective(PRICE, number_loss=loss), batch_for(PRICE)
    batch["target:price"] = batch["target:price"] * 1.5  # some far from what is predicted
    guess, truth = task.predict(batch)["price"].detach().double().numpy(), batch["target:price"].double().numpy()
    assert task.losses(batch).total.item() == pytest.approx(formula(guess, truth), rel=1e-4)
    assert task.metrics(batch)["loss"].mean().item() == pytest.approx(formula(guess, truth), rel=1e-4)


def test_predictions_are_in_the_targets_own_unit():
    task, batch = objective(PRICE), batch_for(PRICE)
    linear = task.heads[0].linear
    expected = (batch["features"] @ linear.weight.T + linear.bias).squeeze(1) * 4 + 50
    torch.testing.assert_close(task.predict(batch)["price"], expected)


def test_every_member_of_an_ensemble_has_its_own_loss():
    task, batch = objective(LABEL, PRICE, members=3), batch_for(LABEL, PRICE, members=3)
    logits, values = task.outputs(batch)
    assert logits.shape == (40, 3, 3) and values.shape == (40, 3, 1)
    truth, price = batch["target:label"], (batch["target:price"] - 50) / 4
    of_label = np.mean([nn.functional.cross_entropy(logits[:, k], truth).item() for k in range(3)])
    of_price = np.mean([(values[:, k, 0] - price).square().mean().item() for k in range(3)])
    loss = task.losses(batch)
    assert loss.parts["label"].item() == pytest.approx(of_label, rel=1e-5)
    assert loss.parts["price"].item() == pytest.approx(of_price, rel=1e-5)
    assert loss.total.item() == pytest.approx((of_label + of_price) / 2, rel=1e-5)


def test_an_ensemble_predicts_the_mean_of_its_members():
    task, batch = objective(LABEL, PRICE, members=3), batch_for(LABEL, PRICE, members=3)
    found = task.predict(batch)
    np.testing.assert_allclose(found["label"].detach(), probabilities(task, batch).mean(1), rtol=1e-5)
    torch.testing.assert_close(found["price"], task.outputs(batch)[1].squeeze(-1).mean(1) * 4 + 50)


@pytest.mark.parametrize("mode", ["auto", "balanced"])
def test_predictions_undo_the_weights_of_each_member(mode):
    """By Bayes' rule: divided by the weight of its class, and scaled to one, before members are averaged."""
    task, batch = objective(RARE, members=3, class_weights=mode), batch_for(RARE, members=3)
    put_back = probabilities(task, batch) / task.weights_0.double().numpy()
    expected = (put_back / put_back.sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(task.predict(batch)["rare"].detach(), expected, rtol=1e-4)


def test_without_weights_predictions_are_the_plain_probabilities():
    task, batch = objective(RARE, class_weights="none"), batch_for(RARE)
    np.testing.assert_allclose(task.predict(batch)["rare"].detach(), probabilities(task, batch)[:, 0], rtol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "balanced", "none"])
@pytest.mark.parametrize("members", [1, 3])
def test_without_a_signal_probabilities_are_the_classes_shares(mode, members):
    share = 0.08
    target = Field(name="answer", kind="category", classes=("no", "yes"), counts=(920, 80))
    task = objective(target, members=members, class_weights=mode).train()
    shape = (1000, members, 5) if members > 1 else (1000, 5)
    batch = {"features": torch.randn(shape, generator=torch.Generator().manual_seed(2))}
    batch["target:answer"] = (torch.arange(1000) < 1000 * share).long()
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        task.losses(batch).total.backward()
        optimizer.step()
    yes = task.eval().predict(batch)["answer"][:, 1]
    assert yes.mean().item() == pytest.approx(share, abs=0.01)
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert task.metrics(batch)["loss"].mean().item() == pytest.approx(entropy, abs=0.02)


def test_class_weights_hold_for_every_member():
    task, batch = objective(RARE, members=3), batch_for(RARE, members=3)
    truth = batch["target:rare"]
    each = [nn.functional.cross_entropy(task.outputs(batch)[0][:, k], truth, reduction="none") for k in range(3)]
    expected = (torch.stack(each).mean(0) * task.weights_0[truth]).mean()
    torch.testing.assert_close(task.losses(batch).total, expected)


def test_metrics_are_of_the_mean_prediction():
    task, batch = objective(RARE, members=3), batch_for(RARE, members=3)
    p, truth = task.predict(batch)["rare"].detach().double().numpy(), batch["target:rare"].numpy()
    found = task.metrics(batch)
    assert list(found) == ["loss", "error"]  # the first chooses the state to keep
    np.testing.assert_allclose(found["loss"].detach(), -np.log(p[np.arange(40), truth]), rtol=1e-4)
    np.testing.assert_array_equal(found["error"], p.argmax(1) != truth)


def test_metrics_of_several_targets_are_their_mean():
    task, batch = objective(LABEL, RARE, PRICE), batch_for(LABEL, RARE, PRICE)
    found = task.metrics(batch)
    singles = []
    for index, target in enumerate((LABEL, RARE, PRICE)):
        single = objective(target)
        single.heads[0].load_state_dict(task.heads[index].state_dict())
        singles.append(single.metrics(batch))
    torch.testing.assert_close(found["loss"], torch.stack([s["loss"] for s in singles]).mean(0))
    torch.testing.assert_close(found["error"], (singles[0]["error"] + singles[1]["error"]) / 2)
    assert "error" not in singles[2]


def test_uneven_parts_of_a_batch_weigh_what_the_whole_does():
    task, batch = objective(RARE, PRICE), batch_for(RARE, PRICE)
    parts = [task.losses({k: v[rows] for k, v in batch.items()}) for rows in (slice(0, 7), slice(7, 40))]
    together = sum(p.total * p.weight for p in parts) / sum(p.weight for p in parts)
    torch.testing.assert_close(together, task.losses(batch).total)


def test_gradients_are_those_of_finite_differences():
    task, batch = objective(LABEL, RARE, PRICE, members=2).double(), batch_for(LABEL, RARE, PRICE, members=2, rows=6)
    batch["features"] = batch["features"].double()
    assert task.losses(batch).total.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *_: task.losses(batch).total, tuple(task.parameters()))


def test_low_precision_features_are_priced_in_float32():
    task, batch = objective(LABEL), batch_for(LABEL)
    task.heads.bfloat16()
    batch["features"] = batch["features"].bfloat16()
    assert task.losses(batch).total.dtype == torch.float32


def test_a_number_far_from_zero_keeps_its_digits():
    when = Field(name="when", kind="number", stats=Stats(mean=(1.6e9,), std=(10.0,)))
    task, batch = objective(when), batch_for()
    batch["target:when"] = 1.6e9 + torch.linspace(-10, 10, 40, dtype=torch.float64)
    standard = torch.linspace(-1, 1, 40)
    expected = (task.outputs(batch)[0].flatten() - standard).square().mean()
    torch.testing.assert_close(task.losses(batch).total, expected)


def test_targets_that_cannot_be_learned_are_refused_by_name():
    assert supervised.accepts(supervised.example()) is None
    assert "target" in supervised.accepts(DataSpec(inputs=()))
    photo = Field(name="photo", kind="image", shape=(3, 8, 8))
    assert "'photo' is image" in supervised.accepts(DataSpec(inputs=(), targets=(photo,)))


def test_training_learns_two_targets_at_once():
    task, batch = objective(LABEL, PRICE, members=2).train(), batch_for(LABEL, PRICE, members=2, rows=12)
    batch["target:label"] = (batch["features"][:, 0, :3] + batch["features"][:, 1, :3]).argmax(1)
    batch["target:price"] = 50 + 2 * batch["features"].sum((1, 2)) / 2
    optimizer = torch.optim.Adam(task.parameters(), lr=0.1)
    first = task.losses(batch).total.item()
    for _ in range(100):
        optimizer.zero_grad()
        task.losses(batch).total.backward()
        optimizer.step()
    assert task.losses(batch).total.item() < 0.5 * first
