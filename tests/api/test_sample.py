"""Images from trained generators, by Python and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import fathom
from fathom.core.errors import ConfigError
from tests.api.test_cli import fathom as command

SMALL = {"model": {"name": "unet", "widths": [8, 8], "groups": 4}, "engine": {"epochs": 1, "threads": 1}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of two classes, in folders."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, light in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for number in range(30):
            pixels = (light + random.normal(0, 10, (8, 8))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def diffusion(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diffusion") / "out"
    fathom.fit(pictures, out=out, objective="diffuse", config=SMALL, sets=["objective.steps=3"])
    return out


def test_a_diffusion_model_is_trained_saved_loaded_and_makes_images(diffusion: Path) -> None:
    model = fathom.load(diffusion)
    images = model.sample(5, seed=1)
    assert images.shape == (5, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    np.testing.assert_array_equal(images, model.sample(5, seed=1))
    assert np.abs(images - model.sample(5, seed=2)).max() > 0
    np.testing.assert_array_equal(images, model.sample(5, classes=["dark", "light"], seed=1))  # in turn
    assert model.sample(2, classes="light", steps=1, guidance=3.0).shape == (2, 1, 8, 8)
    assert "loss" in model.metrics["measures"]
    assert "made up in 3 steps" in (diffusion / "report.html").read_text(encoding="utf-8")


def test_the_command_writes_a_grid_that_the_seed_decides(diffusion: Path, tmp_path: Path) -> None:
    said = command("sample", diffusion, "--n", 6, "--class", "light", "--steps", 2, "--out", tmp_path / "a.png")
    assert said.stdout.strip() == str(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 6 * 64
    again = ["--n", 6, "--class", "light", "--steps", 2, "--json"]
    told = json.loads(command("sample", diffusion, *again, "--out", tmp_path / "b.png").stdout)
    assert told["images"] == 6 and told["shape"] == [1, 8, 8]
    command("sample", diffusion, *again, "--seed", 1, "--out", tmp_path / "c.png")
    first, second, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == second and first != other


def test_generators_of_other_kinds_make_images(pictures: Path, tmp_path: Path) -> None:
    gan = {"model": {"name": "resnet_gan", "width": 4, "judge_width": 4}, "engine": {"epochs": 1, "threads": 1}}
    made = fathom.fit(pictures, objective="hinge_gan", config=gan, out=tmp_path / "gan").sample(3, classes=["dark"])
    assert made.shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(fathom.load(tmp_path / "gan").sample(3, classes=["dark"]), made)
    coder = {"model": {"name": "vae", "code": 4}, "engine": {"epochs": 1, "threads": 1}}
    vae = fathom.fit(pictures, objective="autoencode", config=coder)
    assert vae.sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(ConfigError, match="for diffusion models"):
        vae.sample(3, steps=4)
    told = vae.predict(pictures)
    assert {"anomaly", "embedding.0", "embedding.3"} <= set(told.columns) and told["anomaly"].is_finite().all()


def test_images_are_made_of_given_ones(pictures: Path, tmp_path: Path) -> None:
    mending = {"model": {"name": "unet", "widths": [8, 8], "groups": 4}, "engine": {"epochs": 1, "threads": 1}}
    mender = fathom.fit(pictures, out=tmp_path / "mender", objective="upscale", config=mending)
    assert mender.redraw(pictures, 5).shape == (5, 1, 16, 8)
    assert {"psnr", "ssim", "psnr_before"} <= mender.metrics["measures"].keys()
    command("sample", tmp_path / "mender", "--of", pictures, "--n", 4, "--out", tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (4 * 64 + 3 * 2, 128)
    coder = {"model": {"name": "autoencoder", "code": 4}, "engine": {"epochs": 1, "threads": 1}}
    ways = fathom.fit(pictures, objective="autoencode", config=coder).redraw(pictures, 3)
    assert ways.shape == (3, 1, 8, 64)


def test_what_is_hidden_of_images_is_put_back(pictures: Path, tmp_path: Path) -> None:
    vit = {"model": {"name": "vit", "width": 16, "depth": 1, "num_heads": 2, "patch": 2}}
    quick = {"engine": {"epochs": 1, "threads": 1}}
    trained = fathom.fit(pictures, objective="masked_image", config={**vit, **quick}, out=tmp_path / "mae")
    images, seen, made = np.split(trained.redraw(pictures, 5), 3, axis=2)
    assert images.shape == (5, 1, 8, 8)
    light = [np.asarray(Image.open(pictures / "dark" / f"{number}.png")) for number in range(30)]
    assert any(np.allclose(images[0, 0] * 255, one, atol=1e-3) for one in light)  # as it was given
    hidden = (seen == 0.5).reshape(5, 4, 2, 4, 2).all((2, 4))  # of each patch of 2 × 2 pixels
    assert (hidden.sum((1, 2)) == 12).all()  # three quarters of 16
    pixels = hidden.repeat(2, 1).repeat(2, 2)[:, None]
    np.testing.assert_array_equal(made[~pixels], images[~pixels])
    np.testing.assert_array_equal(seen[~pixels], images[~pixels])
    assert np.abs(made - images)[pixels].min() > 0 and np.abs(made - 0.5)[pixels].max() > 0.01
    command("sample", tmp_path / "mae", "--of", pictures, "--n", 4, "--out", tmp_path / "back.png")
    assert Image.open(tmp_path / "back.png").size == (4 * 64 + 3 * 2, 192)


def test_images_are_mended_as_a_trained_classifier_sees_them(pictures: Path, tmp_path: Path) -> None:
    quick = {"engine": {"epochs": 1, "threads": 1}}
    fathom.fit(pictures, out=tmp_path / "judge", model="resnet", config=quick)
    Image.new("L", (20, 20), 200).save(tmp_path / "style.png")
    sets = [f"objective.perceive.features={tmp_path / 'judge'}", f"objective.perceive.style={tmp_path / 'style.png'}"]
    mending = {"model": {"name": "unet", "widths": [8, 8], "groups": 4}, **quick}
    trained = fathom.fit(pictures, objective="perceive(upscale)", config=mending, sets=sets, out=tmp_path / "mender")
    assert fathom.load(tmp_path / "mender").redraw(pictures, 2).shape == (2, 1, 16, 8)
    assert "psnr" in trained.metrics["measures"]


def test_what_cannot_be_is_said_in_a_sentence(diffusion: Path, tmp_path: Path) -> None:
    wrong = command("sample", diffusion, "--class", "lihgt", "--out", tmp_path / "a.png", code=2)
    assert "Did you mean 'light'?" in wrong.stderr
    assert "ends in .png" in command("sample", diffusion, "--n", 1, "--out", tmp_path / "a.jpg", code=2).stderr
    assert "expected 1 to 100,000" in command("sample", diffusion, "--n", 0, code=2).stderr
    table = pl.DataFrame({"x": [0.1 * i for i in range(40)], "y": ["a", "b"] * 20})
    plain = fathom.fit(table, "y", config={"model": {"name": "mlp"}, "engine": {"epochs": 1, "threads": 1}})
    with pytest.raises(ConfigError, match="makes no images"):
        plain.sample(1)
    assert "nothing of given images" in command("sample", diffusion, "--of", "fashion", code=2).stderr


def test_what_cannot_be_beside_given_images_is_said(diffusion: Path, pictures: Path) -> None:
    for option, value in (("--class", "light"), ("--prompt", "a cat"), ("--steps", 2), ("--guidance", 2.0)):
        said = command("sample", diffusion, "--of", pictures, option, value, code=2).stderr
        assert f"{option} cannot be given beside --of" in said
    for count in (0, -1):
        said = command("sample", diffusion, "--of", pictures, "--n", count, code=2).stderr
        assert f"given as {count}; expected 1 to" in said


def test_a_place_that_cannot_be_written_is_refused_before_images_are_made(
    diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fathom.api.model.Model, "sample", lambda *args, **how: pytest.fail("images were made"))
    assert "ends in .png" in command("sample", diffusion, "--out", tmp_path / "a.gif", code=2).stderr
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        assert "cannot be written" in command("sample", diffusion, "--out", out, code=2).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]  # nothing is left of the trial


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on images with captions and classes."""
    random, rows = np.random.default_rng(0), []
    folder = tmp_path_factory.mktemp("painter")
    for number in range(40):
        kind = ("dark", "light")[number % 2]
        pixels = (60 + 130 * (number % 2) + random.normal(0, 10, (8, 8))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a {kind} picture", "kind": kind})
    pl.DataFrame(rows).write_csv(folder / "captions.csv")
    sets = ["objective.steps=3", "data.kinds.caption=text", "evaluate.baselines=false"]
    fathom.fit(
        folder / "captions.csv", "kind", out=folder / "out", objective="diffuse", model="unet", config=SMALL, sets=sets
    )
    return folder / "out"


def test_images_are_asked_for_in_words_and_by_class(painter: Path, tmp_path: Path) -> None:
    model = fathom.load(painter)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.module.parameters():  # after one epoch words are hardly heard
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=draw)
    dark = model.sample(4, prompts="a dark picture")
    assert dark.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(dark, model.sample(4, prompts=["a dark picture"]))
    turns = model.sample(4, prompts=["a dark picture", "a light picture"])
    np.testing.assert_allclose(turns[::2], dark[::2], atol=1e-5)
    assert np.abs(turns[1::2] - dark[1::2]).max() > 1e-3
    assert np.abs(model.sample(4, prompts="a dark picture", classes="dark") - dark).max() > 0
    assert np.abs(model.sample(4, classes="dark") - model.sample(4, classes="light")).max() > 0
    asked = ["--n", 2, "--prompt", "a light picture", "--steps", 2, "--json"]
    told = json.loads(command("sample", painter, *asked, "--out", tmp_path / "said.png").stdout)
    assert told["images"] == 2 and told["shape"] == [1, 8, 8]
    command("sample", painter, "--n", 2, "--class", "dark", "--out", tmp_path / "class.png")
    assert "made up in 3 steps" in (painter / "report.html").read_text(encoding="utf-8")


def test_words_are_for_models_of_captions(diffusion: Path) -> None:
    wrong = command("sample", diffusion, "--prompt", "a dark picture", code=2)
    assert "Nothing can be asked of this model in words" in wrong.stderr
