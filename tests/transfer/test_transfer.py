"""Learning on from a trained network: which layers move, when, and how adapters come and go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fathom
from fathom import transfer
from fathom.api.config import Settings
from fathom.api.transfer import origin
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.objective import Objective
from fathom.core.types import Batch, DataSpec, Field, Loss, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.transfer import TransferConfig

QUICK: dict[str, Any] = {
    "engine": {"epochs": 1, "threads": 1, "precision": "fp32", "batch_size": 16},
    "evaluate": {"baselines": False},
    "model": {"width": 32, "depth": 2, "num_heads": 2},
}


class Stack(nn.Module):
    """Positions, an entry, three layers in a list, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = 4
        self.positions = nn.Parameter(torch.randn(4))
        self.entry = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.entry(x + self.positions)
        for block in self.blocks:
            x = block(x).tanh()
        return self.norm(x)


class Fit(Objective):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(4, 1)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        return Loss((self.head(self.model(batch["x"]))[:, 0] - batch["y"]).square().mean(), weight=len(batch["y"]))

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"y": self.head(self.model(batch["x"]))[:, 0]}


def trained(model: nn.Module, epochs: int = 4, **options: Any) -> dict[str, torch.Tensor]:
    """Return by how much each parameter of the model moved."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=draw)
    store = TensorStore({"x": x, "y": x[:, 0] * x[:, 1]})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = Plan(epochs=epochs, batch_size=16, threads=1, precision="fp32", keep="last", warmup=0.0, **options)
    for _ in train(Fit(model), TrainingData(train=store), plan):
        pass
    return {name: (p.detach() - before[name]).abs().max() for name, p in model.named_parameters()}


def sizes(model: nn.Module) -> list[int]:
    return [len(layer.parameters) for layer in transfer.layers(model)]


def test_layers_stand_in_the_order_of_the_network() -> None:
    model = Stack()
    found = transfer.layers(model)
    assert sizes(model) == [3, 2, 2, 2, 2]  # positions and entry, three blocks, the norm
    assert found[0].parameters[0] is model.positions and found[-1].parameters[0] is model.norm.weight


def test_a_tied_weight_belongs_to_the_first_layer_that_has_it() -> None:
    model = Stack()
    model.blocks[2].weight = model.entry.weight
    assert sizes(model) == [3, 2, 2, 1, 2]


class Wrapped(nn.Module):
    """A network of another library within one of ours, with a read-out of two linear layers in a list behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Stack()
        self.readout = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.width = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.network(x))


def test_a_network_within_another_is_taken_apart() -> None:
    assert sizes(Wrapped()) == [3, 2, 2, 2, 2, 2, 2]


def test_frozen_layers_do_not_move() -> None:
    model = Stack()
    assert transfer.settle(model, TransferConfig(source="x", freeze=0.4)) == ["2 of 5 layers stay as they were loaded."]
    moved = trained(model)
    still = {name for name, by in moved.items() if by == 0}
    assert still == {"positions", "entry.weight", "entry.bias", "blocks.0.weight", "blocks.0.bias"}


class Convolved(nn.Module):
    """Two layers with running statistics, and dropout behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = 4
        self.first, self.dropped = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Dropout(0.5)
        self.second = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropped(self.first(x)))


@pytest.mark.parametrize("config", [{"freeze": 1.0}, {"freeze": 0.67}, {"lora": 2}])
def test_statistics_of_frozen_layers_do_not_move_and_nothing_is_dropped_in_them(config: dict[str, Any]) -> None:
    model = Convolved()
    transfer.settle(model, TransferConfig(source="x", **config))
    if "lora" in config:
        transfer.adapt(model, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model)
    after = model.train().state_dict()
    assert torch.equal(after["first.1.running_mean"], before["first.1.running_mean"])
    assert torch.equal(after["second.running_mean"], before["second.running_mean"]) == (
        "freeze" not in config or config["freeze"] == 1
    )
    assert model.dropped.training == ("lora" in config) and model.second.training == (config.get("freeze") == 0.67)
    x = torch.randn(6, 4)
    if config.get("freeze") == 1:
        assert torch.equal(model.train()(x), model.eval()(x))


def test_a_layer_to_freeze_apart_must_be_there() -> None:
    with pytest.raises(ConfigError, match="has 1 layer with weights"):
        transfer.settle(nn.Sequential(nn.Linear(2, 2)), TransferConfig(source="x", unfreeze=0.5))


@pytest.mark.parametrize(("config", "factor"), [({}, 30), ({"freeze": 1.0}, 1), ({"lora": 4}, 5), ({"heads": 7.0}, 7)])
def test_heads_learn_faster_than_what_they_stand_on(config: dict[str, Any], factor: float) -> None:
    head = nn.Linear(4, 1)
    transfer.hasten([head], TransferConfig(source="x", **config))
    assert [p.learning_rate_scale for p in head.parameters()] == [factor, factor]  # type: ignore[attr-defined]


def test_a_lower_layer_learns_more_slowly() -> None:
    model = Stack()
    transfer.settle(model, TransferConfig(source="x", layer_decay=0.5))
    moved = trained(model, epochs=1, weight_decay=0.0)  # two steps of Adam move every weight by about the rate
    assert float(moved["blocks.1.weight"] / moved["blocks.2.weight"]) == pytest.approx(1 / 2, rel=0.2)
    assert float(moved["entry.weight"] / moved["blocks.2.weight"]) == pytest.approx(1 / 8, rel=0.2)


def test_layers_are_freed_one_after_another_from_the_last_on() -> None:
    model = Stack()
    transfer.settle(model, TransferConfig(source="x", unfreeze=1.0))
    rates = [parameter.learning_rate_from for parameter in model.parameters()]  # type: ignore[attr-defined]
    assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.2) and rates == sorted(rates, reverse=True)
    moved = trained(model, epochs=5, schedule="constant")  # ten steps; the norm is freed at the third
    assert moved["positions"] == 0 and moved["norm.weight"] > 0
    half = Stack()
    transfer.settle(half, TransferConfig(source="x", unfreeze=0.5))
    assert all(by > 0 for by in trained(half, epochs=5, schedule="constant").values())


def test_an_adapter_begins_as_nothing_learns_alone_and_ends_in_the_weights() -> None:
    model = Stack()
    x = torch.randn(5, 4)
    before, weights = model(x).detach(), model.entry.weight.detach().clone()
    assert transfer.adapt(model, rank=2) == 4
    assert torch.equal(model(x), before)
    moved = trained(model, epochs=10)
    assert {name.rpartition(".")[2] for name, by in moved.items() if by > 0} == {"adapter_in", "adapter_out"}
    adapted = model(x).detach()
    assert not torch.allclose(adapted, before, atol=1e-3) and torch.equal(model.entry.weight, weights)
    transfer.merge(model)
    assert set(model.state_dict()) == set(Stack().state_dict()) and type(model.entry) is nn.Linear
    torch.testing.assert_close(model(x), adapted, rtol=1e-5, atol=1e-6)


def test_an_adapter_kept_alone_gives_the_same_network_again(tmp_path: Path) -> None:
    model = Stack()
    transfer.adapt(model, rank=2, scale=3.0)
    trained(model, epochs=10)
    alone = transfer.packed(transfer.adapter(model), {"rank": 2, "scale": 3.0, "source": "x"})
    (tmp_path / "a.safetensors").write_bytes(alone)
    transfer.merge(model)
    other = Stack()
    assert transfer.load(other, tmp_path / "a.safetensors") == 4
    x = torch.randn(5, 4)
    torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["torn", "no words", "other layers", "other shapes"])
def test_a_foreign_or_damaged_adapter_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.safetensors"
    about = {"fathom_adapter": json.dumps({"rank": 2, "scale": 4.0})}
    name = "entry" if how == "other shapes" else "elsewhere"
    tensors = {f"{name}.adapter_in": torch.ones(2, 9), f"{name}.adapter_out": torch.ones(4, 2)}
    save_file(tensors, path, metadata={} if how == "no words" else about)
    if how == "torn":
        path.write_bytes(path.read_bytes()[:40])
    model = Stack()
    with pytest.raises(ArtifactError, match="adapter"):
        transfer.load(model, path)
    assert torch.equal(model.entry.weight, Stack().entry.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora": 4, "freeze": 1.0}, "drop transfer.freeze"),
        ({"heads": -1.0}, "zero or more"),
        ({"freeze": 1.5}, "share from 0 to 1"),
        ({"layer_decay": 0.0}, "share above 0"),
        ({"lora": -1}, "zero or more"),
        ({"lora": 4, "unfreeze": 0.5}, "drop one"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TransferConfig(source="x", **options)


def texts(good: str = "sunny", rows: int = 60) -> pl.DataFrame:
    label = [("good", "bad")[i % 2] for i in range(rows)]
    words = [f"the day is {good if kind == 'good' else 'rainy'} and number {i}" for i, kind in enumerate(label)]
    return pl.DataFrame({"text": words, "label": label})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text model of our own."""
    folder = tmp_path_factory.mktemp("first") / "model"
    fathom.fit(texts(), "label", model="transformer", config=QUICK, out=folder)
    return folder


def test_learning_on_takes_the_network_and_its_tokens(first: Path, tmp_path: Path) -> None:
    begun = fathom.load(first)
    told: list[str] = []
    model = fathom.fit(
        texts("merry"), "label", weights=first, freeze=True, config={**QUICK, "model": {}}, out=tmp_path / "m"
    )
    told = json.loads(model.files["evidence.json"])["data"]["notes"]
    assert any("taken over" in note for note in told) and any("stay as they were" in note for note in told)
    assert model.artifact.preprocess.texts[0].tokenizer == begun.artifact.preprocess.texts[0].tokenizer
    ours, theirs = model.module.model.state_dict(), begun.module.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = fathom.load(tmp_path / "m")
    assert again.predict(texts()).equals(model.predict(texts()))


def test_the_folder_of_an_adapted_model_holds_the_adapter_too(first: Path, tmp_path: Path) -> None:
    sets = ["transfer.lora=2", "engine.epochs=3"]
    model = fathom.fit(
        texts("merry"), "label", weights=first, config={**QUICK, "model": {}}, sets=sets, out=tmp_path / "m"
    )
    with safe_open(tmp_path / "m" / "adapter.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["fathom_adapter"])["rank"] == 2 and len(list(file.keys())) > 4
    assert fathom.load(tmp_path / "m").predict(texts()).equals(model.predict(texts()))
    config = {**QUICK, "model": {}, "engine": {**QUICK["engine"], "learning_rate": 1e-12}}
    sets = [f"transfer.adapter={tmp_path / 'm' / 'adapter.safetensors'}"]
    other = fathom.fit(texts("merry"), "label", weights=first, freeze=True, config=config, sets=sets)
    ours, theirs = other.module.model.state_dict(), model.module.model.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_few_rows_are_passed_more_often_and_all_learned_from(first: Path) -> None:
    config = {"engine": {"threads": 1, "precision": "fp32", "epochs": 1}, "evaluate": {"baselines": False}}
    model = fathom.fit(texts(), "label", weights=first, config=config)
    evidence = json.loads(model.files["evidence.json"])
    settings = evidence["run"]["settings"]
    assert settings["engine.batch_size"] == 16 and settings["engine.learning_rate"] == 1e-3  # of a network of width 32
    assert evidence["data"]["splits"] == {"train": 48, "test": 12}
    begun = origin(Settings({"transfer": {"source": str(first)}}))
    assert begun is not None
    own = begun.entry.config
    words, pixels = (DataSpec(inputs=(Field(name="x", kind=kind, shape=(8,)),)) for kind in ("text", "image"))
    for spec, passes in ((words, [10, 5, 3, 3]), (pixels, [20, 20, 11, 3])):
        found = [begun.recipe(own, replace(spec, rows=rows))["engine"] for rows in (300, 800, 3_000, 100_000)]
        assert [each["epochs"] for each in found] == passes
    wider = replace(own, width=768)
    assert begun.recipe(wider, replace(words, rows=800))["engine"]["learning_rate"] == 5e-5


def photos(folder: Path, side: int, **levels: int) -> Path:
    """Write noisy grey images of that side, a folder for each class of brightness."""
    draw = np.random.default_rng(0)
    for label, level in levels.items():
        (folder / label).mkdir(parents=True)
        for i in range(20):
            pixels = draw.normal(level, 30, (side, side)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def test_images_of_other_classes_and_sizes_are_learned_on_the_same_network(tmp_path: Path) -> None:
    config = {"engine": QUICK["engine"], "evaluate": {"baselines": False}}
    fathom.fit(photos(tmp_path / "a", 28, dark=60, light=190), model="lenet", config=config, out=tmp_path / "first")
    other = photos(tmp_path / "b", 40, black=20, grey=120, white=230)
    model = fathom.fit(other, weights=tmp_path / "first", freeze=True, config=config, sets=["engine.epochs=3"])
    assert model.artifact.spec.inputs[0].shape == (1, 28, 28)  # as the network was trained to see
    assert model.artifact.spec.targets[0].classes[-3:] == ("black", "grey", "white")
    ours, theirs = model.module.model.state_dict(), fathom.load(tmp_path / "first").module.model.state_dict()
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_learned_on_from_is_refused(first: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"weights": first, "model": "bag"}, "those of model 'transformer'"),
        ({"weights": tmp_path / "nowhere"}, "no published weights"),
        ({"freeze": True}, "--from"),
    ):
        with pytest.raises(ConfigError, match=said):
            fathom.fit(texts(), "label", config={"engine": QUICK["engine"]}, **options)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ArtifactError, match="could run code"):
        fathom.fit(texts(), "label", weights=tmp_path / "pickled")


def test_a_run_that_is_freed_layer_by_layer_resumes_exactly(tmp_path: Path) -> None:
    ends = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        for resume in (False, True) if stops else (False,):
            model = Stack()
            transfer.settle(model, TransferConfig(source="x", unfreeze=0.8, layer_decay=0.9))
            draw = torch.Generator().manual_seed(1)
            store = TensorStore({"x": torch.randn(32, 4, generator=draw), "y": torch.randn(32, generator=draw)})
            torch.manual_seed(3)
            task = Fit(model)
            records: Any = train(
                task,
                TrainingData(train=store),
                Plan(epochs=6, batch_size=16, threads=1, precision="fp32"),
                folder,
                resume,
            )
            for record in records:
                if stops and not resume and type(record).__name__ == "Epoch" and record.epoch == 2:
                    records.close()
                    break
        ends.append({name: value.clone() for name, value in task.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
