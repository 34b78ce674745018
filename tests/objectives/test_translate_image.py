"""From image to image: measures against scikit-image, losses against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.layers.deceive import judged
from fathom.layers.likeness import psnr, ssim
from fathom.layers.spoil import LUMA, spoiled
from fathom.models import lenet, unet
from fathom.objectives import translate_image
from fathom.objectives.translate_image import Config
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed

GREY = Field(name="image", kind="image", shape=(1, 12, 12), stats=Stats(mean=(100.0,), std=(50.0,)))
COLOUR = Field(name="image", kind="image", shape=(3, 12, 12), stats=Stats(mean=(100.0,) * 3, std=(50.0,) * 3))


def objective(field=GREY, seed=0, block="residual", **options):
    torch.manual_seed(seed)
    spec = DataSpec(inputs=(field,), rows=40)
    attention = () if block == "plain" else (-1,)
    config = unet.Config(widths=(4, 8), groups=4, block=block, attention=attention)
    return translate_image.build(Config(**options), spec, unet.build(config, spec)), batch_of(spec, 6)


def wake(task) -> None:
    """A residual network begins as nothing; give what it adds some weight."""
    nn.init.normal_(task.model.leave.weight, std=0.1)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 30), (1, 9, 8)])
def test_likeness_is_measured_as_scikit_image_does(shape):
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    wanted = random.random((4, *shape)).cumsum(3) / shape[2]
    made = (wanted + 0.1 * random.normal(size=wanted.shape)).clip(0, 1)
    found = psnr(torch.tensor(made), torch.tensor(wanted)), ssim(torch.tensor(made), torch.tensor(wanted))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    if min(shape[1:]) < 11:
        options["truncate"] = 2.2  # a window of seven pixels
    for row in range(4):
        expected = metrics.peak_signal_noise_ratio(wanted[row], made[row], data_range=1)
        assert found[0][row].item() == pytest.approx(expected, rel=1e-5)
        if min(shape[1:]) < 11:
            continue
        expected = metrics.structural_similarity(wanted[row], made[row], channel_axis=0, data_range=1, **options)
        assert found[1][row].item() == pytest.approx(expected, rel=1e-4)
    assert ssim(torch.tensor(wanted), torch.tensor(wanted)).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert psnr(torch.tensor(wanted), torch.tensor(wanted)).tolist() == [100.0] * 4


def test_images_are_spoiled_as_said():
    torch.manual_seed(0)
    image = torch.rand(500, 3, 12, 12) * 2 - 1
    small = image.double().numpy().reshape(500, 3, 6, 2, 6, 2).mean((3, 5))
    shrunk = spoiled(image, "upscale", factor=2)
    assert shrunk.shape == image.shape
    flat = spoiled(torch.full((1, 3, 12, 12), 0.25), "upscale", factor=3)
    torch.testing.assert_close(flat, torch.full((1, 3, 12, 12), 0.25))
    expected = torch.nn.functional.interpolate(torch.tensor(small), scale_factor=2, mode="bicubic").float()
    torch.testing.assert_close(shrunk, expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert (spoiled(image, "denoise", noise=0.1) - image).std().item() == pytest.approx(0.2, rel=0.02)
    grey = spoiled(image, "colourise")
    np.testing.assert_allclose(grey[:, 1], np.einsum("bchw,c->bhw", image, LUMA), atol=1e-6)
    holed = spoiled(image, "inpaint", hole=0.5)
    gone = (holed != image).any(1)
    assert (holed[:, 0][gone] == 0).all() and 4 < gone.sum((1, 2)).float().mean() < 36
    assert torch.equal(spoiled(image, "keep"), image)


@pytest.mark.parametrize("pixels", ["absolute", "squared"])
def test_the_loss_is_the_error_of_pixels_and_what_the_judge_says(pixels):
    task, batch = objective(pixels=pixels, adversarial=0.1, pixel_weight=2.0)
    wake(task)
    task.eval()
    made, wanted = (x.detach() for x in task.pair(batch))
    torch.testing.assert_close(wanted, batch["image:image"].float() / 127.5 - 1)
    error = (made - wanted).double().numpy()
    error = np.abs(error).mean() if pixels == "absolute" else (error**2).mean()
    scores = task.judge(made), task.judge(wanted)
    loss = task.losses(batch, "main")
    assert loss.total.item() == pytest.approx(2 * error - 0.1 * scores[0].mean().item(), rel=1e-4)
    loss = task.losses(batch, "judge")
    torch.testing.assert_close(loss.total, judged(scores[1], scores[0], "hinge").mean())


def test_an_untrained_network_gives_back_what_it_is_given():
    for block in ("residual", "plain"):
        task, batch = objective(block=block)
        measures = task.eval().metrics(batch)
        torch.testing.assert_close(measures["psnr"], measures["psnr_before"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(task.translated(batch), batch["image:image"].float() / 255, rtol=1e-4, atol=1e-5)


def test_gradients_are_right_to_the_last_digit():
    task, batch = objective(pixels="squared")
    wake(task)
    task = task.double()

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.task = task

        def forward(self):
            return task.losses(batch).total

    names = ("model.leave.weight", "model.enter.bias")
    values = [task.get_parameter(name) for name in names]

    def loss(*given):
        return torch.func.functional_call(Loss(), dict(zip((f"task.{n}" for n in names), given, strict=True)), ())

    assert torch.autograd.gradcheck(loss, values)


@pytest.mark.parametrize("phase", ["judge", "main"])
def test_a_phase_gives_the_other_network_no_gradient(phase):
    task, batch = objective(adversarial=0.1)
    turn = {phase.name: phase for phase in task.phases()}[phase]
    task.losses(batch, phase).total.backward(inputs=list(turn.parameters))
    mine = {id(p) for p in turn.parameters}
    everything = {id(p) for phase in task.phases() for p in phase.parameters}
    assert everything == {id(p) for p in task.parameters()}
    assert any(p.grad is not None for p in turn.parameters)
    assert all(p.grad is None for p in task.parameters() if id(p) not in mine)


@pytest.mark.parametrize("what", ["denoise", "inpaint"])
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(what, tmp_path):
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", accumulate=2)
    spec = DataSpec(inputs=(GREY,), rows=24)
    data = TrainingData(train=TensorStore(batch_of(spec, 24)), valid=TensorStore(batch_of(spec, 8, seed=1)))
    ends = whole_and_resumed(
        lambda **seed: objective(what=what, adversarial=0.1, **seed)[0], data, plan, tmp_path, after=2
    )
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


@pytest.mark.parametrize(("what", "field"), [("upscale", GREY), ("denoise", GREY), ("colourise", COLOUR)])
def test_mended_images_are_nearer_to_what_they_were(what, field):
    """Stripes whose place and width differ, red where there is colour."""
    random = torch.Generator().manual_seed(0)
    place = torch.rand(200, 1, 1, 1, generator=random) * 6
    wave = ((torch.arange(12.0).view(1, 1, 1, 12) + place) * 2.2).sin().expand(200, field.shape[0], 12, 12)
    tint = torch.tensor([1.0, 0.3, 0.1]).view(1, 3, 1, 1) if field is COLOUR else 1.0
    store = TensorStore({"image:image": ((wave * tint + 1) * 127.5).to(torch.uint8)})
    task, _ = objective(field, what=what)
    plan = Plan(epochs=12, batch_size=20, learning_rate=5e-3, threads=1, precision="fp32", keep="last")
    for _ in train(task, TrainingData(train=store), plan):
        pass
    with torch.no_grad():
        measures = task.eval().metrics(store.columns)
    assert measures["psnr"].mean() > measures["psnr_before"].mean() + 2
    assert [tuple(value.shape) for value in task.show(store.columns).values()] == [(8, field.shape[0], 36, 12)]


def test_what_cannot_be_is_said_in_a_sentence():
    with pytest.raises(ConfigError, match="have 1 channel"):
        objective(what="colourise")
    with pytest.raises(ConfigError, match=r"objective\.factor"):
        objective(factor=1)
    image = Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(100.0,), std=(50.0,)))
    label = Field(name="y", kind="category", classes=("a", "b"))
    spec = DataSpec(inputs=(image,), targets=(label,), rows=8)
    with pytest.raises(ConfigError, match="every pixel, such as unet"):
        translate_image.build(Config(), spec, lenet.build(lenet.Config(), spec))
