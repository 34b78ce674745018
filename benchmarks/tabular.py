"""Tables: Fathom with all defaults against scikit-learn's gradient boosting and random forest with all defaults.

    python benchmarks/tabular.py                       # diamonds and the four small sets
    python benchmarks/tabular.py --data wine diabetes --seeds 3 --out tabular.json

Every method gets the same rows to learn from and the same rows to be judged on: five folds of each small set for
each seed, and one fifth of the diamonds held out for each seed. Printed are accuracy or RMSE, log-loss, seconds a
fit, and the mean rank over all (set, fold) pairs, where equal scores share their ranks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

import fathom

SMALL = ("digits", "wine", "breast_cancer", "diabetes")
METHODS = ("fathom", "boosting", "forest")
TARGET = "target"


@dataclass(frozen=True)
class Result:
    """One method on one fold; `score` is an error share or an RMSE (lower is better), `surprise` a log-loss."""

    data: str
    seed: int
    fold: int
    method: str
    score: float
    surprise: float | None
    seconds: float


def table(name: str) -> pd.DataFrame:
    """Return the set as a frame whose column `target` is to be predicted; classes are words."""
    if name == "diamonds":
        from fathom.data import read

        return read("diamonds").frame.to_pandas().rename(columns={"price": TARGET})
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")(as_frame=True)
    if name != "diabetes":
        found.frame[TARGET] = [f"class {value}" for value in found.frame[TARGET]]
    return found.frame


def splits(name: str, frame: pd.DataFrame, seed: int) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield (rows to learn from, rows to be judged on)."""
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

    if name == "diamonds":
        yield train_test_split(frame, test_size=0.2, random_state=seed)
        return
    kind = KFold if is_number(frame) else StratifiedKFold
    for train, test in kind(5, shuffle=True, random_state=seed).split(frame, frame[TARGET]):
        yield frame.iloc[train].reset_index(drop=True), frame.iloc[test].reset_index(drop=True)


def is_number(frame: pd.DataFrame) -> bool:
    return pd.api.types.is_numeric_dtype(frame[TARGET])


def with_fathom(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return predictions [N] of a number or probabilities [N, C] of classes, and the classes."""
    # The comparison with baselines that fit makes by itself is left out: here it is the benchmark's work.
    model = fathom.fit(train, target=TARGET, test=test, seed=seed, config={"evaluate": {"baselines": False}})
    found = model.predict(test.drop(columns=TARGET))
    if is_number(train):
        return found["prediction"].to_numpy(), []
    classes = sorted(train[TARGET].unique())
    return found[[f"probability.{name}" for name in classes]].to_numpy(), classes


def with_boosting(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> tuple[np.ndarray, list[str]]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if is_number(train) else HistGradientBoostingClassifier
    return _with_sklearn(kind(random_state=seed), train, test, categories=True)


def with_forest(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> tuple[np.ndarray, list[str]]:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestRegressor if is_number(train) else RandomForestClassifier
    return _with_sklearn(kind(random_state=seed), train, test, categories=False)


def _with_sklearn(model, train: pd.DataFrame, test: pd.DataFrame, categories: bool) -> tuple[np.ndarray, list[str]]:
    """Fit on the frame; words become pandas categories (which boosting treats as such) or their codes."""
    inputs, judged = train.drop(columns=TARGET), test.drop(columns=TARGET)
    for name in inputs.select_dtypes(exclude="number"):
        kind = pd.CategoricalDtype(sorted(inputs[name].unique()))
        inputs[name], judged[name] = inputs[name].astype(kind), judged[name].astype(kind)
        if not categories:
            inputs[name], judged[name] = inputs[name].cat.codes, judged[name].cat.codes
    model.fit(inputs, train[TARGET])
    if is_number(train):
        return model.predict(judged), []
    return model.predict_proba(judged), list(model.classes_)


FITS: dict[str, Callable[..., tuple[np.ndarray, list[str]]]] = {
    "fathom": with_fathom,
    "boosting": with_boosting,
    "forest": with_forest,
}


def judge(found: np.ndarray, classes: list[str], truth: pd.Series) -> tuple[float, float | None]:
    """Return (RMSE, None) of numbers, (share of errors, log-loss) of classes."""
    if not classes:
        return float(np.sqrt(np.mean((found - truth.to_numpy()) ** 2))), None
    codes = np.searchsorted(classes, truth.to_numpy())
    chosen = np.clip(found[np.arange(len(codes)), codes], 1e-12, 1)
    return float(np.mean(found.argmax(1) != codes)), float(-np.log(chosen).mean())


def measure(names: list[str], seeds: int, methods: list[str]) -> Iterator[Result]:
    for name in names:
        frame = table(name)
        for seed in range(seeds):
            for fold, (train, test) in enumerate(splits(name, frame, seed)):
                for method in methods:
                    start = time.perf_counter()
                    found, classes = FITS[method](train, test, seed)
                    seconds = time.perf_counter() - start
                    yield Result(name, seed, fold, method, *judge(found, classes, test[TARGET]), seconds)


def ranks(results: list[Result], by: str) -> dict[str, float]:
    """Return each method's mean rank over (set, seed, fold), 1 the best."""
    folds: dict[tuple[str, int, int], dict[str, float]] = {}
    for r in results:
        if getattr(r, by) is not None:
            folds.setdefault((r.data, r.seed, r.fold), {})[r.method] = getattr(r, by)
    methods = [m for m in METHODS if any(m == r.method for r in results)]
    table = [rankdata([scores[m] for m in methods]) for scores in folds.values()]
    return dict(zip(methods, np.mean(table, axis=0).round(3).tolist(), strict=True)) if table else {}


def show(results: list[Result]) -> None:
    print(f"{'data':<15}{'method':<10}{'error or RMSE':>22}{'log-loss':>10}{'seconds':>9}")
    for name in dict.fromkeys(r.data for r in results):
        for method in dict.fromkeys(r.method for r in results):
            mine = [r for r in results if (r.data, r.method) == (name, method)]
            scores = np.array([r.score for r in mine])
            surprise = [r.surprise for r in mine if r.surprise is not None]
            spread = f"{scores.mean():.4f} ± {scores.std():.4f}"
            shown = f"{np.mean(surprise):.4f}" if surprise else "–"
            print(f"{name:<15}{method:<10}{spread:>22}{shown:>10}{np.mean([r.seconds for r in mine]):>9.1f}")
    small = [r for r in results if r.data in SMALL]
    if small:
        print("mean rank over the small sets by error or RMSE:", ranks(small, "score"))
        print("mean rank over the small sets by log-loss:     ", ranks(small, "surprise"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["diamonds", *SMALL], choices=["diamonds", *SMALL])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=1, help="how often all is repeated with other folds")
    parser.add_argument("--out", type=Path, help="where to keep every single result as JSON")
    given = parser.parse_args()
    results = []
    for result in measure(given.data, given.seeds, given.methods):
        results.append(result)
        print(json.dumps(asdict(result)), flush=True)
        if given.out:
            given.out.write_text(json.dumps([asdict(r) for r in results], indent=1))
    show(results)


if __name__ == "__main__":
    main()
