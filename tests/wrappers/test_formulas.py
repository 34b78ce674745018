"""Each wrapper's loss against its paper's formula, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, DataSpec, Field
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from fathom.wrappers import ewc, mixup
from fathom.wrappers.rules import parse, truth
from tests.conformance.samples import batch_of
from tests.wrappers.earlier import IMAGES, KIND, NUMBERS, PRICE, SEASON, Small, built, past_of

CPU = torch.device("cpu")


def log_p(task, batch) -> dict[str, np.ndarray]:
    return {name: np.log(p.detach().double().numpy()) for name, p in task.predict(batch).items()}


def test_mixup_learns_mixed_rows_by_mixed_targets() -> None:
    task, batch = built("mixup", NUMBERS), batch_of(NUMBERS, 12)
    torch.manual_seed(5)
    found = task.losses(batch).total.item()
    torch.manual_seed(5)
    other = torch.randperm(12)
    share = torch.distributions.Beta(0.2, 0.2).sample((12,))[:, None]
    mixed = batch | {"number": share * batch["number"] + (1 - share) * batch["number"][other]}
    said = log_p(task.inner, mixed)
    expected = []
    for target in (KIND, SEASON):
        truth = np.eye(len(target.classes))[batch[target.target_key]]
        soft = share.numpy() * truth + (1 - share.numpy()) * truth[other]
        expected.append(-(soft * said[target.name]).sum(1).mean())
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_mixing_targets_is_mixing_losses() -> None:
    """Of cross-entropy: λ L(y_a) + (1 − λ) L(y_b), label smoothing and class weights included."""
    rare = Field(name="kind", kind="category", classes=("a", "b", "c"), counts=(900, 90, 10))
    spec = DataSpec(inputs=NUMBERS.inputs, targets=(rare,), rows=1000)
    task, batch = built("supervised", spec, supervised__label_smoothing=0.2), batch_of(spec, 9)
    hard = F.one_hot(batch[rare.target_key], 3).float()
    torch.testing.assert_close(
        task.losses(batch | {rare.target_key: hard}).total, task.losses(batch).total, rtol=1e-5, atol=1e-6
    )
    other = batch[rare.target_key].flip(0)
    soft = 0.3 * hard + 0.7 * F.one_hot(other, 3)
    expected = 0.3 * task.losses(batch).total + 0.7 * task.losses(batch | {rare.target_key: other}).total
    torch.testing.assert_close(task.losses(batch | {rare.target_key: soft}).total, expected)


def test_features_are_mixed_where_inputs_cannot_be() -> None:
    spec = DataSpec(
        inputs=(*NUMBERS.inputs, Field(name="colour", kind="category", classes=(UNKNOWN, "red"))),
        targets=(KIND, PRICE),
        rows=40,
    )
    task, batch = built("mixup", spec), batch_of(spec, 10)
    torch.manual_seed(5)
    found = task.losses(batch).total
    torch.manual_seed(5)
    other, share = torch.randperm(10), torch.distributions.Beta(0.2, 0.2).sample((10,))[:, None]
    pooled = task.model(batch).pooled
    outputs = [head(share * pooled + (1 - share) * pooled[other])[:, 0] for head in task.inner.heads]
    soft = share * F.one_hot(batch["target:kind"], 3) + (1 - share) * F.one_hot(batch["target:kind"][other], 3)
    price = (share[:, 0] * batch["target:price"] + (1 - share[:, 0]) * batch["target:price"][other] - 50) / 4
    expected = (F.cross_entropy(outputs[0], soft) + (outputs[1][:, 0] - price).square().mean()) / 2
    torch.testing.assert_close(found, expected)
    assert not task.model._forward_hooks


def test_cutmix_pastes_rectangles_and_counts_their_pixels() -> None:
    task, batch = built("cutmix", IMAGES), batch_of(IMAGES, 50)
    other = torch.randperm(50)
    mixed, share = task._mixed(batch, other, torch.full((50,), 0.5))
    own, pasted = batch["image:photo"].float(), batch["image:photo"][other].float()
    result = mixed["image:photo"]
    differs = own != pasted
    assert ((result == own) | (result == pasted)).all()
    covered = ((result == pasted) & differs).flatten(1).sum(1) / 36
    assert ((1 - share) >= covered - 1e-6).all() and share.min() >= 0 and share.max() <= 1
    assert ((1 - share) - covered).max() < 4 / 36  # pixels that both share are not seen to be pasted
    assert 0.2 < share.mean() < 0.95 and share.std() > 0.1


@pytest.mark.parametrize("steps", [1, 3])
def test_the_attack_climbs_along_the_sign_of_a_gradient_made_by_hand(steps: int) -> None:
    """Softmax regression: the slope of the log-loss at x is Wᵀ (p − y)."""
    spec = DataSpec(inputs=NUMBERS.inputs, targets=(KIND,), rows=40)
    task = built(
        "adversarial_training", spec, adversarial_training__steps=steps, adversarial_training__random_start=False
    )
    model, head = task.model, task.inner.heads[0].linear
    batch = batch_of(spec, 8)
    x0 = batch["number"].double().numpy()
    w1, b1 = model.first.weight.detach().double().numpy(), model.first.bias.detach().double().numpy()
    w2, b2 = model.second.weight.detach().double().numpy(), model.second.bias.detach().double().numpy()
    w3, b3 = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    truth = np.eye(3)[batch["target:kind"]]
    limit = 0.1 * np.array([1.0, 2.0, 3.0, 4.0])  # the columns' own spreads
    size = (1.25 if steps == 1 else 2.5 / steps) * limit
    x = x0.copy()
    for _ in range(steps):
        hidden = np.tanh(x @ w1.T + b1)
        logits = (hidden @ w2.T + b2) @ w3.T + b3
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        slope = ((p - truth) @ w3 @ w2 * (1 - hidden**2)) @ w1
        x = np.clip(x + size * np.sign(slope), x0 - limit, x0 + limit)
    attacked = task.attack(batch)
    np.testing.assert_allclose(attacked["number"], x, rtol=1e-5, atol=1e-6)
    assert task.losses(batch).total > task.inner.losses(batch).total
    torch.testing.assert_close(task.losses(batch).total, task.inner.losses(attacked).total)
    assert all(p.grad is None for p in task.parameters())


def test_attacked_pictures_stay_within_their_limits() -> None:
    task, batch = built("pgd", IMAGES), batch_of(IMAGES, 10)
    task.train()
    picture = task.attack(batch)["image:photo"]
    assert (picture - batch["image:photo"].float()).abs().max() <= 8 + 1e-4
    assert picture.min() >= 0 and picture.max() <= 255
    assert all(module.training for module in task.modules())


def test_metrics_tell_what_the_attack_does() -> None:
    task, batch = built("pgd", IMAGES, pgd__share=0.5, pgd__epsilon=0.2).eval(), batch_of(IMAGES, 30)
    with torch.no_grad():
        found = task.metrics(batch)
    assert next(iter(found)) == "loss" and found["attacked_loss"].mean() > found["plain_loss"].mean()
    torch.testing.assert_close(found["loss"], (found["attacked_loss"] + found["plain_loss"]) / 2)


def test_sharpness_aware_steps_are_those_made_by_hand() -> None:
    """Two gradients: where the weights are, and ρ up the first, with the same dropout; statistics count once."""
    batch, plan = batch_of(NUMBERS, 16), Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip=0.0)
    task, by_hand = (built("sam", NUMBERS, noisy=True, sam__radius=0.3) for _ in range(2))
    torch.manual_seed(4)
    Stepper(task, plan, CPU)(0, 0.0, 0.1, [batch])

    leaves = list(by_hand.parameters())
    start = [p.detach().clone() for p in leaves]
    torch.manual_seed(4)
    first = torch.autograd.grad(by_hand.losses(batch).total, leaves)
    statistics = {name: b.clone() for name, b in by_hand.named_buffers()}
    norm = torch.sqrt(sum(g.square().sum() for g in first))
    with torch.no_grad():
        for p, g in zip(leaves, first, strict=True):
            p += 0.3 * g / norm
    torch.manual_seed(4)
    second = torch.autograd.grad(by_hand.losses(batch).total, leaves)
    for p, q, g in zip(task.parameters(), start, second, strict=True):
        torch.testing.assert_close(p.detach(), q - 0.1 * g)
    assert max((a - b).abs().max() for a, b in zip(first, second, strict=True)) > 1e-3
    for name, buffer in task.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_a_climb_that_is_not_finite_changes_nothing() -> None:
    task, batch = built("sam", NUMBERS, noisy=True), batch_of(NUMBERS, 16)
    for immediate in (True, False):
        stepper = Stepper(task, Plan(), CPU)
        stepper.immediate = immediate
        stepper(0, 0.0, 0.1, [batch])
        before = {n: t.detach().clone() for n, t in (*task.named_parameters(), *task.named_buffers())}
        stepper(1, 0.0, 0.1, [batch | {"number": batch["number"] * torch.nan}])
        for name, tensor in (*task.named_parameters(), *task.named_buffers()):
            assert torch.equal(before[name], tensor), name
        assert int(stepper.skipped) == 1


def test_fishers_information_is_the_mean_square_of_the_rows_own_gradients() -> None:
    """Of the head's bias of a softmax it is the mean of (p − y)², for labels drawn from p."""
    spec = DataSpec(inputs=NUMBERS.inputs, targets=(KIND,), rows=40)
    past = past_of(spec)
    earlier, rows = past.trained.objective, past.store
    bias = {"heads.0.linear.bias": earlier.heads[0].linear.bias}
    torch.manual_seed(2)
    found = ewc.fisher(earlier, rows, 30, bias)["heads.0.linear.bias"]
    p = earlier.predict(rows.columns)["kind"].detach()
    torch.manual_seed(2)
    drawn = torch.cat([torch.multinomial(row[None], 1)[0] for row in p])
    torch.testing.assert_close(found, (p - F.one_hot(drawn, 3)).square().mean(0))
    many = torch.stack([ewc.fisher(earlier, rows, 30, bias)["heads.0.linear.bias"] for _ in range(100)]).mean(0)
    torch.testing.assert_close(many, (p * (1 - p)).mean(0), rtol=0.1, atol=0.0)  # what it is expected to be


def test_consolidation_begins_where_it_pulls_to() -> None:
    task = built("ewc", NUMBERS)
    theirs = dict(past_of(NUMBERS).trained.objective.named_parameters())
    for name, own in task.own.items():
        assert torch.equal(own, theirs[name])
    assert task.pull().item() == 0
    with torch.no_grad():
        for own in task.own.values():
            own += 0.1
    fisher = sum(getattr(task, f"fisher_{i}").double().sum() for i in range(len(task.own)))
    assert task.pull().item() == pytest.approx(10 / 2 * 0.01 * fisher.item(), rel=1e-4)
    batch = batch_of(NUMBERS, 6)
    torch.testing.assert_close(task.losses(batch).total, task.inner.losses(batch).total + task.pull())


def test_two_earlier_models_pull_as_the_sum_of_both() -> None:
    task = built("ewc", NUMBERS, ewc__earlier=("a", "b"))
    once = built("ewc", NUMBERS)
    with torch.no_grad():
        for one, two in zip(once.own.values(), task.own.values(), strict=True):
            one += 0.1
            two.copy_(one)
    assert task.pull().item() == pytest.approx(2 * once.pull().item(), rel=0.5)  # labels are drawn anew
    a, b, x = (torch.randn(50) for _ in range(3))
    f, g = torch.rand(50), torch.rand(50)
    anchor = torch.lerp(a, b, g / (f + g))
    rest = (f * g / (f + g) * (a - b).square()).sum()
    both = (f * (x - a).square() + g * (x - b).square()).sum()
    torch.testing.assert_close(((f + g) * (x - anchor).square()).sum() + rest, both)


def test_only_the_body_is_held_where_targets_differ() -> None:
    other = Field(name="kind", kind="category", classes=("a", "b", "c"), counts=(5, 5, 5))
    spec = DataSpec(inputs=NUMBERS.inputs, targets=(other, SEASON), rows=40)
    wrapper = ewc.EWC(ewc.Config(rows=4), built("supervised", spec))
    wrapper.hold(past_of(NUMBERS).trained, past_of(NUMBERS).store, spec)
    held = {name for i, name in enumerate(wrapper.own) if getattr(wrapper, f"fisher_{i}").any()}
    assert held and all(name.startswith("model.") for name in held)


def test_replayed_rows_are_learned_with_the_new_ones() -> None:
    task, batch = built("replay", NUMBERS, replay__share=0.25), batch_of(NUMBERS, 12)
    torch.manual_seed(1)
    found = task.losses(batch)
    torch.manual_seed(1)
    chosen = torch.randint(8, (4,))
    old = past_of(NUMBERS).store.gather(torch.arange(8) * 30 // 8)
    both = {key: torch.cat([batch[key], old[key][chosen]]) for key in batch}
    torch.testing.assert_close(found.total, task.inner.losses(both).total)
    assert found.weight == 16


def test_distillation_is_the_formula_of_hinton() -> None:
    task, batch = built("distill", NUMBERS, distill__features=0.5), batch_of(NUMBERS, 9)
    teacher = task._teacher[0]
    ours, theirs, costs = log_p(task.inner, batch), log_p(teacher, batch), []
    for name in ("kind", "season"):
        p, q = (np.exp(v[name] / 4) / np.exp(v[name] / 4).sum(1, keepdims=True) for v in (theirs, ours))
        costs.append(16 * (p * np.log(p / q)).sum(1).mean())
    hint = (task.projection(task.model(batch).pooled) - teacher.model(batch).pooled).square().mean().item()
    expected = 0.1 * task.inner.losses(batch).total.item() + 0.9 * np.mean(costs) + 0.5 * hint
    assert task.losses(batch).total.item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_is_neither_trained_nor_stored() -> None:
    task = built("distill", NUMBERS)
    teacher = task._teacher[0]
    own = {id(p) for p in task.parameters()}
    assert not own & {id(p) for p in teacher.parameters()}
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    Stepper(task.train(), Plan(), CPU)(0, 0.0, 0.1, [batch_of(NUMBERS, 8)])
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items()) and not teacher.training
    assert len(task.kept().state_dict()) == len(teacher.state_dict())


def test_a_teacher_with_its_classes_in_another_order_says_the_same() -> None:
    turned = Field(name="kind", kind="category", classes=("boot", "coat", "sandal"), counts=(1, 1, 1))
    from fathom.wrappers._teacher import class_order

    trained = past_of(DataSpec(inputs=NUMBERS.inputs, targets=(turned,), rows=40)).trained
    assert class_order(KIND, trained) == [1, 2, 0]
    with pytest.raises(ConfigError, match="does not predict 'season'"):
        class_order(SEASON, trained)
    with pytest.raises(ConfigError, match="'hat' is not common"):
        class_order(Field(name="kind", kind="category", classes=("hat", "coat", "boot")), trained)


TABLE = {  # (a, b) -> a and b, a or b, a -> b
    "product": lambda a, b: (a * b, a + b - a * b, 1 - a + a * b),
    "lukasiewicz": lambda a, b: (max(0, a + b - 1), min(1, a + b), min(1, 1 - a + b)),
    "godel": lambda a, b: (min(a, b), max(a, b), max(1 - a, b)),
}


@pytest.mark.parametrize("logic", list(TABLE))
def test_truth_is_that_of_the_textbook(logic: str) -> None:
    for a, b in ((0.3, 0.9), (0.8, 0.6), (0.0, 1.0), (1.0, 1.0)):
        of = {("kind", 0): torch.tensor(a), ("season", 0): torch.tensor(b)}
        for text, expected in zip(
            ("coat and winter", "coat or winter", "coat -> winter"), TABLE[logic](a, b), strict=True
        ):
            found = truth(parse(text, (KIND, SEASON)), logic, lambda atom, of=of: of[atom.target, atom.code])
            assert found.item() == pytest.approx(expected, abs=1e-6)


def test_semantic_loss_is_the_probability_of_the_worlds_that_keep_the_rules() -> None:
    task, batch = built("rules", NUMBERS), batch_of(NUMBERS, 7)
    p = {name: values.detach().double().numpy() for name, values in task.inner.predict(batch).items()}
    kept = np.zeros(7)
    for i, kind in enumerate(KIND.classes):
        for j, season in enumerate(SEASON.classes):
            if (kind != "coat" or season == "winter") and (kind != "sandal" or season != "winter"):
                kept += p["kind"][:, i] * p["season"][:, j]
    expected = task.inner.losses(batch).total.item() - np.log(kept).mean()
    assert task.losses(batch).total.item() == pytest.approx(expected, rel=1e-5)
    broken = [
        (k == 0 and s == 1) or (k == 1 and s == 0)
        for k, s in zip(p["kind"].argmax(1), p["season"].argmax(1), strict=True)
    ]
    np.testing.assert_array_equal(task.metrics(batch)["broken"].detach().numpy(), broken)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("coat => !sandal & boot", "coat -> ((not sandal) and boot)"),
        ("kind=coat ∧ season='winter' | boot", '(coat and "winter") or boot'),
        ("coat -> winter -> boot", "coat -> (winter -> boot)"),
        ("coat<->winter", "coat <=> winter"),
        ("not not coat", "not (not (coat))"),
    ],
)
def test_rules_are_read_by_their_signs(text: str, same: str) -> None:
    assert parse(text, (KIND, SEASON)) == parse(same, (KIND, SEASON))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat -> winter", "no such class. Did you mean 'coat'"),
        ("sort=coat", "no such target with classes"),
        ("kind=winter", "no such class of 'kind'"),
        ("coat ->", "at its end"),
        ("coat winter", "at 'winter'"),
        ("(coat", "')' is expected"),
        ("", "at its end"),
        ("not", "at its end"),
        ("(" * 80 + "coat" + ")" * 80, "more than 50"),
    ],
)
def test_rules_that_cannot_be_read_say_where(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, (KIND, SEASON))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("rules", {"rules__rules": ("coat", "not coat")}, "contradict"),
        ("rules", {"rules__rules": ("coat -> not coat or coat",)}, "hold whatever is answered"),
        ("rules", {"rules__rules": ()}, "needs rules"),
        ("mixup", {"mixup__alpha": 0.0}, "above 0"),
        ("cutmix", {}, "needs images"),
        ("distill", {"distill__teacher": ""}, "needs a teacher"),
        ("distill", {"distill__share": 2.0}, "share from 0 to 1"),
        ("replay", {"replay__share": 1.0}, "between 0 and 1"),
        ("ewc", {"ewc__data": ("a", "b")}, "2 sources for 1"),
        ("pgd", {"pgd__steps": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(name: str, options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        built(name, NUMBERS, **options)


def test_mixup_is_refused_around_what_does_not_learn_from_mixtures() -> None:
    task = built("supervised", NUMBERS)
    task.soft_targets = False
    assert "mixed targets" in mixup.needs(task)


def test_the_small_model_is_as_written() -> None:
    assert Small(NUMBERS)(batch_of(NUMBERS, 3)).pooled.shape == (3, 5)
