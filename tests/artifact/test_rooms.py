"""With the real preprocessing and every kind of column: raw rows in, the training process's own predictions out."""

import io
from importlib import import_module

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from fathom.artifact import Artifact, load, outputs, rebuild, save
from fathom.core import catalog
from fathom.core.errors import ArtifactError
from fathom.data import Preprocess, infer

from .test_hostile import FILES, refused

ROWS = 90


@pytest.fixture(autouse=True)
def _own_preprocessing(monkeypatch):
    monkeypatch.setattr(rebuild, "import_module", import_module)  # the real one


def picture(value: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((12, 12), value, np.uint8)).save(data, "png")
    return data.getvalue()


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 3, ROWS)
    words = ["the sea was calm and grey", "mountains rise over the valley", "a city never sleeps, they said"]
    return pl.DataFrame(
        {
            "größe": draw.normal(size=ROWS) + kinds,
            "colour": [["red", "green", None][k] for k in draw.integers(0, 3, ROWS)],
            "when": pl.Series([f"2024-{m:02d}-1{d}" for m, d in draw.integers(1, 9, (ROWS, 2))]).str.to_date(),
            "story": [f"{words[k]} {n}" for n, k in enumerate(kinds)],
            "photo": [picture(int(60 + 60 * k + n % 7)) for n, k in enumerate(kinds)],
            "kind": [("sea", "hill", "town")[k] for k in kinds],
            "price": draw.normal(4000, 900, ROWS) + 500 * kinds,
        }
    )


CASES = {
    "table": ("mlp", ["größe", "colour", "when"], ["kind"]),
    "number": ("mlp", ["größe", "colour", "when"], ["price"]),
    "text": ("transformer", ["story"], ["kind"]),
    "words": ("bag", ["story"], ["kind"]),
    "image": ("resnet", ["photo"], ["kind"]),
    "mixed": ("mixed", ["größe", "colour", "story", "photo"], ["kind", "price"]),
}


def live(frame: pl.DataFrame, case: str) -> tuple[Artifact, dict]:
    name, inputs, targets = CASES[case]
    chosen = frame.select(*inputs, *targets)
    preprocess, prepared = Preprocess.fit(chosen, infer(chosen, tuple(targets)), targets)
    torch.manual_seed(0)
    model, objective = catalog.find("models", name), catalog.find("objectives", "supervised")
    module = objective.module.build(
        objective.config, preprocess.spec, model.module.build(model.config, preprocess.spec)
    )
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for start in range(0, 64, 16):  # moves weights and running statistics
        batch = prepared.store.gather(torch.arange(start, start + 16))
        optimiser.zero_grad()
        module.losses(batch).total.backward()
        optimiser.step()
    found = outputs(module, prepared.store)
    return Artifact(module, preprocess.spec, preprocess, {"model": model, "objective": objective}, {}), found


@pytest.mark.parametrize("case", CASES)
def test_saved_loaded_and_predicted_from_raw_rows(frame, case, tmp_path):
    before, trained = live(frame, case)
    model, objective = before.config["model"], before.config["objective"]
    folder = save(
        tmp_path / "m",
        model=model,
        objective=objective,
        module=before.module,
        spec=before.spec,
        preprocess=before.preprocess,
        metrics={},
    )
    after = load(folder)
    rows = frame.drop("kind", "price")
    again = after.outputs(after.preprocess.transform(rows).store, batch_size=7)
    for target in before.spec.targets:
        scale = target.stats.std[0] if target.stats else 1.0
        np.testing.assert_allclose(again[target.name] / scale, trained[target.name] / scale, atol=1e-6, rtol=1e-6)
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=1)
    one, other = before.predict(shuffled), after.predict(shuffled, batch_size=11)
    assert one.columns == other.columns
    for name in one.columns:
        if one[name].dtype == pl.String:
            assert one[name].to_list() == other[name].to_list()
        else:
            scale = 900.0 if "price" in name or case == "number" else 1.0
            np.testing.assert_allclose(other[name] / scale, one[name] / scale, atol=1e-6, rtol=1e-6)


def test_an_unreadable_image_keeps_its_place(frame, tmp_path):
    found, _ = live(frame, "image")
    photos = [picture(90), b"no image", None, picture(200)]
    answer = found.predict(pl.DataFrame({"photo": pl.Series(photos, dtype=pl.Binary)}))
    assert answer["prediction"].is_null().to_list() == [False, True, True, False]
    assert answer["problem"].is_null().to_list() == [True, False, False, True]
    assert all("photo" in reason for reason in answer["problem"].drop_nulls())


@pytest.mark.parametrize("case", ["table", "text"])
def test_damaged_preprocessing_is_found(frame, case, tmp_path):
    before, _ = live(frame, case)
    parts = {"model": before.config["model"], "objective": before.config["objective"], "module": before.module}
    folder = save(tmp_path / "m", **parts, spec=before.spec, preprocess=before.preprocess, metrics={})
    assert (
        not set(FILES)
        - {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
        - {
            "config.toml",
            "evidence.json",
            "report.html",
        }
    )
    for path in sorted((folder / "preprocess").iterdir()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            refused(folder, path.name)
        path.write_bytes(data)
    assert load(folder)


def test_preprocessing_of_another_model_is_refused(frame, tmp_path):
    folders = []
    for case in ("table", "number"):
        before, _ = live(frame, case)
        parts = {"model": before.config["model"], "objective": before.config["objective"], "module": before.module}
        folders.append(save(tmp_path / case, **parts, spec=before.spec, preprocess=before.preprocess, metrics={}))
    name = "preprocess/preprocess.json"
    (folders[0] / name).write_bytes((folders[1] / name).read_bytes())
    with pytest.raises(ArtifactError):
        load(folders[0])
