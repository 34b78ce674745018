"""Perceptual losses against numpy, and what a picture's look is."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fathom.core.errors import ConfigError, DataError
from fathom.core.past import Trained
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.models import mlp, resnet, unet
from fathom.objectives import supervised, translate_image
from fathom.wrappers import perceive
from fathom.wrappers.perceive import Config, gram
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed

IMAGE = Field(name="image", kind="image", shape=(1, 12, 12), stats=Stats(mean=(100.0,), std=(50.0,)))
LABEL = Field(name="label", kind="category", classes=("a", "b"), counts=(8, 8))
SPEC = DataSpec(inputs=(IMAGE,), rows=40)


class Known:
    """Finds one trained classifier."""

    begun = ""

    def __init__(self, field: Field = IMAGE, model=None) -> None:
        torch.manual_seed(9)
        spec = DataSpec(inputs=(field,), targets=(LABEL,), rows=16)
        network = model or resnet.build(resnet.Config(), spec)
        self.trained = Trained("there", supervised.build(supervised.Config(), spec, network).eval(), spec)

    def model(self, folder: str, option: str, alike: bool = False) -> Trained:
        return self.trained

    def rows(self, *arguments, **options):
        raise AssertionError


def wrapped(past: Known, seed: int = 0, adversarial: float = 0.0, what: str = "upscale", **options):
    torch.manual_seed(seed)
    config = unet.Config(widths=(4, 8), groups=4)
    inner = translate_image.build(
        translate_image.Config(what=what, adversarial=adversarial), SPEC, unet.build(config, SPEC)
    )
    return perceive.build(Config(features="there", **options), SPEC, inner, past)


def test_the_distance_of_maps_and_of_looks_is_the_formula_of_the_papers(tmp_path: Path) -> None:
    past = Known()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (12, 12), dtype=np.uint8)).save(tmp_path / "style.png")
    task, batch = wrapped(past, weight=0.5, style=str(tmp_path / "style.png"), style_weight=2.0), batch_of(SPEC, 5)
    network = past.trained.objective.model
    made, wanted = (x.detach() for x in task.inner.pair(batch))

    def maps(image):
        with torch.no_grad():
            return [m.double().numpy() for m in network({"image:image": (image + 1) * 127.5}).maps]

    def correlated(m):
        flat = m.reshape(*m.shape[:2], -1)
        return np.einsum("bcn,bdn->bcd", flat, flat) / flat.shape[2]

    style = torch.tensor(np.asarray(Image.open(tmp_path / "style.png")), dtype=torch.float32).view(1, 1, 12, 12)
    pairs = list(zip(maps(made), maps(wanted), maps(style / 127.5 - 1), strict=True))
    content = np.mean([((m - w) ** 2).mean() / (w**2).mean() for m, w, _ in pairs])
    looks = [(correlated(m), correlated(s)) for m, _, s in pairs]
    style_cost = np.mean([((m - s) ** 2).sum((1, 2)).mean() / (s**2).sum() for m, s in looks])
    loss = task.losses(batch)
    plain = task.inner.losses(batch).total.item()
    assert loss.parts["features"].item() == pytest.approx(content, rel=1e-3)
    assert loss.parts["style"].item() == pytest.approx(style_cost, rel=1e-3)
    assert loss.total.item() == pytest.approx(plain + 0.5 * content + 2 * style_cost, rel=1e-3)
    torch.testing.assert_close(
        gram(torch.tensor(pairs[0][0])).double().numpy(), correlated(pairs[0][0]), rtol=1e-4, atol=1e-4
    )


def test_the_trained_network_stays_as_it_is_and_is_not_kept() -> None:
    past = Known()
    network = past.trained.objective.model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task = wrapped(past, adversarial=0.1)
    data = TrainingData(train=TensorStore(batch_of(SPEC, 16)))
    for _ in train(task, data, Plan(epochs=2, batch_size=8, threads=1, precision="fp32", learning_rate=1e-2)):
        pass
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.training and task.kept() is task.inner
    assert not any(name.startswith("_network") for name in task.state_dict())
    assert all(p.grad is None for p in network.parameters())


def test_what_is_learned_is_nearer_in_features_than_without() -> None:
    past = Known()
    store = TensorStore(batch_of(SPEC, 64))
    found = []
    for weight in (0.0, 3.0):
        task = wrapped(past, weight=weight)
        plan = Plan(epochs=15, batch_size=16, threads=1, precision="fp32", learning_rate=5e-3, keep="last")
        for _ in train(task, TrainingData(train=store), plan):
            pass
        task.config = Config(features="there", weight=1.0)
        with torch.no_grad():
            found.append(task.eval().losses(store.columns).parts["features"].item())
    assert found[1] < 0.9 * found[0]


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", accumulate=2)
    data = TrainingData(train=TensorStore(batch_of(SPEC, 24)), valid=TensorStore(batch_of(SPEC, 8, seed=1)))
    ends = whole_and_resumed(partial(wrapped, Known()), data, plan, tmp_path, after=2)
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    past = Known()
    with pytest.raises(ConfigError, match=r"objective\.perceive\.features=DIR"):
        perceive.build(Config(), SPEC, wrapped(past).inner, past)
    with pytest.raises(ConfigError, match="translate_image alone"):
        perceive.build(Config(features="there"), SPEC, past.trained.objective, past)
    colour = Field(name="image", kind="image", shape=(3, 12, 12), stats=Stats(mean=(100.0,), std=(50.0,)))
    with pytest.raises(ConfigError, match="a model of other columns"):
        wrapped(Known(colour))
    spec = DataSpec(inputs=(IMAGE,), targets=(LABEL,), rows=16)
    if mlp.accepts(spec) is None:
        with pytest.raises(ConfigError, match="gives no maps"):
            wrapped(Known(model=mlp.build(mlp.Config(), spec)))
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        wrapped(past, style=str(tmp_path / "no.png"))
