"""How good Fathom's generators are, on Fashion-MNIST.

    python benchmarks/generators.py [PART …] [--budget MINUTES] [--full] [--grids FOLDER]

    elbo        a variational autoencoder's bound on the log-likelihood of test images, in nats, beside that of the same
                network and settings written in plain PyTorch
    anomaly     one class held out of training: how well a row's cost tells it from the others (AUROC), beside PCA's
                reconstruction error with as many components, and scikit-learn's isolation forest
    gan         the distance (FID) of made images from real ones after a quarter of the training and after all of it,
                and how many of the ten classes appear
    diffusion   the same, and how often a classifier agrees with the class that was asked for
    captions    the same, asked for in words: the labels stand in captions, which are all that it learns from
    upscale     14x14 pixels to 28x28: decibels beside cubic interpolation

FID here is the Fréchet distance between the pooled features of Fathom's own classifier of Fashion-MNIST (trained first,
for the time of its own benchmark, and kept in runs/) of --images that were made, classes in turn, and of as many test
images. The distance of training images from those is given as what a perfect generator would have. All training is on
the bundled sample (10,000 images; --full: all 60,000), each part within --budget minutes, or each training for --epochs
passes, however long they take. The figures go to results/generators.json, and grids of images into --grids.
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
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from torch import nn

import fathom
from fathom.api.assemble import assemble, use_of_targets
from fathom.api.config import gather
from fathom.api.prepare import Material, prepare
from fathom.api.sample import tokens, write_grid
from fathom.core.objective import Objective
from fathom.core.types import TrainingData
from fathom.data import TensorStore, read
from fathom.engine.loop import train
from fathom.engine.records import Epoch
from fathom.evaluate.frechet import frechet_distance

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "generators.json"
HELD_OUT = ("Bag", "Sandal", "Trouser")
SENTENCES = ("a photo of a {}", "a picture of one {}", "this is a {}", "{}, seen from the front")
CODE = 32  # numbers of a code where anomalies are looked for


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    options.add_argument("--budget", type=float, default=5.0, help="minutes of training for each part")
    options.add_argument("--epochs", type=int, default=0, help="passes of each training, instead of minutes")
    options.add_argument("--full", action="store_true", help="train on all 60,000 images")
    options.add_argument(
        "--dense", action="store_true", help="elbo: without the network of convolutions, which is slow"
    )
    options.add_argument("--grids", type=Path, help="folder for grids of images")
    options.add_argument("--images", type=int, default=2000, help="made and compared, of each generator")
    options.add_argument("--gan", default="hinge_gan", help="gan: the objective")
    options.add_argument("--network", default="resnet_gan", help="gan: both networks")
    options.add_argument("--steps", type=int, default=20, help="that diffusion makes an image in")
    options.add_argument("--held-out", nargs="*", default=HELD_OUT, help="classes, one run each")
    options.add_argument("--set", nargs="+", action="extend", default=[], help="an option of every part's training")
    given = options.parse_args()
    for name in given.parts or PARTS:
        began = time.perf_counter()
        found = PARTS[name](given)
        found |= {
            **({"set": given.set} if given.set else {}),
            **({"epochs": given.epochs} if given.epochs else {"budget_minutes": given.budget}),
            "data": "all 60,000 images" if given.full else "sample of 10,000",
            "seconds": round(time.perf_counter() - began, 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        }
        store(name, found)
        print(json.dumps({name: found}, indent=2), flush=True)


def elbo(given: argparse.Namespace) -> dict[str, Any]:
    """Both variational autoencoders: Fathom's, then the same network in plain PyTorch for as many epochs."""
    sets = ["model.code=20", "model.hidden=[400]", "objective.pixels=bernoulli", "engine.batch_size=128"]
    sets += ["engine.learning_rate=1e-3", "engine.schedule=constant", "engine.warmup=0.0"]  # as the plain loop has it
    task, material, epochs, _ = learn(given, "variational", "vae_dense", sets, 0.6)
    ours = means(task, material.test.prepared.store)
    images = {part: pixels(getattr(material, part)) for part in ("train", "test")}
    theirs = plain_vae(images["train"], images["test"], epochs, 0.0 if given.epochs else given.budget * 0.4)
    found = {} if given.dense else convolutions(given)
    return {
        "what": "-ELBO of test images in nats, brightness of a pixel as its probability; 784-400-20 units",
        "fathom": ours["loss"],
        "fathom_divergence": ours["divergence"],
        "plain_pytorch": theirs,
        "epochs": epochs,
        **found,
    }


def convolutions(given: argparse.Namespace) -> dict[str, Any]:
    """The same bound of a network of convolutions."""
    sets = ["objective.pixels=bernoulli", "engine.learning_rate=1e-3"]
    task, material, _, _ = learn(given, "variational", "vae_conv", sets, 1.0)
    save(given, "vae", task)
    return {"fathom_convolutions": means(task, material.test.prepared.store)["loss"]}


def anomaly(given: argparse.Namespace) -> dict[str, Any]:
    """One class at a time is held out of training, and looked for among the test rows."""
    rows = []
    for held in given.held_out:
        share = 1 / len(given.held_out)
        sets = [f"model.code={CODE}", "model.image=dense", "model.hidden=[256, 128]"]
        task, material, _, _ = learn(given, "variational", "vae", sets, share, without=held)
        names = material.preprocess.spec.targets[0].classes
        label = material.test.prepared.store.columns["target:label"].numpy()
        odd = label == names.index(held)
        train_x, test_x = pixels(material.train, names.index(held)).numpy(), pixels(material.test).numpy()
        pca = PCA(CODE, random_state=0).fit(train_x)
        error = np.square(test_x - pca.inverse_transform(pca.transform(test_x))).sum(1)
        forest = IsolationForest(random_state=0, n_jobs=1).fit(train_x)
        scores = {
            "fathom": each(task, material.test.prepared.store, "anomaly"),
            "pca": error,
            "isolation_forest": -forest.score_samples(test_x),
        }
        rows.append({"held_out": held} | {name: float(roc_auc_score(odd, score)) for name, score in scores.items()})
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "held_out"}
    return {"what": "area under the ROC curve, the class held out against the nine others", "mean": mean, "runs": rows}


def gan(given: argparse.Namespace) -> dict[str, Any]:
    return generator(given, "gan", given.gan, given.network, ["engine.batch_size=64"])


def diffusion(given: argparse.Namespace) -> dict[str, Any]:
    return generator(given, "diffusion", "diffuse", "unet", ["objective.learn=flow", f"objective.steps={given.steps}"])


def generator(given: argparse.Namespace, part: str, objective: str, model: str, sets: list[str]) -> dict[str, Any]:
    """Train on classes; compare what is made after a quarter and at the end with test images."""
    judge = Judge(given)
    task, material, epochs, quarter = learn(given, objective, model, sets, 1.0)
    test = material.test.prepared.store.columns
    count = min(given.images, len(test["image:image"])) // 10 * 10
    real = judge.features(test["image:image"][:count].float() / 255)
    found: dict[str, Any] = {"what": f"{objective} on {model}", "epochs": epochs, "images": count}
    training = material.train.prepared.store.columns["image:image"][:count].float() / 255
    found |= {"classifier": judge.accuracy, "fid_of_training_images": frechet_distance(judge.features(training), real)}
    last = {name: value.clone() for name, value in task.state_dict().items()}
    said = {"caption": asked(task, material, judge, count)} if part == "captions" else {}
    for when, state in (("quarter", quarter), ("end", last)):
        task.load_state_dict(state)
        with torch.inference_mode():
            images = task.eval().sample(count, torch.Generator().manual_seed(0), **said)
        found[f"fid_{when}"] = frechet_distance(judge.features(images), real)
        seen = judge.classes(images)
        found[f"agreement_{when}"] = float((seen == np.arange(count) % 10).mean())
        found[f"classes_{when}"] = int((np.bincount(seen, minlength=10) >= count / 100).sum())
    save(given, part, task, **{name: rows[:60] for name, rows in said.items()})
    return found


def captions(given: argparse.Namespace) -> dict[str, Any]:
    sets = ["objective.learn=flow", f"objective.steps={given.steps}", "data.kinds.caption=text"]
    return generator(given, "captions", "diffuse", "unet", sets)


def asked(task: Objective, material: Material, judge: Judge, count: int) -> torch.Tensor:
    """Return the tokens [N, T] of a sentence for each class in turn."""
    names = judge.model.artifact.spec.targets[0].classes
    found = tokens([SENTENCES[0].format(name.lower()) for name in names], material.preprocess, task)
    return found[torch.arange(count) % len(found)]


def captioned(frame: pl.DataFrame) -> pl.DataFrame:
    """Return images with one of some sentences for their label, and without it."""
    draw = np.random.default_rng(0)
    said = [SENTENCES[draw.integers(len(SENTENCES))].format(label.lower()) for label in frame["label"]]
    return frame.select("image").with_columns(caption=pl.Series(said))


def upscale(given: argparse.Namespace) -> dict[str, Any]:
    sets = ["model.widths=[16]", "model.attention=[]", "objective.pixels=squared", "engine.batch_size=32"]
    task, material, epochs, _ = learn(given, "upscale", "unet", sets, 1.0)
    found = means(task, material.test.prepared.store)
    if given.grids:
        few = material.test.prepared.store.gather(torch.arange(16))
        with torch.inference_mode():
            shown = next(iter(task.show(few).values()))
        write_grid(shown.numpy(), given.grids / "upscale.png")
    return {"what": "14x14 to 28x28", "gain_db": found["psnr"] - found["psnr_before"], "epochs": epochs, **found}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "elbo": elbo,
    "anomaly": anomaly,
    "gan": gan,
    "diffusion": diffusion,
    "captions": captions,
    "upscale": upscale,
}


class Judge:
    """A classifier of Fashion-MNIST, trained once for a budget and kept."""

    def __init__(self, given: argparse.Namespace) -> None:
        folder = HERE.parent / "runs" / f"generators-judge-{'full' if given.full else 'sample'}"
        if not (folder / "config.json").exists():
            fathom.fit(*sources(given), out=folder, minutes=14.0 if given.full else 1.4, seed=0)
        self.model = fathom.load(folder)
        self.accuracy = self.model.metrics["test"]["label"]["metrics"]["accuracy"]["value"]

    def features(self, images: torch.Tensor) -> np.ndarray:
        """Return pooled features [N, D] of images [N, C, H, W] in 0 … 1."""
        with torch.inference_mode():
            network = self.model.module.eval().model
            return np.concatenate([network(batch).pooled.float().numpy() for batch in self._batches(images)])

    def classes(self, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            module = self.model.module.eval()
            return np.concatenate([module.predict(b)["label"].argmax(1).numpy() for b in self._batches(images)])

    def _batches(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        whole = (images * 255).round().to(torch.uint8)
        return [{"image:image": part} for part in whole.split(250)]


def learn(
    given: argparse.Namespace, objective: str, model: str, sets: list[str], share: float, without: str = ""
) -> tuple[Objective, Material, int, dict[str, torch.Tensor]]:
    """Train for a share of the budget; return the objective, the data, the epochs and the weights of a quarter's time.

    Args:
        without: a class whose rows are left out of training and validation.
    """
    source, test = sources(given)
    if any("caption" in each for each in sets):
        if not given.full:
            frame = read(source).frame
            source, test = (frame.filter(pl.col("split") == name).drop("split") for name in ("train", "test"))
        source, test = captioned(source), captioned(test)
    minutes = 0.0 if given.epochs else given.budget * share
    engine = {"minutes": minutes or None, "epochs": given.epochs or None, "seed": 0}
    arguments = {"objective": {"name": objective}, "model": {"name": model}, "engine": engine}
    settings = gather({}, arguments, [*sets, *given.set])
    use = "needed" if without else use_of_targets(settings, objective)
    material = prepare(source, test, settings, 0, use=use)
    spec = material.preprocess.spec
    assembled = assemble(spec, settings, None, objective, material.settings)
    code = spec.targets[0].classes.index(without) if without else None
    parts = [kept(part, code) for part in (material.train, material.valid)]
    data = TrainingData(train=parts[0], valid=parts[1], augment=assembled.augment)
    early: dict[str, torch.Tensor] = {}
    epochs = 0
    for record in train(assembled.objective, data, assembled.plan):
        if isinstance(record, Epoch):
            epochs = record.epoch
            if not early and (record.seconds >= 15 * minutes if minutes else record.epoch >= given.epochs / 4):
                early = {name: value.clone() for name, value in assembled.objective.state_dict().items()}
    return assembled.objective.eval(), material, epochs, early or assembled.objective.state_dict()


def sources(given: argparse.Namespace) -> tuple[Any, Any]:
    """Return what is trained and tested on: the bundled sample marks its own test rows."""
    return runpy.run_path(str(HERE / "fashion.py"))["whole_set"]() if given.full else ("fashion", None)


def kept(part: Any, code: int | None) -> Any:
    """Return the store of a part, without the rows of one class."""
    if part is None or code is None:
        return part.prepared.store if part is not None else None
    columns = part.prepared.store.columns
    chosen = columns["target:label"] != code
    return TensorStore({name: value[chosen] for name, value in columns.items()})


def pixels(part: Any, without: int | None = None) -> torch.Tensor:
    """Return images as rows of brightness in 0 … 1: [N, 784]."""
    columns = kept(part, without).columns
    return columns["image:image"].flatten(1).float() / 255


def means(task: Objective, store: Any) -> dict[str, float]:
    """Return the means of an objective's measures over a store."""
    return {name: float(np.mean(values)) for name, values in _asked(task, task.metrics, store).items()}


def each(task: Objective, store: Any, name: str) -> np.ndarray:
    """Return one of an objective's predictions for every row of a store."""
    return _asked(task, task.predict, store)[name]


def _asked(task: Objective, ask: Callable[..., Any], store: Any) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    found: dict[str, list[np.ndarray]] = {}
    task.eval()
    with torch.inference_mode():
        for index in torch.arange(len(store)).split(250):
            for name, values in ask(store.gather(index)).items():
                found.setdefault(name, []).append(values.float().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def plain_vae(train_x: torch.Tensor, test_x: torch.Tensor, epochs: int, minutes: float) -> float:
    """Return -ELBO of test rows, in nats, of a variational autoencoder as one writes it in plain PyTorch."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def bound(x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        cost = nn.functional.binary_cross_entropy_with_logits(decoder(code), x, reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return (cost + divergence) / len(x)

    end = time.perf_counter() + 60 * minutes
    for _ in range(epochs):
        for index in torch.randperm(len(train_x)).split(128):
            adam.zero_grad()
            bound(train_x[index]).backward()
            adam.step()
        if minutes and time.perf_counter() > end:
            break
    with torch.inference_mode():
        return float(bound(test_x))


def save(given: argparse.Namespace, name: str, task: Any, **said: torch.Tensor) -> None:
    """Write a grid of images, where a folder for them is given."""
    if given.grids:
        with torch.inference_mode():
            made = task.eval().sample(60, torch.Generator().manual_seed(1), **said)
            write_grid(made.numpy(), given.grids / f"{name}.png")


def store(name: str, record: dict[str, Any]) -> None:
    """Put one part's figures beside the others'."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, name: record}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
