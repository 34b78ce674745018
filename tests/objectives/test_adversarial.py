"""Generative adversarial learning against the papers' formulas written out in numpy."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Features, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from fathom.layers.deceive import deceived, energy_distance, judged, slopes
from fathom.models import dcgan, lenet, resnet_gan
from fathom.objectives import adversarial
from fathom.objectives.adversarial import Config
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed

IMAGE = Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
LABEL = Field(name="label", kind="category", classes=("a", "b", "c"), counts=(8, 8, 8))
TOLD = DataSpec(inputs=(IMAGE,), targets=(LABEL,), rows=40)
UNTOLD = DataSpec(inputs=(IMAGE,), rows=40)


class Plain(nn.Module):
    """A linear generator and a linear judge, whose slope is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.classes, self.width = 3, 0, 4
        self.generator, self.judge = nn.Linear(3, 64), nn.Linear(64, 1)

    def forward(self, batch):
        return Features(pooled=torch.zeros(len(batch["image:image"]), 4))

    def generate(self, noise, label=None):
        return self.generator(noise).tanh().view(-1, 1, 8, 8)

    def criticise(self, image, label=None):
        return self.judge(image.flatten(1)).squeeze(1)


def plain(**options):
    torch.manual_seed(0)
    return adversarial.build(Config(**options), UNTOLD, Plain()), batch_of(UNTOLD, 6)


def network(spec=TOLD, seed=0, **options):
    torch.manual_seed(seed)
    config = resnet_gan.Config(noise=4, width=4, judge_width=4, spectral=options.get("kind") != "wasserstein")
    return adversarial.build(Config(**options), spec, resnet_gan.build(config, spec))


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "wasserstein"])
def test_both_losses_are_those_of_the_papers(kind):
    random = np.random.default_rng(0)
    real, made = random.normal(size=50), 2 * random.normal(size=50)

    def chance(score):
        return 1 / (1 + np.exp(-score))

    if kind == "non_saturating":
        judge, generator = -np.log(chance(real)) - np.log(1 - chance(made)), -np.log(chance(made))
    elif kind == "hinge":
        judge, generator = np.maximum(0, 1 - real) + np.maximum(0, 1 + made), -made
    else:
        judge, generator = made - real, -made
    np.testing.assert_allclose(judged(torch.tensor(real), torch.tensor(made), kind), judge)
    np.testing.assert_allclose(deceived(torch.tensor(made), kind), generator)


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "wasserstein"])
def test_each_phase_costs_what_its_formula_says_of_a_linear_pair(kind):
    task, batch = plain(kind=kind, flat=0.5)
    weight, bias = task.model.judge.weight.detach().double().numpy()[0], task.model.judge.bias.item()
    enter = task.model.generator
    torch.manual_seed(5)
    noise = torch.randn(6, 3).double().numpy()
    made = np.tanh(noise @ enter.weight.detach().double().numpy().T + enter.bias.detach().double().numpy())
    image = batch["image:image"].double().flatten(1).numpy() / 127.5 - 1
    of_real, of_made = (torch.tensor(x @ weight + bias) for x in (image, made))
    length = np.linalg.norm(weight)
    expected = judged(of_real, of_made, kind).mean() + 0.25 * length**2
    if kind == "wasserstein":
        expected += 10 * (length - 1) ** 2
    torch.manual_seed(5)
    loss = task.losses(batch, "judge")
    assert loss.total.item() == pytest.approx(float(expected), rel=1e-5)
    assert loss.parts["real"].item() == pytest.approx(float(of_real.mean()), rel=1e-4)
    torch.manual_seed(5)
    loss = task.losses(batch, "generator")
    assert loss.total.item() == pytest.approx(float(deceived(of_made, kind).mean()), rel=1e-5)


def test_slopes_are_the_lengths_of_numerical_gradients():
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    image = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    found, step = slopes(lambda x: judge(x).squeeze(1), image), 1e-6
    expected = torch.zeros(4, 12, dtype=torch.float64)
    for pixel in range(12):
        moved = torch.zeros(12, dtype=torch.float64).index_fill_(0, torch.tensor([pixel]), step).view(3, 2, 2)
        expected[:, pixel] = ((judge(image + moved) - judge(image - moved)) / (2 * step)).squeeze(1).detach()
    torch.testing.assert_close(found.detach(), expected.norm(dim=1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "wasserstein"])
@pytest.mark.parametrize("phase", ["judge", "generator"])
def test_gradients_are_right_to_the_last_digit(kind, phase):
    task, batch = plain(kind=kind, flat=0.1)
    task.double()
    names, values = zip(*((n, p) for n, p in task.named_parameters() if n.startswith(f"model.{phase}")), strict=True)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.task = task

        def forward(self):
            return task.losses(batch, phase).total

    def loss(*given):
        torch.manual_seed(0)
        return torch.func.functional_call(Loss(), dict(zip((f"task.{n}" for n in names), given, strict=True)), ())

    assert torch.autograd.gradcheck(loss, values)


def test_the_energy_distance_is_that_of_scipys_distances_and_sees_collapse():
    random = np.random.default_rng(0)
    real, made = random.normal(size=(40, 1, 3, 3)), random.normal(size=(30, 1, 3, 3)) + 0.5
    x, y = real.reshape(40, 9), made.reshape(30, 9)
    rows = ~np.eye(40, dtype=bool), ~np.eye(30, dtype=bool)
    expected = (2 * cdist(x, y).mean() - cdist(x, x)[rows[0]].mean() - cdist(y, y)[rows[1]].mean()) / 3
    found = energy_distance(torch.tensor(real), torch.tensor(made))
    assert found.shape == (40,) and found.mean().item() == pytest.approx(expected, rel=1e-4)
    torch.manual_seed(0)
    one, other = torch.randn(2000, 4), torch.randn(2000, 4)
    assert abs(energy_distance(one, other).mean()) < 5e-3
    assert energy_distance(one, other[:1].expand(2000, -1)).mean() > 0.3  # good images, but all alike


@pytest.mark.parametrize("kind", ["hinge", "wasserstein"])
def test_each_phase_moves_its_own_network_and_the_generator_waits_for_its_turn(kind):
    task, batch = network(kind=kind, judge_steps=3), batch_of(TOLD, 8)
    stepper = Stepper(task, Plan(learning_rate=1e-2, batch_size=8), torch.device("cpu"))
    for step in range(4):
        before = {name: p.detach().clone() for name, p in task.named_parameters()}
        stepper(step, 0.5, 1e-2, [batch])
        moved = {name.split(".")[1] for name, p in task.named_parameters() if not torch.equal(before[name], p)}
        assert "judge" in moved and ("generator" in moved) == (step % 3 == 0)
        if "generator" not in moved:
            assert all(p.grad is None or n.startswith("model.judge") or step for n, p in task.named_parameters())


@pytest.mark.parametrize("phase", ["judge", "generator"])
def test_a_phase_gives_the_other_network_no_gradient(phase):
    task, batch = network(), batch_of(TOLD, 8)
    turn = {phase.name: phase for phase in task.phases()}[phase]
    task.losses(batch, phase).total.backward(inputs=list(turn.parameters))
    mine = {id(p) for p in turn.parameters}
    assert all(p.grad is not None for p in turn.parameters)
    assert all(p.grad is None for p in task.parameters() if id(p) not in mine)


def test_images_are_made_by_the_average_of_the_generators():
    task, batch = network(average=0.5), batch_of(TOLD, 8)
    expected = [p.detach().clone() for p in task.smooth.parameters()]
    stepper = Stepper(task, Plan(learning_rate=1e-2, batch_size=8), torch.device("cpu"))
    for step in range(3):
        stepper(step, 1.0, 1e-2, [batch])
        live = list(task.model.generator.parameters())
        expected = [0.5 * old + 0.5 * new.detach() for old, new in zip(expected, live, strict=True)]
    for old, new in zip(task.smooth.parameters(), expected, strict=True):
        torch.testing.assert_close(old, new)
    task.eval()
    made = task.sample(4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        label = torch.tensor([0, 1, 2, 0])
        torch.testing.assert_close(made, task.smooth(noise, label) / 2 + 0.5)
        assert not torch.allclose(made, task.model.generator(noise, label) / 2 + 0.5)


def test_classes_can_be_asked_for_where_they_were_told():
    task = network().eval()
    nn.init.normal_(task.smooth.blocks[0].norm_out.shift)
    label = torch.tensor([2, 2])
    made, again, others = (
        task.sample(2, torch.Generator().manual_seed(3), label=given) for given in (label, label, label - 1)
    )
    assert made.shape == (2, 1, 8, 8) and torch.equal(made, again) and not torch.equal(made, others)
    with pytest.raises(ConfigError, match="not told classes"):
        network(UNTOLD).sample(2, torch.Generator(), label=label)


@pytest.mark.parametrize("kind", ["hinge", "wasserstein"])
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(kind, tmp_path):
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", accumulate=2, keep="last")
    data = TrainingData(train=TensorStore(batch_of(TOLD, 24)), valid=TensorStore(batch_of(TOLD, 16, seed=1)))
    ends = whole_and_resumed(partial(network, kind=kind, judge_steps=2), data, plan, tmp_path, after=2)
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


def test_it_learns_what_images_look_like():
    """Images of one brightness each, dark to light by class: after a short run, so are those made."""
    random = torch.Generator().manual_seed(0)
    label = torch.randint(3, (240,), generator=random)
    image = (40 + 80 * label[:, None, None, None] + 5 * torch.randn(240, 1, 8, 8, generator=random)).clamp(0, 255)
    store = TensorStore({"image:image": image.to(torch.uint8), "target:label": label})
    torch.manual_seed(0)
    config = resnet_gan.Config(noise=4, width=8, judge_width=8)
    task = adversarial.build(Config(kind="hinge", average=0.9), TOLD, resnet_gan.build(config, TOLD))
    plan = Plan(epochs=30, batch_size=24, learning_rate=2e-3, beta1=0.0, threads=1, precision="fp32", keep="last")
    before = task.eval().metrics(store.columns)["distance"].mean()
    for _ in train(task, TrainingData(train=store), plan):
        pass
    made = task.eval().sample(30, torch.Generator().manual_seed(0)).mean((1, 2, 3)) * 255
    assert task.metrics(store.columns)["distance"].mean() < 0.3 * before
    light = [made[code::3].mean().item() for code in range(3)]
    assert light == sorted(light) and light[2] - light[0] > 80  # of 160


def test_what_cannot_be_is_said_in_a_sentence():
    assert "such as dcgan" in adversarial.needs(lenet.build(lenet.Config(), _lenet()))
    large = DataSpec(inputs=(Field(name="image", kind="image", shape=(1, 16, 16)),), rows=40)
    model = dcgan.build(dcgan.Config(width=2), large)
    with pytest.raises(ConfigError, match="normalises over the batch"):
        adversarial.build(Config(kind="wasserstein"), UNTOLD, model)
    price = Field(name="price", kind="number")
    assert "'price' is number" in adversarial.accepts(DataSpec(inputs=(IMAGE,), targets=(price,), rows=4))
    with pytest.raises(ConfigError, match=r"objective\.average"):
        adversarial.build(Config(average=1.0), UNTOLD, model)
    assert adversarial.suggests(TOLD) == "resnet_gan" and adversarial.suggests(UNTOLD) == "dcgan"


def _lenet() -> DataSpec:
    image = Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(100.0,), std=(50.0,)))
    return DataSpec(inputs=(image,), targets=(LABEL,), rows=8)
