"""What images teach without labels, or with few: `python benchmarks/selfsupervised.py [--cases NAME …] [--budget M]`.

    contrast        SimCLR: a linear read-out of features that never saw a label               bar 85 %
    captions        CLIP: classes told by sentences that were never a class (zero-shot)         bar 80 %
    self_distill    DINO: the classes of the 20 nearest neighbours                              bar 83 %
    masked_image    MAE: fine-tuned with 1,000 labels, against the same network from scratch    bar + 3 points
    consistency     FixMatch, with its moving average too, and mean teacher with 250 labels, and
                    students that they teach, against these labels alone                        bar + 5 points
    metric          recall@1 among classes never seen, against raw pixels                       bar + 10 points

The images are the bundled sample of Fashion-MNIST, 10,000 to learn from and 2,000 to test on; with --full all 60,000
and the 10,000 of the original test set, where the Debian package `dataset-fashion-mnist` is installed. Each training
takes --budget minutes at the most; with --epochs the first of each case (consistency and metric: all ways) passes so
often over its rows, and the others take what their recipes say, however long that is. Test images are judged once. The
figures go to results/selfsupervised.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fathom
from fathom.api.embed import vectors
from fathom.data._samples import find
from fathom.evaluate import recall

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "selfsupervised.json"
WHOLE = ["evaluate.baselines=false", "split.test=0.0", "split.valid=0.0"]
VIT = ["model.pooling=mean", "model.width=64", "model.depth=4"]
TUNED = ["engine.batch_size=16", "engine.learning_rate=1e-3", "engine.weight_decay=0.05", "engine.schedule=cosine"]
SMALL = [16, 32, 64]  # widths of a resnet that a core trains in minutes
UNSEEN = ("T-shirt/top", "Pullover", "Coat", "Shirt", "Bag")
SENTENCES = ("a photo of a {}", "a picture of a {}", "this is a {}", "{}")
ASKED = "an image of a {}"  # a sentence that no training image has


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options.add_argument("--budget", type=float, default=5.0, help="minutes of each training")
    options.add_argument("--epochs", type=int, help="passes, instead of minutes, of the first training of each case")
    options.add_argument("--full", action="store_true", help="learn from all 60,000 images")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--draws", type=int, default=1, help="of labels in consistency, by the seeds from --seed on")
    options.add_argument("--ways", nargs="+", default=["fixmatch", "steady_match", "mean_teacher"], help="consistency")
    options.add_argument("--begin", type=int, default=0, help="consistency: passes of SimCLR that the ways begin from")
    options.add_argument("--teachers", type=int, default=1, help="consistency: trainings of each way, by other seeds")
    options.add_argument(
        "--students", type=int, default=0, help="consistency: how many follow, each taught by the last"
    )
    options.add_argument("--student", default="noisy_student", help="consistency: what students learn by")
    options.add_argument("--student-epochs", type=int, default=9, help="consistency: passes of each student")
    options.add_argument("--student-set", nargs="+", action="extend", default=[], help="options of students")
    options.add_argument("--out", type=Path, help="consistency: folder of its models; what was begun there goes on")
    options.add_argument("--widths", nargs="+", type=int, default=SMALL, help="of the resnet of consistency and metric")
    options.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="sets", help="options of the first training of each case"
    )
    given = options.parse_args()
    train, test = images(given.full)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.cases:
        began = time.perf_counter()
        found = CASES[name](train, test, given)
        found |= {"epochs": given.epochs} if given.epochs else {"budget": given.budget}
        found |= {"rows": len(train), "seed": given.seed, "set": given.sets}
        if not given.out:  # what was begun earlier would not be counted
            found["all_seconds"] = round(time.perf_counter() - began)
        known[name + ("_full" if given.full else "")] = found
        print(json.dumps({name: found}, indent=2), flush=True)
        known["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")


def contrast(train: pl.DataFrame, test: pl.DataFrame, given: Any) -> dict[str, Any]:
    model = learned(train.select("image"), given, model="resnet", objective="simclr")
    found = {"linear_probe": linear(model.embed(train), train, model.embed(test), test), **seconds(model)}
    begun = learned(train.select("image"), given, model="resnet", objective="simclr", rate=0.0, epochs=1)
    found["linear_probe_of_first_weights"] = linear(begun.embed(train), train, begun.embed(test), test)
    found["linear_probe_of_pixels"] = linear(pixels(train), train, pixels(test), test)
    return judged(found, found["linear_probe"], 0.85)


def captions(train: pl.DataFrame, test: pl.DataFrame, given: Any) -> dict[str, Any]:
    rng = np.random.default_rng(given.seed)
    said = [SENTENCES[rng.integers(len(SENTENCES))].format(label.lower()) for label in train["label"]]
    source = train.select("image").with_columns(caption=pl.Series(said))
    model = learned(source, given, objective="clip", sets=["data.kinds.caption=text"])
    classes = sorted(train["label"].unique())
    asked = [ASKED.format(label.lower()) for label in classes]
    names = dict(zip(asked, classes, strict=True))
    right = model.match(test.select("image"), asked)["prediction"].replace_strict(names) == test["label"]
    return judged({"zero_shot": float(right.mean()), **seconds(model)}, float(right.mean()), 0.80)


def self_distill(train: pl.DataFrame, test: pl.DataFrame, given: Any) -> dict[str, Any]:
    model = learned(train.select("image"), given, model="resnet", objective="dino")
    found = {"knn": neighbours(model.embed(train), train, model.embed(test), test), **seconds(model)}
    found["linear_probe"] = linear(model.embed(train), train, model.embed(test), test)
    found["knn_of_pixels"] = neighbours(pixels(train), train, pixels(test), test)
    return judged(found, found["knn"], 0.83)


def masked_image(train: pl.DataFrame, test: pl.DataFrame, given: Any) -> dict[str, Any]:
    few = drawn(train, 1_000, given.seed)
    with TemporaryDirectory() as folder:
        model = learned(train.select("image"), given, model="vit", objective="mae", sets=VIT, out=f"{folder}/pre")
        tuned = accuracy(few, test, given, weights=f"{folder}/pre", own=TUNED, epochs=60)
    scratch = accuracy(few, test, given, model="vit", own=[*VIT, *TUNED], epochs=60)
    found = {"fine_tuned": tuned, "from_scratch": scratch, "labels": len(few), **seconds(model)}
    return judged(found, tuned - scratch, 0.03)


def consistency(train: pl.DataFrame, test: pl.DataFrame, given: Any) -> dict[str, Any]:
    right: dict[str, list[float]] = {}
    with TemporaryDirectory() as aside:
        home = given.out or Path(aside)
        weights = begun(train, given, home / "simclr") if given.begin else None
        for seed in range(given.seed, given.seed + given.draws):
            drawing = argparse.Namespace(**vars(given) | {"seed": seed})
            found = one_draw(train, test, drawing, home / str(seed), weights)
            for way, value in found.items():
                right.setdefault(way, []).append(value)
            print(json.dumps({"seed": seed} | found), flush=True)
    mean = {way: round(float(np.mean(each)), 4) for way, each in right.items()}
    result = {"labels": 250, "widths": given.widths, "draws": given.draws, "each": right, "mean": mean}
    if given.begin:
        result["begin"] = {"objective": "simclr", "epochs": given.begin}
    if given.students:
        result["student"] = {"objective": given.student, "epochs": given.student_epochs, "set": given.student_set}
    ways = [mean[way] for way in mean if way not in ("alone", "fine_tuned")]
    return judged(result, max(ways) - mean["alone"], 0.05)


def begun(train: pl.DataFrame, given: Any, folder: Path) -> str:
    """Return the folder of a training on all images that never saw a label."""
    if not (folder / "model.safetensors").exists():
        alike = argparse.Namespace(**vars(given) | {"sets": engine_options(given, "form", "threads")})
        how: dict[str, Any] = {"model": "resnet", "objective": "simclr", "epochs": given.begin}
        how |= {"sets": [f"model.widths={given.widths}"], "out": folder, "resume": started(folder)}
        learned(train.select("image"), alike, **how)
    return str(folder)


def one_draw(
    train: pl.DataFrame, test: pl.DataFrame, given: Any, folder: Path, weights: str | None
) -> dict[str, float]:
    """Return what each way to learn reaches with 250 labels drawn by a seed."""
    how: dict[str, Any] = {"model": "resnet", "own": [f"model.widths={given.widths}"]}
    few = drawn(train, 250, given.seed)
    rest = train.join(few.select("row"), on="row", how="anti").with_columns(label=pl.lit(None, pl.String))
    mixed, found = pl.concat([few, rest]), {"alone": accuracy(few, test, given, **how)}
    if weights:
        how["weights"] = weights
        found["fine_tuned"] = accuracy(few, test, given, epochs=60, **how)  # as often as the one that had no more
    for way in given.ways:
        names = [way, *(f"{way}_{number}" for number in range(2, given.teachers + 1))]
        for number, name in enumerate(names):
            other = argparse.Namespace(**vars(given) | {"seed": given.seed + 1_000 * number})
            found[name] = accuracy(mixed, test, other, objective=way, first=True, out=folder / name, **how)
    return found | students(mixed, test, given, folder, names, weights)


def students(
    mixed: pl.DataFrame, test: pl.DataFrame, given: Any, folder: Path, teachers: list[str], weights: str | None
) -> dict[str, float]:
    """Return the accuracy of students, the first taught by these trainings, others by the last."""
    found = {}
    for number in range(1, given.students + 1):
        name, told = f"student_{number}", json.dumps([str(folder / teacher) for teacher in teachers])
        own = [f"model.widths={given.widths}", "engine.average=0.999", *engine_options(given), *given.student_set]
        own.append(f"objective.noisy_student.teachers={told}")
        how: dict[str, Any] = {"objective": given.student, "model": "resnet", "own": own, "out": folder / name}
        found[name] = accuracy(mixed, test, given, epochs=given.student_epochs, weights=weights, **how)
        teachers = [name]
    return found


def engine_options(given: Any, *names: str) -> list[str]:
    """Return the options of the engine that this script was given, all or some."""
    return [each for each in given.sets if each.startswith(tuple(f"engine.{name}=" for name in names) or "engine.")]


def metric(train: pl.DataFrame, test: pl.DataFrame, given: Any) -> dict[str, Any]:
    hidden = test.filter(pl.col("label").is_in(UNSEEN))
    seen = train.filter(~pl.col("label").is_in(UNSEEN))
    labels = hidden["label"].to_numpy()
    found: dict[str, Any] = {"unseen": UNSEEN, "pixels": recall(pixels(hidden), labels)}
    for way in ("triplet", "arcface"):
        how: dict[str, Any] = {
            "target": "label",
            "model": "resnet",
            "sets": [f"model.widths={given.widths}"],
            "objective": way,
        }
        model = learned(seen.select("image", "label"), given, **how)
        found[way] = recall(vectors(model.embed(hidden)), labels) | seconds(model)
    best = max(found["triplet"]["value"], found["arcface"]["value"])
    return judged(found, best - found["pixels"]["value"], 0.10)


CASES: dict[str, Callable[[pl.DataFrame, pl.DataFrame, Any], dict[str, Any]]] = {
    "contrast": contrast,
    "captions": captions,
    "self_distill": self_distill,
    "masked_image": masked_image,
    "consistency": consistency,
    "metric": metric,
}


def images(full: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return what is learned from and what is tested on, with the columns image, label and row."""
    if full:
        train, test = runpy.run_path(str(HERE / "fashion.py"))["whole_set"]()
    else:
        sample = pl.read_parquet(find("fashion").path)
        train, test = (sample.filter(pl.col("split") == part).drop("split") for part in ("train", "test"))
    return train.with_row_index("row"), test.with_row_index("row")


def learned(
    source: pl.DataFrame,
    given: Any,
    *,
    sets: list[str] | None = None,
    rate: float | None = None,
    epochs: int | None = None,
    **how: Any,
) -> fathom.Model:
    """Train on all rows of a source, for the time or the passes allowed."""
    chosen = [*WHOLE, *(sets or []), *given.sets]
    if rate is not None:
        chosen.append(f"engine.learning_rate={rate or 1e-12}")
    how |= {"minutes": minutes(given), "epochs": epochs or given.epochs, "seed": given.seed}
    return fathom.fit(source, sets=chosen, progress=True, **how)


def started(folder: Path) -> bool:
    """Return whether a training into a folder was begun, and so goes on."""
    return (folder / "checkpoints").exists()


def minutes(given: Any) -> float | None:
    """Return how long each training may take: as long as it needs, where passes are counted."""
    return None if given.epochs else given.budget


def accuracy(
    train: pl.DataFrame,
    test: pl.DataFrame,
    given: Any,
    *,
    own: list[str] | None = None,
    first: bool = False,
    epochs: int | None = None,
    **how: Any,
) -> float:
    """Return how often a model that learned from `train` is right on `test`.

    Args:
        first: whether the options and passes given to this script are for this training.
    """
    sets = [*WHOLE, *(own or []), *(given.sets if first else [])]
    how["resume"] = "out" in how and started(how["out"])
    model = fathom.fit(
        train.select("image", "label"),
        "label",
        minutes=minutes(given),
        epochs=epochs or (given.epochs if first else None),
        seed=given.seed,
        sets=sets,
        progress=True,
        **how,
    )
    return float((model.predict(test.select("image"))["prediction"] == test["label"]).mean())


def drawn(train: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """Return so many rows, of each class alike."""
    rng = np.random.default_rng(seed)
    parts = [part.to_numpy() for part in train.group_by("label", maintain_order=True).agg("row")["row"]]
    chosen = np.concatenate([rng.choice(part, rows // len(parts), replace=False) for part in parts])
    return train.filter(pl.col("row").is_in(chosen))


def linear(a: Any, train: pl.DataFrame, b: Any, test: pl.DataFrame) -> float:
    """Return the accuracy of logistic regression on vectors."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    probe.fit(_array(a), train["label"].to_numpy())
    return float(probe.score(_array(b), test["label"].to_numpy()))


def neighbours(a: Any, train: pl.DataFrame, b: Any, test: pl.DataFrame, count: int = 20) -> float:
    """Return the accuracy of the nearest neighbours by cosine, the nearer counting more."""
    judge = KNeighborsClassifier(count, metric="cosine", weights="distance")
    judge.fit(_array(a), train["label"].to_numpy())
    return float(judge.score(_array(b), test["label"].to_numpy()))


def pixels(frame: pl.DataFrame) -> np.ndarray:
    """Return the pixels of images of one size, [N, H·W·C]."""
    import io

    from PIL import Image

    rows = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in frame["image"]]
    return np.stack(rows).reshape(len(rows), -1).astype(np.float32) / 255


def _array(found: Any) -> np.ndarray:
    return found if isinstance(found, np.ndarray) else vectors(found)


def seconds(model: fathom.Model) -> dict[str, Any]:
    run = json.loads(model.files["evidence.json"])["run"]
    return {"seconds": round(run["seconds"]), "epochs": len(run["epochs"]), "parameters": run["parameters"]}


def judged(found: dict[str, Any], value: float, bar: float) -> dict[str, Any]:
    return found | {"value": round(value, 4), "bar": bar, "reached": value >= bar}


if __name__ == "__main__":
    main()
