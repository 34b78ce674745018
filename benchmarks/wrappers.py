"""What wrappers do to learning: `python benchmarks/wrappers.py [--cases NAME …] [--budget M] [--seeds N] [--rows N]`.

    mixup, cutmix, sam   accuracy, against the plain objective
    smoothing            the same with a tenth of each label's probability spread over all classes
    pgd                  accuracy on images that an attack of 20 steps has changed (8/255)
    rules                share of answers that break a rule between two targets, and accuracy, with 1,000 rows
    distill              a student with a teacher, against the student alone
    continual            five tasks of two classes each, one after the other: accuracy over all five in the end, by
                         consolidation (ewc) and by replay, against learning on as usual

Each is trained on --rows images of the bundled sample of Fashion-MNIST for --budget minutes at the most, or --epochs
passes; seeds are 0, 1, …, and mean and spread are of those. The figures go to results/wrappers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

import fathom
from fathom.data import read
from fathom.wrappers.adversarial_training import AdversarialTraining
from fathom.wrappers.adversarial_training import Config as Attack

RESULTS = Path(__file__).parent / "results" / "wrappers.json"
WHOLE = ["evaluate.baselines=false", "split.valid=0.1", "engine.keep=last"]
GROUPS = {
    "T-shirt/top": "top", "Pullover": "top", "Coat": "top", "Shirt": "top", "Dress": "dress", "Trouser": "trouser",
    "Sandal": "shoe", "Sneaker": "shoe", "Ankle boot": "shoe", "Bag": "bag",
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options.add_argument("--budget", type=float, default=1.0, help="minutes of each training")
    options.add_argument("--epochs", type=int, help="passes of each training, instead of minutes")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", type=int, default=4000, help="images to learn from")
    options.add_argument("--strength", type=float, default=1000.0, help="of consolidation, the pull to earlier weights")
    options.add_argument("--model", default="lenet", help="the network that is trained")
    given = options.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    trials = [Trial(given, seed) for seed in range(given.seeds)]
    for name in given.cases:
        runs = [CASES[name](trial) for trial in trials]
        found = {key: spread([run[key] for run in runs]) for key in runs[0]}
        known[name] = {
            "figures": found,
            "runs": runs,
            "settings": {
                **({"epochs": given.epochs} if given.epochs else {"minutes": given.budget}),
                **{name: getattr(given, name) for name in ("rows", "model", "strength")},
            },
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        }
        print(name, json.dumps(found, indent=2))
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")


class Trial:
    """One seed's data and trainings."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given, self.seed = given, seed
        table = read("fashion")
        frame, test = table.frame, pl.col(table.split) == "test" if table.split else None
        assert test is not None, "the sample marks its test rows"
        label = table.target[0]
        frame = frame.rename({label: "label"})
        self.test = frame.filter(test).drop(table.split)
        self.train = frame.filter(~test).drop(table.split).sample(given.rows, shuffle=True, seed=seed)
        self.plain: fathom.Model | None = None

    def fit(self, train: Any = None, test: Any = None, sets: tuple[str, ...] = (), **more: Any) -> fathom.Model:
        options = {
            "target": "label",
            "model": self.given.model,
            "minutes": None if self.given.epochs else self.given.budget,
            "epochs": self.given.epochs,
            "seed": self.seed,
            **more,
        }
        return fathom.fit(
            self.train if train is None else train,
            test=self.test if test is None else test,
            sets=[*WHOLE, *sets],
            **options,
        )

    def usual(self) -> fathom.Model:
        """Return what the plain objective learns of these rows: trained once, whatever it is compared with."""
        self.plain = self.plain or self.fit()
        return self.plain


def spread(values: list[float]) -> dict[str, float]:
    mean = {"mean": float(np.mean(values))}
    return mean | {"spread": float(np.std(values, ddof=1))} if len(values) > 1 else mean


def accuracy(model: fathom.Model, target: str = "label") -> float:
    return float(model.metrics["test"][target]["metrics"]["accuracy"]["value"])


def beside(objective: str) -> Callable[[Trial], dict[str, float]]:
    """Return what compares an objective with the plain one."""

    def compared(trial: Trial) -> dict[str, float]:
        return {"plain": accuracy(trial.usual()), objective: accuracy(trial.fit(objective=objective))}

    return compared


def smoothed(trial: Trial) -> dict[str, float]:
    how = {name: (f"objective.label_smoothing={share}",) for name, share in (("plain", 0.0), ("smoothing", 0.1))}
    return {name: accuracy(trial.fit(sets=sets)) for name, sets in how.items()}


def attacked(trial: Trial) -> dict[str, float]:
    found = {}
    for name in ("supervised", "pgd"):
        model = trial.usual() if name == "supervised" else trial.fit(objective=name)
        rows = model.artifact.preprocess.transform(trial.test, with_targets=True).store
        attack = AdversarialTraining(Attack(steps=20), model.artifact.spec, model.module).eval()
        torch.manual_seed(trial.seed)
        right = []
        for index in torch.arange(len(rows)).split(250):
            batch = attack.attack(rows.gather(index))
            right.append((model.module.predict(batch)["label"].argmax(1) == batch["target:label"]).float())
        found |= {f"{name}, plain": accuracy(model), f"{name}, attacked": float(torch.cat(right).mean())}
    return found


def ruled(trial: Trial) -> dict[str, float]:
    grouped = {name: f.with_columns(pl.col("label").replace_strict(GROUPS).alias("group")) for name, f in
               (("train", trial.train.head(1000)), ("test", trial.test))}  # fmt: skip
    rules = "[" + ", ".join(f"\"label='{name}' -> group={group}\"" for name, group in GROUPS.items()) + "]"
    found = {}
    for objective, sets in (("supervised", ()), ("rules", (f"objective.rules.rules={rules}",))):
        model = trial.fit(
            grouped["train"], grouped["test"], target=["label", "group"], objective=objective, sets=tuple(sets)
        )
        said = model.predict(trial.test)
        broken = said["prediction.label"].cast(pl.String).replace_strict(GROUPS) != said["prediction.group"].cast(
            pl.String
        )
        found |= {f"{objective}, broken": float(broken.mean()), f"{objective}, accuracy": accuracy(model)}
    return found


def taught(trial: Trial) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        longer = {} if trial.given.epochs else {"minutes": 2 * trial.given.budget}
        teacher = trial.fit(model="resnet", **longer)
        teacher.save(Path(folder) / "teacher")
        alone = trial.usual()
        with_teacher = trial.fit(objective="distill", sets=(f"objective.teacher={folder}/teacher",))
    return {"teacher": accuracy(teacher), "alone": accuracy(alone), "with teacher": accuracy(with_teacher)}


def continual(trial: Trial) -> dict[str, float]:
    """Five tasks that ask the same of other clothes: which of two kinds it is, the first or the second."""
    names = sorted(GROUPS)
    pairs = [names[i : i + 2] for i in range(0, 10, 2)]

    def task(frame: pl.DataFrame, pair: list[str]) -> pl.DataFrame:
        chosen = frame.filter(pl.col("label").is_in(pair))
        return chosen.with_columns(pl.when(pl.col("label") == pair[0]).then(pl.lit("first")).otherwise(pl.lit("second"))
                                   .alias("side")).drop("label")  # fmt: skip

    found = {}
    with TemporaryDirectory() as place:
        folder = Path(place)
        for number, pair in enumerate(pairs):
            task(trial.train, pair).write_parquet(folder / f"{number}.parquet")
        tests = [task(trial.test, pair) for pair in pairs]
        for objective in ("supervised", "ewc", "replay"):
            for number in range(5):
                earlier = json.dumps([str(folder / f"{objective}{n}") for n in range(number)])
                later = (f"objective.earlier={earlier}",) if objective != "supervised" else ()
                sets = (*later, f"objective.strength={trial.given.strength}") if objective == "ewc" else later
                model = trial.fit(
                    str(folder / f"{number}.parquet"), tests[number], target="side",
                    objective=objective if number else "supervised", sets=(*SAME, *(sets if number else ())),
                    weights=folder / f"{objective}{number - 1}" if number else None,
                    model=None if number else trial.given.model, minutes=None, epochs=8,
                    out=folder / f"{objective}{number}",
                )  # fmt: skip
            scores = [model.evaluate(test)["targets"]["side"]["metrics"]["accuracy"]["value"] for test in tests]
            found |= {objective: float(np.mean(scores)), f"{objective}, first task": float(scores[0])}
    return found


SAME = ("engine.optimizer=adamw", "engine.learning_rate=0.001", "engine.batch_size=64", "augment.shift=0",
        "augment.flip=no")  # fmt: skip
CASES: dict[str, Callable[[Trial], dict[str, float]]] = {
    "mixup": beside("mixup"),
    "cutmix": beside("cutmix"),
    "sam": beside("sam"),
    "smoothing": smoothed,
    "pgd": attacked,
    "rules": ruled,
    "distill": taught,
    "continual": continual,
}


if __name__ == "__main__":
    main()
