"""Vectors of words beside gensim's, on the same words with the same settings: loss, analogies, words a second.

    python benchmarks/words.py [--epochs 20] [--width 100]           (pip install gensim)

Both learn from the training rows of the bundled sample `verses` (English), the same tokens in the same order of verses:
those of the tokenizer that Fathom learns. Window 5, five negatives by counts to the power of 0.75, words above a share
of one in a thousand left out now and then, as many passes. gensim uses one thread. The loss is that of the paper, over
the same pairs of the test verses with the same negatives (numpy), without words left out.

The figures go to results/words.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import fathom
from fathom.core.types import PAD
from fathom.data._samples import find

RESULTS = Path(__file__).parent / "results" / "words.json"
WINDOW, NEGATIVES, THRESHOLD = 5, 5, 1e-3
ASKED = ["king", "bread", "jerusalem", "sea", "brother", "sword"]
# a is to b as c is to d
ANALOGIES = [
    ("man", "woman", "father", "mother"),
    ("man", "woman", "son", "daughter"),
    ("man", "woman", "brother", "sister"),
    ("he", "she", "his", "her"),
    ("husband", "wife", "father", "mother"),
    ("sons", "daughters", "brothers", "sisters"),
    ("go", "went", "come", "came"),
    ("speak", "spoke", "see", "saw"),
    ("day", "days", "year", "years"),
    ("city", "cities", "nation", "nations"),
    ("i", "my", "you", "your"),
    ("eat", "ate", "take", "took"),
]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--width", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rows", type=int, default=0, help="verses to learn from and judge by, at most; 0: all")
    options.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="sets", help="options of every training of Fathom's"
    )
    given = options.parse_args()
    verses = pl.read_parquet(find("verses").path)
    train, test = (verses.filter(pl.col("split") == part)["text"] for part in ("train", "test"))
    if given.rows:
        train, test = train.head(given.rows), test.head(given.rows)
    model, own = by_fathom(train, given)
    encoder = model.artifact.preprocess.texts[0]
    lines, judged = (_lines(encoder, texts) for texts in (train, test))
    words = sum(map(len, lines)) * given.epochs
    counts = np.bincount(np.concatenate(lines), minlength=model.artifact.spec.texts[0].vocabulary)
    theirs, tables = by_gensim(lines, counts, given)
    v = model.module.model.vectors.weight.detach().numpy()
    u = model.module.context.weight.detach().numpy()
    known = {w: t for w, t in _words(encoder).items() if counts[t]}
    found = {
        "fathom": own | {"words_per_second": words / own["seconds"], **figures(v, u, judged, counts, known)},
        "gensim": theirs | {"words_per_second": words / theirs["seconds"], **figures(*tables, judged, counts, known)},
    }
    record = {
        "what": f"{words // given.epochs:,} words of {len(lines):,} verses, {given.epochs} passes",
        "settings": vars(given),
        "found": found,
        "ratio": found["fathom"]["words_per_second"] / found["gensim"]["words_per_second"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    for name, each in found.items():
        print(
            f"{name:<7} loss {each['loss']:.3f}  analogies {each['analogies']}  {each['words_per_second']:,.0f} words/s"
        )
        for word, near in each["nearest"].items():
            print(f"        {word}: {', '.join(near)}")


def by_fathom(train: pl.Series, given: argparse.Namespace) -> tuple[Any, dict[str, float]]:
    """Return the model, and the seconds that its steps took: reading, validating and saving left out, as of gensim."""
    model = fathom.fit(
        train.to_frame(),
        objective="embed_words",
        epochs=given.epochs,
        seed=given.seed,
        config={
            "model": {"width": given.width},
            "objective": {"window": WINDOW, "negatives": NEGATIVES, "threshold": THRESHOLD},
            "split": {"test": 0.0, "valid": 0.0},
            "prepare": {"text_length": 128},
        },
        sets=given.sets,
        progress=True,
    )
    evidence = json.loads(model.files["evidence.json"])
    return model, {"seconds": evidence["run"]["seconds"]}


def by_gensim(lines: list[np.ndarray], counts: np.ndarray, given: argparse.Namespace) -> tuple[dict[str, float], Any]:
    from gensim.models import Word2Vec

    model = Word2Vec(
        vector_size=given.width, window=WINDOW, sg=1, hs=0, negative=NEGATIVES, ns_exponent=0.75, sample=THRESHOLD,
        min_count=1, workers=1, seed=given.seed, epochs=given.epochs,
    )  # fmt: skip
    sentences = [list(map(str, line)) for line in lines]
    model.build_vocab(sentences)
    began = time.perf_counter()
    model.train(sentences, total_examples=len(sentences), epochs=given.epochs)
    seconds = time.perf_counter() - began
    v, u = (np.zeros((len(counts), given.width), dtype=np.float32) for _ in range(2))
    places = np.array([int(key) for key in model.wv.index_to_key])
    v[places], u[places] = model.wv.vectors, model.syn1neg
    return {"seconds": seconds}, (v, u)


def figures(
    v: np.ndarray, u: np.ndarray, lines: list[np.ndarray], counts: np.ndarray, known: dict[str, int]
) -> dict[str, Any]:
    unit = v / np.linalg.norm(v, axis=1, keepdims=True).clip(1e-9)
    places = np.array(list(known.values()))
    names = {token: word for word, token in known.items()}

    def near(direction: np.ndarray, left_out: set[int], count: int) -> list[str]:
        order = places[np.argsort(-(unit[places] @ direction))]
        return [names[token] for token in order[: count + len(left_out)] if token not in left_out][:count]

    right = asked = 0
    for a, b, c, d in ANALOGIES:
        if not all(word in known for word in (a, b, c, d)):
            continue
        asked += 1
        direction = unit[known[b]] - unit[known[a]] + unit[known[c]]
        right += d in near(direction, {known[a], known[b], known[c]}, 5)
    nearest = {word: near(unit[known[word]], {known[word]}, 6) for word in ASKED if word in known}
    return {"loss": loss(v, u, lines, counts), "analogies": f"{right} of {asked} among the first 5", "nearest": nearest}


def loss(v: np.ndarray, u: np.ndarray, lines: list[np.ndarray], counts: np.ndarray) -> float:
    """Return the paper's loss over the pairs of these lines whose words both stand in the training verses."""
    rng = np.random.default_rng(0)
    chances = counts**0.75 / (counts**0.75).sum()
    total, pairs = 0.0, 0
    for line in lines[:2000]:
        line = line[counts[line] > 0]
        if len(line) < 2:
            continue
        far = np.abs(np.arange(len(line))[:, None] - np.arange(len(line)))
        w, c = np.nonzero((far > 0) & (far <= rng.integers(1, WINDOW + 1, len(line))[:, None]))
        negatives = rng.choice(len(counts), (len(w), NEGATIVES), p=chances)
        positive = (v[line[w]] * u[line[c]]).sum(1)
        negative = np.einsum("pd,pkd->pk", v[line[w]], u[negatives])
        total += np.logaddexp(0, -positive).sum() + np.logaddexp(0, negative).sum()
        pairs += len(w)
    return float(total / pairs)


def _lines(encoder: Any, texts: pl.Series) -> list[np.ndarray]:
    rows = np.zeros((len(texts), encoder.length), dtype=np.int32)
    encoder.encode(texts, rows)
    special = np.array(encoder.special)
    return [row[(row != PAD) & ~np.isin(row, special)] for row in rows]


def _words(encoder: Any) -> dict[str, int]:
    from fathom.api.nearest import _whole_words

    return _whole_words(encoder)


if __name__ == "__main__":
    main()
