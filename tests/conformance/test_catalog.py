"""Every model with every objective that takes its data keeps the same promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fathom.core import catalog
from fathom.core.config import as_dict, build, describe
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import DataSpec, Features, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from tests.conformance.samples import batch_of
from tests.conformance.tasks import Everything

MODELS = catalog.files("models")
OBJECTIVES = catalog.files("objectives")


def spec_of(model: str, objective: str = "everything") -> DataSpec:
    """Return the model's example, as an objective sees it."""
    spec = catalog.find("models", model).module.example()
    if objective == "everything":
        return spec
    unused = getattr(catalog.find("objectives", objective).module, "TARGET", "needed") == "unused"
    return dataclasses.replace(spec, targets=()) if unused else spec


def built(model: str, objective: str, seed: int = 0) -> tuple[DataSpec, Objective]:
    """Return the data and a fresh objective; that of "everything" asks for all that the model can do."""
    spec = spec_of(model, objective)
    torch.manual_seed(seed)
    entry = catalog.find("models", model)
    network = entry.module.build(entry.config, spec)
    if objective == "everything":
        return spec, Everything(spec, network)
    task = catalog.find("objectives", objective)
    return spec, task.module.build(task.config, spec, network)


def pairs() -> Iterator[tuple[str, str]]:
    """Each model with "everything", of which supervised learning is a part, and with the other objectives that fit."""
    for model in MODELS:
        yield model, "everything"
        for objective in OBJECTIVES:
            if objective != "supervised" and fits(model, objective):
                yield model, objective


def fits(model: str, objective: str) -> bool:
    """Whether the objective takes the model's example, and the model."""
    task, entry = catalog.find("objectives", objective).module, catalog.find("models", model)
    spec = spec_of(model, objective)
    if task.accepts(spec) is not None or entry.module.accepts(spec) is not None:
        return False
    network = entry.module.build(entry.config, spec)
    if getattr(task, "needs", lambda model: None)(network) is not None:
        return False
    try:
        task.build(task.Config(), spec, network)
    except ConfigError as error:
        assert "set " in str(error) or "such as" in str(error)  # what the user can change, or choose instead
        return False
    return True


both = pytest.mark.parametrize(("model", "objective"), list(pairs()))
everything = pytest.mark.parametrize(("model", "objective"), [(model, "everything") for model in MODELS])
each_model = pytest.mark.parametrize("model", MODELS)


@pytest.mark.parametrize(("room", "name"), [(r, f) for r in ("models", "objectives") for f in catalog.files(r)])
def test_a_file_says_what_it_is(room: str, name: str) -> None:
    entry = catalog.find(room, name)
    assert (entry.module.__doc__ or "").strip()
    assert entry.module.REFERENCE
    assert dataclasses.is_dataclass(entry.config) and entry.config.__dataclass_params__.frozen
    assert all(help_text for *_, help_text in describe(type(entry.config)))
    assert build(type(entry.config), as_dict(entry.config)) == entry.config
    presets = {key for key, file in catalog.names(room).items() if file == name} - {name}
    assert presets <= set(entry.module.presets) <= presets | {name}


@each_model
def test_features_have_the_promised_shapes(model: str) -> None:
    spec = spec_of(model)
    entry = catalog.find("models", model)
    network = entry.module.build(entry.config, spec).eval()
    with torch.no_grad():
        features = network(batch_of(spec, 6))
    members = getattr(network, "members", 1)
    assert isinstance(features, Features)
    assert features.pooled.shape == ((6, members, network.width) if members > 1 else (6, network.width))
    assert features.pooled.isfinite().all()
    if features.tokens is not None:
        assert features.tokens.shape[0] == 6 and features.tokens.shape[2] == network.width


@everything
def test_backward_reaches_every_parameter(model: str, objective: str) -> None:
    spec, task = built(model, objective)
    for phase in task.phases():
        task.losses(batch_of(spec, 16), phase.name).total.backward(inputs=list(phase.parameters))
    unreached = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert unreached == []


@both
def test_every_phase_has_a_finite_loss_and_gradient(model: str, objective: str) -> None:
    spec, task = built(model, objective)
    for phase in task.phases():
        moved = [p for p in phase.parameters if p.requires_grad]
        loss = task.losses(batch_of(spec, 16), phase.name)
        found = torch.autograd.grad(loss.total, moved, allow_unused=True)
        assert loss.total.isfinite() and all(part.isfinite().all() for part in loss.parts.values())
        reached = [gradient for gradient in found if gradient is not None]
        assert reached and all(gradient.isfinite().all() for gradient in reached)
        assert any(gradient.abs().max() > 0 for gradient in reached)


@both
def test_metrics_are_of_each_row(model: str, objective: str) -> None:
    spec, task = built(model, objective)
    task.eval()
    with torch.no_grad():
        found = task.metrics(batch_of(spec, 6))
    assert found
    assert {values.shape for values in found.values()} == {(6,)}


@both
def test_one_row_and_any_order_predict_the_same(model: str, objective: str) -> None:
    spec, task = built(model, objective)
    batch = batch_of(spec, 7)
    order = torch.randperm(7)
    task.eval()
    with torch.no_grad():
        whole = task.predict(batch)
        shuffled = task.predict({key: value[order] for key, value in batch.items()})
        single = task.predict({key: value[:1] for key, value in batch.items()})
    for name, value in whole.items():
        torch.testing.assert_close(shuffled[name], value[order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single[name], value[:1], rtol=1e-4, atol=1e-5)


@everything
def test_overfits_one_batch(model: str, objective: str) -> None:
    spec, task = built(model, objective)
    store = TensorStore(batch_of(spec, 16))
    plan = Plan(
        epochs=150, batch_size=16, learning_rate=3e-3, schedule="constant", keep="last", threads=1, precision="fp32"
    )
    before = float(task.eval().metrics(store.columns)[_first(task, store)].detach().mean())
    for _ in train(task, TrainingData(train=store), plan):
        pass
    after = float(task.eval().metrics(store.columns)[_first(task, store)].detach().mean())
    assert after < 0.2 * before


@everything
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(model: str, objective: str, tmp_path) -> None:
    plan = Plan(epochs=4, batch_size=8, threads=1, precision="fp32", average=0.9, accumulate=2)
    ends = []
    for stops in (False, True):
        spec, task = built(model, objective)
        data = TrainingData(train=TensorStore(batch_of(spec, 40)), valid=TensorStore(batch_of(spec, 16, seed=1)))
        folder = tmp_path / str(stops)
        if stops:
            records = train(task, data, plan, folder)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 2:
                    records.close()
                    break
            spec, task = built(model, objective, seed=5)
        for _ in train(task, data, plan, folder, resume=stops):
            pass
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


@both
def test_state_moves_into_a_fresh_build(model: str, objective: str) -> None:
    spec, task = built(model, objective, seed=1)
    _, other = built(model, objective, seed=2)
    other.load_state_dict(task.state_dict())
    batch = batch_of(spec, 5)
    task.eval(), other.eval()
    with torch.no_grad():
        for name, value in task.predict(batch).items():
            assert torch.equal(value, other.predict(batch)[name])


class Pooled(nn.Module):
    """A model's pooled features alone: what an exported graph may give out is tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.network(batch).pooled


@each_model
def test_exports_as_one_graph(model: str) -> None:
    spec = spec_of(model)
    entry = catalog.find("models", model)
    network = Pooled(entry.module.build(entry.config, spec)).eval()
    inputs = {key: value for key, value in batch_of(spec, 4).items() if not key.startswith("target:")}
    with torch.no_grad():
        exported = torch.export.export(network, (inputs,)).module()
        torch.testing.assert_close(exported(inputs), network(inputs), rtol=1e-4, atol=1e-5)


@each_model
def test_compiles_without_a_graph_break(model: str) -> None:
    spec = spec_of(model)
    entry = catalog.find("models", model)
    network = entry.module.build(entry.config, spec).eval()
    inputs = {key: value for key, value in batch_of(spec, 4).items() if not key.startswith("target:")}
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs).pooled, network(inputs).pooled, rtol=1e-4, atol=1e-5)


@each_model
def test_half_precision_learns(model: str) -> None:
    spec, task = built(model, "everything")
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.losses(batch_of(spec, 16)).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@each_model
def test_first_weights_neither_blow_up_nor_fade(model: str) -> None:
    """Through the whole depth, what layers give out and the gradients that reach them stay within a thousand times."""
    spec, task = built(model, "everything")
    sizes, gradients = [], []

    def watch(module: nn.Module, given: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad and output.is_floating_point():
            sizes.append(float(output.detach().square().mean().sqrt()))
            output.register_hook(lambda gradient: gradients.append(float(gradient.square().mean().sqrt())))

    for module in task.model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(watch)
    task.losses(batch_of(spec, 32)).total.backward()
    for found in (sizes, gradients):
        alive = [value for value in found if value > 0]  # a branch that begins at zero gives out nothing, and rightly
        assert all(value < float("inf") for value in found)
        assert not alive or max(alive) < 1e3 * sorted(alive)[len(alive) // 2]
        assert not alive or min(alive) > 1e-3 * sorted(alive)[len(alive) // 2]


@pytest.mark.parametrize("name", sorted(catalog.names("models")))
def test_every_preset_builds(name: str) -> None:
    """On the data of its paper, where its file says what that was; without memory, so that size does not matter."""
    entry = catalog.find("models", name)
    spec = getattr(entry.module, "paper", entry.module.example)()
    with torch.device("meta"):
        network = entry.module.build(entry.config, spec)
    learned = sum(p.numel() for p in network.parameters())
    assert network.width > 0 and (learned > 0 or entry.module.__name__.endswith(".perceptron"))  # its read-out learns


@each_model
def test_an_unknown_option_is_refused_by_name(model: str) -> None:
    config = type(catalog.find("models", model).config)
    with pytest.raises(catalog.ConfigError, match="nonsense"):
        build(config, {"nonsense": 1}, "model")


def _first(task: Objective, store: TensorStore) -> str:
    return next(iter(task.metrics(store.columns)))
