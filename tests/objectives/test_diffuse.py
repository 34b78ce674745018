"""Diffusion against diffusers' schedulers, step for step, and the papers' formulas."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Features, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.layers.noising import Path
from fathom.models import dit, lenet, unet
from fathom.objectives import diffuse
from fathom.objectives.diffuse import Asked, Config
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed

IMAGE = Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
LABEL = Field(name="label", kind="category", classes=("a", "b", "c"), counts=(8, 8, 8))
TOLD = DataSpec(inputs=(IMAGE,), targets=(LABEL,), rows=40)
UNTOLD = DataSpec(inputs=(IMAGE,), rows=40)
SHAPE = (4, 1, 8, 8)
THEIRS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class Given(nn.Module):
    """A denoiser of one number: what it tells is a multiple of x, of the time, and of the class."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.classes, self.width = classes, 1
        self.weight = nn.Parameter(torch.tensor([0.3, 0.2, 0.1]))
        self.asked: list = []

    def forward(self, batch):
        return Features(pooled=torch.zeros(len(batch["image:image"]), 1))

    def denoise(self, x, time, label=None):
        self.asked.append((time, label))
        told = 0 if label is None else label[:, None, None, None] * self.weight[2]
        return x * self.weight[0] + self.weight[1] * time[:, None, None, None] / 1000 + told


def objective(spec=UNTOLD, classes=0, **options):
    return diffuse.build(Config(**options), spec, Given(classes)).eval()


def network(seed=0, spec=TOLD, **options):
    torch.manual_seed(seed)
    config = unet.Config(widths=(8, 8), groups=4)
    return diffuse.build(Config(**options), spec, unet.build(config, spec))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("learn", ["noise", "velocity"])
def test_noise_is_added_and_asked_for_as_diffusers_does(schedule, learn):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule=THEIRS[schedule])
    path = Path(schedule, learn)
    torch.manual_seed(0)
    image, noise, step = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0, 3, 500, 999])
    time = (step + 1) / 1000
    assert path.said(time).tolist() == step.tolist()
    torch.testing.assert_close(path.mix(image, noise, time), theirs.add_noise(image, noise, step))
    expected = noise if learn == "noise" else theirs.get_velocity(image, noise, step)
    torch.testing.assert_close(path.wanted(image, noise, time), expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("learn", ["noise", "velocity"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [1000, 50])
def test_steps_without_chance_are_those_of_ddim(schedule, learn, clip, steps):
    diffusers = pytest.importorskip("diffusers")
    asked = {"noise": "epsilon", "velocity": "v_prediction"}[learn]
    theirs = diffusers.DDIMScheduler(
        beta_schedule=THEIRS[schedule], prediction_type=asked, clip_sample=clip, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    path = Path(schedule, learn)
    torch.manual_seed(0)
    times = torch.linspace(1, 0, steps + 1)
    for index in (1, steps // 2, steps - 2, steps - 1):
        x, answer = torch.randn(SHAPE), torch.randn(SHAPE)
        time, then = (times[i].expand(4) for i in (index, index + 1))
        number = theirs.timesteps[index]
        assert path.said(time)[0] == number
        expected = theirs.step(answer, number, x, use_clipped_model_output=clip).prev_sample
        torch.testing.assert_close(path.step(x, answer, time, then, clip), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("learn", ["noise", "velocity"])
@pytest.mark.parametrize("steps", [1000, 50])
def test_steps_with_chance_are_those_of_ddpm(schedule, learn, steps):
    diffusers = pytest.importorskip("diffusers")
    asked = {"noise": "epsilon", "velocity": "v_prediction"}[learn]
    theirs = diffusers.DDPMScheduler(
        beta_schedule=THEIRS[schedule], prediction_type=asked, clip_sample=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    path = Path(schedule, learn)
    times = torch.linspace(1, 0, steps + 1)
    torch.manual_seed(0)
    for index in (1, steps // 2, steps - 2):
        x, answer = torch.randn(SHAPE), torch.randn(SHAPE)
        time, then = (times[i].expand(4) for i in (index, index + 1))
        expected = theirs.step(answer, theirs.timesteps[index], x, generator=torch.Generator().manual_seed(index))
        chance = torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))
        found = path.step(x, answer, time, then, clip=True, chance=chance)
        torch.testing.assert_close(found, expected.prev_sample, rtol=1e-3, atol=1e-4)


def test_steps_along_straight_lines_are_eulers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    path, times = Path("straight", "flow"), torch.linspace(1, 0, 11)
    torch.manual_seed(0)
    x = ours = torch.randn(SHAPE)
    for index, number in enumerate(theirs.timesteps):
        answer = torch.randn(SHAPE)
        time, then = times[index].expand(4), times[index + 1].expand(4)
        torch.testing.assert_close(path.said(time)[0], number)
        x = theirs.step(answer, number, x).prev_sample
        ours = path.step(ours, answer, time, then)
        torch.testing.assert_close(ours, x)
    image, noise, time = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.1, 0.5, 0.9, 1.0])
    share = time[:, None, None, None]
    torch.testing.assert_close(path.mix(image, noise, time), (1 - share) * image + share * noise)
    torch.testing.assert_close(path.wanted(image, noise, time), noise - image)


@pytest.mark.parametrize(("kind", "asked"), [("linear", "noise"), ("cosine", "velocity"), ("straight", "flow")])
def test_the_right_answer_gives_image_and_noise_back(kind, asked):
    path, time = Path(kind, asked), torch.tensor([0.001, 0.3, 0.5, 0.9])
    torch.manual_seed(0)
    image, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    x = path.mix(image, noise, time)
    for found, expected in zip(path.apart(x, path.wanted(image, noise, time), time), (image, noise), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learn", ["noise", "velocity", "flow"])
def test_the_loss_is_the_squared_error_at_times_drawn_evenly(learn):
    task, batch = objective(learn=learn, schedule="linear"), batch_of(UNTOLD, 5)
    image = batch["image:image"].double().numpy() / 127.5 - 1
    torch.manual_seed(4)
    chance, noise = torch.rand(5).double().numpy(), torch.randn(5, 1, 8, 8).double().numpy()
    if learn == "flow":
        signal, share, said = 1 - chance, chance, chance * 1000
    else:
        said = np.floor(chance * 1000)
        kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[said.astype(int)]
        signal, share = np.sqrt(kept), np.sqrt(1 - kept)
    signal, share = signal[:, None, None, None], share[:, None, None, None]
    answer = 0.3 * (signal * image + share * noise) + 0.2 * said[:, None, None, None] / 1000
    wanted = {"noise": noise, "velocity": signal * noise - share * image, "flow": noise - image}[learn]
    torch.manual_seed(4)
    assert task.losses(batch).total.item() == pytest.approx(((answer - wanted) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize("learn", ["noise", "velocity", "flow"])
def test_gradients_are_right_to_the_last_digit(learn):
    task, batch = objective(learn=learn).double(), batch_of(UNTOLD, 4)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.task = task

        def forward(self):
            return task.losses(batch).total

    def loss(weight):
        torch.manual_seed(0)
        return torch.func.functional_call(Loss(), {"task.model.weight": weight}, ())

    assert torch.autograd.gradcheck(loss, task.model.weight)


def test_some_classes_are_not_told_in_training_and_all_are_in_measuring():
    task, batch = objective(TOLD, 3, label_dropout=0.25), batch_of(TOLD, 4000)
    torch.manual_seed(0)
    task.losses(batch)
    label = task.model.asked[-1][1]
    untold = label == 3
    assert untold.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(label[~untold], batch["target:label"][~untold])
    times = task.metrics(batch)["loss"]
    assert times.shape == (4000,) and torch.equal(task.model.asked[-1][1], batch["target:label"])
    assert task.model.asked[-1][0].sort().values.tolist()[::400] == [100 * i for i in range(10)]


def test_guidance_goes_on_from_what_is_told_without_a_class_beyond_what_is_told_with_it():
    task = objective(TOLD, 3)
    x, time, label = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.7]), torch.tensor([0, 2])
    asked, none = Asked(label, None), Asked(torch.tensor([3, 3]), None)
    told, untold = task._answer(x, time, asked, 1.0), task._answer(x, time, none, 1.0)
    torch.testing.assert_close(task._answer(x, time, asked, 3.0), untold + 3 * (told - untold))
    torch.testing.assert_close(task._answer(x, time, asked, 0.0), untold)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("learn", ["noise", "velocity", "flow"])
def test_a_perfect_network_makes_images_of_the_law_it_knows(learn, sampler):
    """Of pixels that are independent normal numbers the best answer is known, and so is what must come out."""
    mean, std = 0.2, 0.3
    task = objective(learn=learn, sampler=sampler, steps=200, clip=False)

    def denoise(x, time, label=None):
        at = (time if learn == "flow" else time + 1) / 1000
        signal, share = task.path.at(at)
        gain = signal * std**2 / ((signal * std) ** 2 + share**2)
        image = mean + gain * (x - signal * mean)
        noise = (x - signal * image) / share
        return {"noise": noise, "velocity": signal * noise - share * image, "flow": noise - image}[learn]

    task.model.denoise = denoise
    made = task.sample(200, torch.Generator().manual_seed(0)) * 2 - 1
    assert made.mean().item() == pytest.approx(mean, abs=0.02)
    assert made.std().item() == pytest.approx(std, rel=0.06)


def test_images_are_the_same_for_the_same_seed_and_the_class_is_heard():
    task = network(steps=4)
    for parameter in task.parameters():  # blocks begin as nothing
        nn.init.normal_(parameter, std=0.1)
    task.eval()
    label = torch.tensor([1, 2])

    def made(seed, **options):
        return task.sample(2, torch.Generator().manual_seed(seed), **options)

    assert made(1).shape == (2, 1, 8, 8) and torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))
    assert torch.equal(made(1, label=label), made(1, label=label))
    assert not torch.equal(made(1, label=label), made(1, label=label - 1))
    assert torch.equal(made(1), made(1, label=torch.tensor([0, 1])))  # all classes in turn
    assert not torch.equal(made(1, steps=2), made(1)) and not torch.equal(made(1, guidance=4.0), made(1))
    shown = task.show(batch_of(TOLD, 9))
    assert [tuple(value.shape) for value in shown.values()] == [(16, 1, 8, 8), (8, 1, 24, 8)]
    assert all(value.min() >= 0 and value.max() <= 1 for value in shown.values())


@pytest.mark.parametrize("learn", ["velocity", "flow"])
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(learn, tmp_path):
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", accumulate=2, average=0.9)
    data = TrainingData(train=TensorStore(batch_of(TOLD, 24)), valid=TensorStore(batch_of(TOLD, 16, seed=1)))
    ends = whole_and_resumed(partial(network, learn=learn), data, plan, tmp_path, after=2)
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


@pytest.mark.parametrize("learn", ["velocity", "flow"])
def test_it_learns_what_images_of_each_class_look_like(learn):
    """Images of one brightness each, dark or light by class: after a short run, so are those made."""
    random = torch.Generator().manual_seed(0)
    label = torch.randint(3, (240,), generator=random)
    image = (40 + 80 * label[:, None, None, None] + 5 * torch.randn(240, 1, 8, 8, generator=random)).clamp(0, 255)
    store = TensorStore({"image:image": image.to(torch.uint8), "target:label": label})
    task = network(learn=learn)
    plan = Plan(epochs=15, batch_size=24, learning_rate=3e-3, threads=1, precision="fp32", keep="last", average=0.95)
    for _ in train(task, TrainingData(train=store), plan):
        pass
    made = task.eval().sample(30, torch.Generator().manual_seed(0), steps=20).mean((1, 2, 3)) * 255
    light = [made[code::3].mean().item() for code in range(3)]
    assert light == pytest.approx([40, 120, 200], abs=25)


def test_every_denoiser_serves_and_what_cannot_be_is_said_in_a_sentence():
    model = dit.build(dit.Config(width=8, depth=1, num_heads=2), TOLD)
    assert diffuse.build(Config(), TOLD, model).losses(batch_of(TOLD, 3)).total.isfinite()
    image = Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(100.0,), std=(50.0,)))
    other = lenet.build(lenet.Config(), DataSpec(inputs=(image,), targets=(LABEL,), rows=8))
    assert "such as unet or dit" in diffuse.needs(other)
    with pytest.raises(ConfigError, match="expected 1 to 1,000"):
        diffuse.build(Config(steps=1001), TOLD, model)
    with pytest.raises(ConfigError, match="not told classes"):
        objective().sample(1, torch.Generator(), label=torch.tensor([1]))
    two = (LABEL, Field(name="other", kind="category", classes=("x", "y")))
    assert "2 targets" in diffuse.accepts(DataSpec(inputs=(IMAGE,), targets=two, rows=4))
