"""Autoencoding against torch.distributions and the papers' formulas written out in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributions

from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.layers.likelihood import corrupted
from fathom.layers.quantise import Quantiser
from fathom.models import autoencoder, lenet
from fathom.objectives import autoencode
from fathom.objectives.autoencode import Config, largest
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed

IMAGE = Field(name="photo", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
TABLE = (
    Field(name="size", kind="number"),
    Field(name="weight", kind="number"),
    Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
)
TEXT = Field(name="title", kind="text", shape=(5,), vocabulary=12)


def objective(*fields: Field, variational: bool = False, code: int = 6, seed: int = 0, **options):
    torch.manual_seed(seed)
    spec = DataSpec(inputs=fields, rows=64)
    config = autoencoder.Config(code=code, hidden=(8,), widths=(4,), text_size=4, variational=variational)
    task = autoencode.build(Config(**options), spec, autoencoder.build(config, spec))
    return task.eval(), batch_of(spec, 6)


def test_the_cost_of_every_kind_of_column_is_its_negative_log_likelihood():
    task, batch = objective(IMAGE, *TABLE, TEXT, variational=True)
    torch.nn.init.constant_(task.likelihood.spreads["number"], 0.3)
    torch.nn.init.constant_(task.likelihood.spreads["image:photo"], -0.2)
    code = torch.randn(6, 6)
    given = task.model.decode(code)
    numbers = distributions.Normal(given["number"], np.exp(0.3)).log_prob(batch["number"]).sum(1)
    image = (batch["image:photo"].float() - 100) / 50
    pixels = distributions.Normal(given["image:photo"], np.exp(-0.2)).log_prob(image).sum((1, 2, 3))
    classes = distributions.Categorical(logits=given["category"]).log_prob(batch["category"]).sum(1)
    tokens = distributions.Categorical(logits=given["text:title"]).log_prob(batch["text:title"])
    tokens = (tokens * (batch["text:title"] != 0)).sum(1)
    torch.testing.assert_close(task._cost(batch, code), -(numbers + pixels + classes + tokens))


def test_pixels_may_be_probabilities():
    task, batch = objective(IMAGE, variational=True, pixels="bernoulli")
    code = torch.randn(6, 6)
    light, logits = batch["image:photo"].double().numpy() / 255, task.model.decode(code)["image:photo"].detach().numpy()
    chance = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -(light * np.log(chance) + (1 - light) * np.log(1 - chance)).sum((1, 2, 3))
    np.testing.assert_allclose(task._cost(batch, code).detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(task.pictures(code)["photo"].detach(), chance, rtol=1e-5)


def test_what_is_reported_is_the_evidence_lower_bound_and_what_is_learned_weighs_the_divergence_by_beta():
    task, batch = objective(*TABLE, variational=True, beta=4.0)
    torch.manual_seed(3)
    found = task.metrics(batch)
    mean, log_variance = task.model.encode(batch).chunk(2, dim=1)
    chance = distributions.Normal(mean, (0.5 * log_variance).exp())
    divergence = distributions.kl_divergence(chance, distributions.Normal(0.0, 1.0)).sum(1)
    torch.manual_seed(3)
    drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    expected = task._cost(batch, drawn)
    torch.testing.assert_close(found["divergence"], divergence)
    torch.testing.assert_close(found["loss"], expected + divergence)
    torch.manual_seed(3)
    loss = task.losses(batch)
    torch.testing.assert_close(loss.total, (expected + 4 * divergence).mean() / 3)  # two numbers and a class a row
    torch.testing.assert_close(loss.parts["divergence"], divergence.mean())


def test_the_bound_is_below_the_true_evidence_and_touches_it_where_the_code_is_the_true_posterior():
    """One number that is the code plus noise: a linear Gaussian model, whose evidence is known in closed form."""

    class Linear(torch.nn.Module):
        code, width, variational = 1, 1, True
        mean = log_variance = torch.zeros(1, 1)

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def encode(self, batch):
            share, ones = self.share, torch.ones_like(batch["number"])
            return torch.cat([share * batch["number"], self.spread * ones], dim=1)

        def decode(self, code):
            return {"number": code * self.weight}

        def wanted(self, batch):
            return {"number": batch["number"]}

    model = Linear()
    task = autoencode.build(Config(), DataSpec(inputs=TABLE[:1], rows=8), model)
    batch = {"number": torch.full((200_000, 1), 1.3)}
    evidence = distributions.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(1.3))
    for share, spread, gap in ((0.5, np.log(0.5), 0.0), (0.2, -2.0, None)):
        model.share, model.spread = share, spread
        torch.manual_seed(0)
        bound = -task.metrics(batch)["loss"].mean()
        if gap is None:
            assert bound < evidence - 0.1
        else:
            torch.testing.assert_close(bound, evidence, rtol=0, atol=5e-3)


def test_largest_keeps_the_largest_by_size():
    code = torch.tensor([[1.0, -5.0, 3.0, 0.5], [0.1, 0.2, -0.3, 0.4]], requires_grad=True)
    kept = largest(code, 2)
    torch.testing.assert_close(kept, torch.tensor([[0.0, -5.0, 3.0, 0.0], [0.0, 0.0, -0.3, 0.4]]))
    kept.sum().backward()
    assert code.grad.tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    task, batch = objective(IMAGE, kind="sparse", active=0.5)
    assert ((task.embed(batch) != 0).sum(1) == 3).all()


def test_damage_is_as_large_as_asked_and_the_whole_row_is_asked_for():
    spec = DataSpec(inputs=(IMAGE, *TABLE, TEXT))
    batch = batch_of(spec, 4_000)
    torch.manual_seed(0)
    erased = corrupted(batch, spec.inputs, 0.3, "erase")
    assert (erased["number"] == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert (erased["image:photo"] == 100).float().mean() == pytest.approx(0.3, abs=0.02)
    real = batch["category"] != 0
    assert (erased["category"] == 0)[real].float().mean() == pytest.approx(0.3, abs=0.03)
    real = batch["text:title"] != 0
    assert (erased["text:title"] == 1)[real].float().mean() == pytest.approx(0.3, abs=0.03)
    assert (erased["text:title"][~real] == 0).all()
    blurred = corrupted(batch, spec.inputs, 0.3, "blur")
    assert (blurred["image:photo"] - batch["image:photo"]).std() == pytest.approx(15, rel=0.02)
    assert (blurred["number"] - batch["number"]).std() == pytest.approx(0.3, rel=0.02)
    task, batch = objective(IMAGE, *TABLE, kind="denoising", noise=0.9)
    torch.manual_seed(1)
    loss = task.losses(batch)
    torch.manual_seed(1)
    code = task.model.encode(corrupted(batch, task.spec.inputs, 0.9, "erase"))
    torch.testing.assert_close(loss.parts["reconstruction"], task._cost(batch, code).mean())


def tallied(quantiser: Quantiser, *codes: torch.Tensor) -> None:
    """One step of training on micro-batches, with the engine's rule for averages."""
    for code in codes:
        quantiser(code)
    (average,) = quantiser.averages()
    for name in ("counts", "sums"):
        getattr(average.target, name).data.lerp_(getattr(average.source, name), 1 - average.decay)
    average.target.step.copy_(average.source.step)


def test_the_codebook_is_the_moving_average_of_the_codes_that_chose_each_vector():
    torch.manual_seed(0)
    quantiser, code = Quantiser(6, 2, 3, 0.9), torch.randn(40, 6)
    tallied(quantiser, code)
    counts, sums = quantiser.kept.counts.clone().numpy(), quantiser.kept.sums.clone().numpy()
    book, later = sums / counts[..., None], torch.randn(30, 6)
    for group in range(2):
        part = later[:, 3 * group : 3 * group + 3].numpy()
        nearest = ((part[:, None] - book[group]) ** 2).sum(2).argmin(1)
        assert (quantiser.choose(later)[:, group].numpy() == nearest).all()
        for entry in range(3):
            counts[group, entry] = 0.9 * counts[group, entry] + 0.1 * (nearest == entry).sum()
            sums[group, entry] = 0.9 * sums[group, entry] + 0.1 * part[nearest == entry].sum(0)
    tallied(quantiser, later)
    np.testing.assert_allclose(quantiser.kept.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(quantiser.codebook(), sums / counts[..., None], rtol=1e-3)


def test_micro_batches_see_one_codebook_and_move_it_as_the_whole_batch_would():
    ends = []
    for pieces in (1, 3):
        torch.manual_seed(0)
        quantiser, first, code = Quantiser(4, 2, 5, 0.8), torch.randn(12, 4), torch.randn(12, 4)
        tallied(quantiser, first)
        chosen = [quantiser.choose(piece) for piece in code.chunk(pieces)]
        tallied(quantiser, *code.chunk(pieces))
        ends.append((torch.cat(chosen), quantiser.codebook()))
    assert torch.equal(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1])


def test_the_gradient_passes_the_codebook_straight_and_the_commitment_pulls_the_code():
    torch.manual_seed(0)
    quantiser, code = Quantiser(4, 2, 5, 0.9).eval(), torch.randn(7, 4, requires_grad=True)
    nearest, far, chosen = quantiser(code)
    torch.testing.assert_close(nearest, quantiser.vectors(chosen))
    slope = torch.randn(7, 4)
    nearest.backward(slope, retain_graph=True)
    assert torch.equal(code.grad, slope)
    code.grad = None
    far.sum().backward()
    torch.testing.assert_close(code.grad, 2 * (code - quantiser.vectors(chosen)).detach())


@pytest.mark.parametrize("kind", ["plain", "sparse", "variational", "quantised"])
def test_gradients_are_right_to_the_last_digit(kind):
    task, batch = objective(*TABLE, variational=kind == "variational", kind=kind, groups=2, entries=4, beta=0.7)
    task.double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    names, values = zip(*((n, p) for n, p in task.named_parameters() if p.requires_grad), strict=True)

    def loss(*given):
        torch.manual_seed(0)
        return torch.func.functional_call(
            _Loss(task), dict(zip((f"task.{n}" for n in names), given, strict=True)), batch
        )

    if kind == "quantised":  # by definition the gradient is not that of the loss: that of the decoder alone is
        names, values = zip(
            *((n, v) for n, v in zip(names, values, strict=True) if "spread" in n or "widen" in n), strict=True
        )
    assert torch.autograd.gradcheck(loss, values)


class _Loss(torch.nn.Module):
    def __init__(self, task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch):
        return self.task.losses(batch).total


@pytest.mark.parametrize("kind", ["denoising", "variational", "quantised"])
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(kind, tmp_path):
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", accumulate=2)
    options = {"variational": kind == "variational", "kind": kind, "groups": 2, "entries": 4}
    spec = objective(*TABLE, **options)[0].spec
    data = TrainingData(train=TensorStore(batch_of(spec, 40)), valid=TensorStore(batch_of(spec, 16, seed=1)))
    ends = whole_and_resumed(lambda **seed: objective(*TABLE, **seed, **options)[0], data, plan, tmp_path, after=2)
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


def test_rows_unlike_the_others_cost_more():
    """Numbers that hang together, and rows in which they do not."""
    torch.manual_seed(0)
    hidden = torch.randn(512, 1)
    usual = {"number": torch.cat([hidden, -hidden], 1) + 0.1 * torch.randn(512, 2)}
    spec = DataSpec(inputs=TABLE[:2], rows=512)
    for variational in (False, True):
        config = autoencoder.Config(code=1, hidden=(8,), variational=variational)
        task = autoencode.build(Config(), spec, autoencoder.build(config, spec))
        plan = Plan(epochs=40, batch_size=64, learning_rate=1e-2, threads=1, precision="fp32", keep="last")
        for _ in train(task, TrainingData(train=TensorStore(usual)), plan):
            pass
        strange = {"number": torch.cat([hidden, hidden], 1)[hidden[:, 0].abs() > 1]}
        with torch.no_grad():
            fine, odd = task.eval().predict(usual)["anomaly"], task.predict(strange)["anomaly"]
        assert (odd[:, None] > fine).float().mean() > 0.95  # the area under the ROC curve


def test_pictures_are_made_and_shown_in_full_range():
    task, batch = objective(IMAGE, variational=True)
    draw = torch.Generator().manual_seed(1)
    made, again = task.sample(5, draw), task.sample(5, torch.Generator().manual_seed(1))
    assert made.shape == (5, 1, 8, 8) and torch.equal(made, again) and made.min() >= 0 and made.max() <= 1
    shown = task.show(batch)
    assert {name: tuple(value.shape) for name, value in shown.items()} == {
        "rows above their reconstructions": (6, 1, 16, 8),
        "from one row to the next": (48, 1, 8, 8),
        "made up": (16, 1, 8, 8),
    }
    between = task.interpolate(batch, 3)["photo"]
    torch.testing.assert_close(between[:, 0], task.pictures(task.embed(batch))["photo"])
    torch.testing.assert_close(between[:, 2], between[:, 0].roll(-1, 0))


def test_what_cannot_be_is_said_in_a_sentence():
    spec = DataSpec(inputs=(IMAGE,), rows=4)
    assert "such as autoencoder" in autoencode.needs(lenet.build(lenet.Config(), _labelled()))
    with pytest.raises(ConfigError, match=r"variational=true, or take the model vae"):
        objective(IMAGE, kind="variational")
    with pytest.raises(ConfigError, match=r"take the model autoencoder"):
        objective(IMAGE, kind="sparse", variational=True)
    with pytest.raises(ConfigError, match="does not divide the code of 6"):
        objective(IMAGE, kind="quantised", groups=4)
    with pytest.raises(ConfigError, match="no known law"):
        objective(IMAGE)[0].sample(1, torch.Generator())
    with pytest.raises(ConfigError, match=r"objective\.noise"):
        objective(IMAGE, noise=1.0)
    assert autoencode.accepts(replace(spec, inputs=(Field(name="g", kind="graph", shape=(2, 2, 2)),)))


def _labelled() -> DataSpec:
    image = Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(100.0,), std=(50.0,)))
    return DataSpec(inputs=(image,), targets=(Field(name="y", kind="category", classes=("a", "b")),), rows=8)
