"""Images mended and restyled: networks learn from the left halves of photographs, and are judged by the right ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fathom.core.past import Trained
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.models import edsr, resnet, unet
from fathom.objectives import supervised, translate_image
from fathom.wrappers import perceive

photographs = pytest.importorskip("skimage.data")

SIDE = 16
NAMES = ("astronaut", "coffee")
FIELD = Field(name="image", kind="image", shape=(3, SIDE, SIDE), stats=Stats(mean=(110.0,) * 3, std=(60.0,) * 3))
SPEC = DataSpec(inputs=(FIELD,), rows=240)
LABEL = Field(name="kind", kind="category", classes=NAMES, counts=(120, 120))


def halved(name: str) -> np.ndarray:
    """Return a photograph in half its size, so that it is sharp to the pixel: [H, W, 3] uint8."""
    large = Image.fromarray(getattr(photographs, name)())
    return np.asarray(large.resize((large.width // 2, large.height // 2), Image.Resampling.LANCZOS))


def pieces(right: bool = False, count: int = 240) -> torch.Tensor:
    """Return pieces of two photographs' left or right halves, as many of each, [N, 3, H, W] uint8."""
    draw, found = np.random.default_rng(0), []
    for name in NAMES:
        whole = halved(name)
        image = whole[:, whole.shape[1] // 2 :] if right else whole[:, : whole.shape[1] // 2]
        for _ in range(count // len(NAMES)):
            top, left = (int(draw.integers(length - SIDE + 1)) for length in image.shape[:2])
            found.append(image[top : top + SIDE, left : left + SIDE])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def learn(task, columns: dict[str, torch.Tensor], epochs: int, rate: float = 3e-3) -> None:
    plan = Plan(epochs=epochs, batch_size=16, learning_rate=rate, threads=1, precision="fp32", keep="last")
    for _ in train(task, TrainingData(train=TensorStore(columns)), plan):
        pass
    task.eval()


def mender(model: str = "unet", **options):
    torch.manual_seed(0)
    if model == "unet":
        network = unet.build(unet.Config(widths=(16, 16), groups=4, attention=()), SPEC)
    else:
        network = edsr.build(edsr.Config(width=16, depth=2), SPEC)
    return translate_image.build(translate_image.Config(**options), SPEC, network)


@pytest.mark.parametrize(
    ("model", "what", "epochs", "gain"),
    [
        ("unet", "upscale", 12, 0.2),
        ("unet", "denoise", 4, 4.0),
        ("unet", "colourise", 5, 1.5),
        ("edsr", "upscale", 16, 0.4),
        ("edsr", "denoise", 12, 4.0),
    ],
)
def test_what_was_never_seen_of_photographs_is_mended(model: str, what: str, epochs: int, gain: float) -> None:
    task = mender(model, what=what)
    learn(task, {FIELD.key: pieces()}, epochs)
    with torch.no_grad():
        found = task.metrics({FIELD.key: pieces(right=True, count=60)})
    assert decibels(found["psnr"]) - decibels(found["psnr_before"]) > gain


def decibels(each: torch.Tensor) -> float:
    """Return those of all pieces together: the mean of errors, of which flat pieces have none."""
    return -10 * torch.log10((10 ** (-each / 10)).mean()).item()


class Known:
    """Finds one trained classifier of photographs."""

    begun = ""

    def __init__(self) -> None:
        torch.manual_seed(0)
        spec = DataSpec(inputs=(FIELD,), targets=(LABEL,), rows=240)
        network = resnet.build(resnet.Config(widths=(8, 16), depths=(1, 1)), spec)
        task = supervised.build(supervised.Config(), spec, network)
        seen, kinds = pieces(), torch.arange(2).repeat_interleave(120)
        learn(task, {FIELD.key: seen, LABEL.target_key: kinds}, epochs=4)
        self.right = float((task.predict({FIELD.key: seen})["kind"].argmax(1) == kinds).float().mean())
        self.trained = Trained("there", task.requires_grad_(False), spec)

    def model(self, folder: str, option: str, alike: bool = False) -> Trained:
        return self.trained

    def rows(self, *arguments, **options):
        raise AssertionError


def test_photographs_take_over_the_look_of_another_and_keep_what_is_on_them(tmp_path: Path) -> None:
    """Gatys et al.: the Gram matrices of what is made come near those of the picture, while its maps stay nearer to the
    photograph's than the picture's are."""
    past = Known()
    assert past.right > 0.85
    picture = tmp_path / "brick.png"
    Image.fromarray(photographs.brick()).convert("RGB").save(picture)
    options = perceive.Config(features="there", weight=1.0, style=str(picture), style_weight=10.0)
    task = perceive.build(options, SPEC, mender(what="keep", pixel_weight=0.0), past)
    seen = {FIELD.key: pieces(right=True, count=60)}
    with torch.no_grad():
        before = task.losses(seen).parts
    learn(task, {FIELD.key: pieces()}, epochs=6)
    with torch.no_grad():
        after = task.losses(seen).parts
        brick = perceive._picture(str(picture), FIELD).expand(60, -1, -1, -1)
        far = [
            perceive.distance(m, w)
            for m, w in zip(task._maps(brick / 127.5 - 1), task._maps(seen[FIELD.key] / 127.5 - 1), strict=True)
        ]
    assert before["features"] < 1e-6
    assert after["style"] < 0.5 * before["style"]
    assert after["features"] < torch.stack(far).mean()
