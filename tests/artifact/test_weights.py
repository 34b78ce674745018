import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from fathom.artifact import load, weights
from fathom.core.errors import ArtifactError

from .conftest import objective, write


def copy(module: nn.Module, other: nn.Module, path) -> nn.Module:
    weights.read(other, path, weights.write(module, path))
    return other


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        if tied:
            self.out.weight = self.embed.weight


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    module = Tied()
    loaded = copy(module, Tied(), tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["embed.weight"]
    assert loaded.out.weight is loaded.embed.weight
    assert torch.equal(loaded.out.weight, module.embed.weight)


def test_weights_that_were_tied_fill_a_model_that_is_not(tmp_path):
    module = Tied()
    loaded = copy(module, Tied(tied=False), tmp_path / "w.safetensors")
    assert torch.equal(loaded.out.weight, module.embed.weight) and torch.equal(loaded.embed.weight, module.embed.weight)


class Shared(nn.Module):
    """Buffers that share memory without being the same tensor, are empty, or are strided."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        values = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("whole", values)
        self.register_buffer("row", values[1])
        self.register_buffer("column", values[:, 2])
        self.register_buffer("turned", values.T)
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("nothing_else", torch.zeros(0))
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("brain_float", torch.tensor([1.5], dtype=torch.bfloat16))
        self.register_buffer("twice_as_long", torch.tensor([1 / 3], dtype=torch.float64))
        self.register_buffer("passing", torch.ones(2), persistent=False)


def test_tensors_that_share_memory_return(tmp_path):
    module, path = Shared(1), tmp_path / "w.safetensors"
    assert weights.write(module, path) == {}
    loaded = Shared(2)
    weights.read(loaded, path, {})
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.state_dict()[name].dtype == value.dtype
    assert "passing" not in weights.headers(path)


def test_layouts_in_memory_do_not_matter(tmp_path):
    module = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    loaded = copy(module, nn.Conv2d(3, 8, 3), tmp_path / "w.safetensors")
    assert torch.equal(loaded.weight, module.weight) and loaded.weight.is_contiguous()


def test_weight_normalised_layers_return(tmp_path):
    def build():
        return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))

    module = build()
    assert torch.equal(copy(module, build(), tmp_path / "w.safetensors").weight, module.weight)


def test_a_state_that_is_no_tensor_is_refused(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"count": 3}

    with pytest.raises(ArtifactError, match="'_extra_state' of the model's state is no plain tensor"):
        weights.write(Counting(2, 2), tmp_path / "w.safetensors")
    sparse = nn.Module()
    sparse.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(ArtifactError, match=r"'graph'.*sparse"):
        weights.write(sparse, tmp_path / "w.safetensors")


def test_the_file_may_be_replaced_while_its_model_lives(folder):
    found = load(folder)
    before = {name: value.clone() for name, value in found.module.state_dict().items()}
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-200:] = b"\xff" * 200
    (folder / "model.safetensors").write_bytes(data)  # in place: the same pages
    assert all(torch.equal(value, before[name]) for name, value in found.module.state_dict().items())


def test_ties_are_kept_with_the_model(tmp_path):
    part, _, module = objective(width=8, members=2)
    module.again = module.heads[0].linear.bias
    folder = write(tmp_path / "m", model=part, objective=None, module=module)
    tied = json.loads((folder / "config.json").read_bytes())["tied"]
    assert tied == {"heads.0.linear.bias": "again"}
    fresh = objective(width=8, members=2, seed=5)[2]
    fresh.again = fresh.heads[0].linear.bias
    assert torch.equal(load(folder, objective=fresh).module.heads[0].linear.bias, module.again)
