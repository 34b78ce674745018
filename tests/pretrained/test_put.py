"""Published weights: where they are found, what becomes of each tensor, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fathom import pretrained
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.published import match, translate
from fathom.pretrained._families import readers
from fathom.pretrained._put import fitted, patches, positions


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(5, 4)
        self.project = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(4)


TABLE = (match("vectors", "words"), match("project", "q", "k"), match("norm", "ln"))


def published() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    parts = {"words.weight": (5, 4), "q.weight": (3, 4), "k.weight": (3, 4), "q.bias": (3,), "k.bias": (3,)}
    return {f"model.{name}": torch.randn(shape) for name, shape in {**parts, "extra": (2,)}.items()}


def test_every_tensor_is_accounted_for() -> None:
    model, given = Small(), published()
    given["model.pooler.weight"] = torch.randn(4, 4)
    found = pretrained.put(model, given, (*TABLE, match("pooler", "pooler")))
    assert torch.equal(model.project.weight, torch.cat([given["model.q.weight"], given["model.k.weight"]]))
    assert torch.equal(model.vectors.weight, given["model.words.weight"])
    assert set(found.taken) == {"vectors.weight", "project.weight", "project.bias"}
    assert found.fresh == ("norm.weight", "norm.bias") and found.changed == ()
    assert found.left == ("model.extra", "pooler.weight")
    told = " ".join(found.told())
    assert "norm.weight, norm.bias" in told and "model.extra" in told


def test_matrices_that_stand_the_other_way_are_turned() -> None:
    weight = torch.randn(4, 6)
    found = translate({"c.weight": weight, "c.bias": torch.ones(6)}, [match("project", "c", transposed=True)])
    assert torch.equal(found.tensors["project.weight"], weight.t()) and found.tensors["project.bias"].shape == (6,)


def test_other_sizes_are_made_to_fit_and_said_so() -> None:
    photo = torch.randn(8, 3, 5, 5)
    grey, said = fitted("stem.weight", photo, torch.Size((8, 1, 5, 5)))
    torch.testing.assert_close(grey, photo.sum(1, keepdim=True))  # a grey image in three channels gives the same
    assert "3 input channels are averaged for 1" in said
    words, said = fitted("vectors.weight", torch.randn(5, 4), torch.Size((7, 4)))
    assert words.shape == (7, 4) and "of 5 published tokens 5 are taken" in said
    with pytest.raises(ConfigError, match=r"'norm\.weight' is 4; this model's is 5"):
        fitted("norm.weight", torch.ones(4), torch.Size((5,)))


def test_positions_of_patches_are_interpolated_in_two_dimensions() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows.flatten(), columns.flatten()], 1)])  # [1 + 16, 2]
    found = positions(table, 1 + 64)
    assert found.shape == (65, 2) and (found[0] == 9).all()
    grid = found[1:].reshape(8, 8, 2)
    assert (grid[:, :, 0].diff(dim=0) > -0.1).all() and (grid[2:6, 0, 0] - grid[2:6, 7, 0]).abs().max() < 1e-5
    assert positions(torch.arange(5.0)[:, None], 9)[:, 0].tolist() == [i / 2 for i in range(9)]


def test_patches_of_another_size_see_the_same() -> None:
    torch.manual_seed(0)
    kernel, patch = torch.randn(5, 3, 4, 4), torch.randn(7, 3, 4, 4)
    larger = F.interpolate(patch, size=(6, 8), mode="bilinear")
    torch.testing.assert_close(
        torch.einsum("ochw,nchw->no", patches(kernel, 6, 8), larger),
        torch.einsum("ochw,nchw->no", kernel, patch),
        rtol=1e-4,
        atol=1e-4,
    )
    small, said = fitted("patches.weight", kernel, torch.Size((5, 1, 2, 2)))
    assert small.shape == (5, 1, 2, 2) and "patches of 4×4 pixels are resized to 2×2, and the weights of 3" in said
    flat = torch.ones(2, 1, 4, 4)  # a smooth patch keeps what it gives
    assert patches(flat, 2, 2).sum((1, 2, 3)).tolist() == pytest.approx([16, 16], rel=1e-5)
    with pytest.raises(ConfigError, match="keep the published sizes"):
        fitted("stem.weight", kernel, torch.Size((5, 3, 2, 2)))


def folder(tmp_path: Path, **settings: object) -> Path:
    save_file({name: value.contiguous() for name, value in published().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_folder_is_found_and_read_tensor_by_tensor(tmp_path: Path) -> None:
    found = pretrained.find(str(folder(tmp_path, model_type="nonsense")))
    assert set(found.tensors) == set(published()) and found.tensors["model.q.bias"].shape == (3,)
    with pytest.raises(ConfigError, match="type 'nonsense', which no model here reads"):
        pretrained.family(found)


def test_every_family_that_reads_published_weights_says_how() -> None:
    assert {"bert", "gpt2", "llama", "t5", "vit", "resnet"} <= set(readers())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}}, "names of safetensors files"),
        ("config.json", ["no object"], "no JSON object"),
    ],
)
def test_hostile_folders_are_refused(tmp_path: Path, name: str, content: object, said: str) -> None:
    (folder(tmp_path) / name).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=said):
        pretrained.find(str(tmp_path))


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no \.safetensors"):
        pretrained.find(str(tmp_path))
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"\.pt file"):
        pretrained.find(str(tmp_path / "model.pt"))
    with pytest.raises(ArtifactError, match="could run code"):
        pretrained.find(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        pretrained.find(str(tmp_path))


def test_the_hub_is_asked_through_its_cache_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be fetched"):
        pretrained.find("hf:nobody/nothing@" + "0" * 40)
    with pytest.raises(ConfigError, match="no name on the Hub"):
        pretrained.find("hf:no such name!")
