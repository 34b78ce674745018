"""How well verses are translated from English into Spanish, beside a dictionary learned from the same pairs.

    python benchmarks/translate.py [--epochs 40] [--back-epochs 20] [--skip-back] [--rows N] [--more N]

The pairs are the New Testament's of the bundled sample `verses`; judged is on those that the sample keeps for testing,
by sacreBLEU (pip install sacrebleu).

    dictionary         IBM Model 1 (Brown, Della Pietra, Della Pietra, Mercer, The Mathematics of Statistical Machine
                       Translation, 1993), learned by expectation maximisation from the training pairs; each word
                       becomes its most probable one, in the same place
    translator         `fathom fit --objective translate` on the training pairs
    back-translation   the same in about as many steps, with verses of the Spanish Old Testament besides, whose English
                       is written by a translator from Spanish into English learned from the same pairs (Sennrich,
                       Haddow, Birch, Improving Neural Machine Translation Models with Monolingual Data, 2016)

The figures go to results/translate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import fathom
from fathom.api.translate import bleu
from fathom.data._samples import find

RESULTS = Path(__file__).parent / "results" / "translate.json"
PIECE = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
ROUNDS = 12


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--back-epochs", type=int, default=20)
    options.add_argument("--vocabulary", type=int, default=4096)
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--depth", type=int, default=2)
    options.add_argument("--heads", type=int, default=4)
    options.add_argument("--dropout", type=float, default=0.2)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rows", type=int, default=0, help="pairs to learn from and to judge by, at most; 0: all")
    options.add_argument("--more", type=int, default=0, help="verses of Spanish alone, drawn by chance; 0: all")
    options.add_argument("--skip-back", action="store_true")
    options.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="sets", help="options of every training of Fathom's"
    )
    given = options.parse_args()
    train, test, more = material(given.rows, given.more, given.seed)
    truth = test["spanish"].to_list()
    found: dict[str, Any] = {"dictionary": by_dictionary(train, test["text"].to_list(), truth)}
    show("dictionary", found["dictionary"])
    found["translator"] = judged(trained(train, "text", "spanish", given.epochs, given), test, truth)
    show("translator", found["translator"])
    if not given.skip_back:
        back = trained(train, "spanish", "text", given.back_epochs, given)
        written = back.predict(more.select("spanish"))["prediction"]
        both = pl.concat([train, more.with_columns(text=written).select(train.columns)])
        epochs = max(1, round(given.epochs * len(train) / len(both)))
        found["back-translation"] = judged(trained(both, "text", "spanish", epochs, given), test, truth)
        show("back-translation", found["back-translation"])
    record = {
        "what": f"{len(train):,} pairs to learn from, {len(test):,} to judge by, {len(more):,} verses of Spanish alone",
        "settings": vars(given),
        "found": found,
        "reached": found["translator"]["bleu"]["value"] > found["dictionary"]["bleu"]["value"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def material(rows: int, more: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return the pairs to learn from, those to judge by, and the Spanish verses of the Old Testament."""
    verses = pl.read_parquet(find("verses").path).drop_nulls("spanish")
    books = verses["book"].unique(maintain_order=True).to_list()
    new = verses.filter(pl.col("book").is_in(books[books.index("Matthew") :]))
    old = verses.filter(pl.col("book").is_in(books[: books.index("Matthew")]))
    train, test = (new.filter(pl.col("split") == part).select("text", "spanish") for part in ("train", "test"))
    old = old.select("text", "spanish")
    alone = old.sample(min(more, len(old)), seed=seed) if more else old
    return (train.head(rows), test.head(rows), alone) if rows else (train, test, alone)


def trained(pairs: pl.DataFrame, read: str, written: str, epochs: int, given: argparse.Namespace) -> Any:
    return fathom.fit(
        pairs.select(read, written),
        written,
        objective="translate",
        model="transformer_translator",
        epochs=epochs,
        seed=given.seed,
        config={
            "model": {
                "width": given.width,
                "depth": given.depth,
                "num_heads": given.heads,
                "dropout": given.dropout,
            },
            "prepare": {"vocabulary": given.vocabulary, "text_length": 96},
            "engine": {"batch_size": given.batch},
            "split": {"test": 0.0, "valid": 0.03},
        },
        sets=given.sets,
        progress=True,
    )


def judged(model: Any, test: pl.DataFrame, truth: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    found = model.predict(test.select("text"))["prediction"].to_list()
    seconds = time.perf_counter() - began
    return bleu(found, truth) | {"seconds": seconds, "examples": examples(test["text"].to_list(), found, truth)}


def by_dictionary(train: pl.DataFrame, texts: list[str], truth: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    english, spanish = ([PIECE.findall(text) for text in train[name]] for name in ("text", "spanish"))
    best = dictionary([[w.lower() for w in line] for line in english], spanish)
    found = [_joined([best.get(word.lower(), word) for word in PIECE.findall(text)]) for text in texts]
    seconds = time.perf_counter() - began
    return bleu(found, truth) | {"seconds": seconds, "examples": examples(texts, found, truth)}


def dictionary(english: list[list[str]], spanish: list[list[str]]) -> dict[str, str]:
    """Return the most probable Spanish word of each English one: t(f | e) of IBM Model 1, by expectation maximisation.

    Each pair of words that stand in one pair of verses is an entry; expected counts are sums over entries.
    """
    source = {word: i for i, word in enumerate(sorted({w for line in english for w in line}))}
    target = {word: i for i, word in enumerate(sorted({w for line in spanish for w in line}))}
    keys, spots = [], []  # of each alignment that may be: its pair of words, and the Spanish word that it explains
    spot = 0
    for one, other in zip(english, spanish, strict=True):
        e, f = np.array([source[w] for w in one]), np.array([target[w] for w in other])
        keys.append((e[None] * len(target) + f[:, None]).ravel())  # [F · E]
        spots.append(np.repeat(np.arange(spot, spot + len(f)), len(e)))
        spot += len(f)
    entries, index = np.unique(np.concatenate(keys), return_inverse=True)
    place = np.concatenate(spots)
    of = entries // len(target)
    chances = np.full(len(entries), 1.0 / len(target))
    for _ in range(ROUNDS):
        share = chances[index]
        share /= np.bincount(place, share, spot)[place]  # which English word a Spanish one comes from
        expected = np.bincount(index, share, len(entries))
        chances = expected / np.bincount(of, expected, len(source))[of]
    order = np.lexsort((-chances, of))
    first = order[np.unique(of[order], return_index=True)[1]]
    names, words = list(target), list(source)
    return {words[of[i]]: names[entries[i] % len(target)] for i in first}


def _joined(words: list[str]) -> str:
    return re.sub(r" ([^\w\s¿¡“‘(])", r"\1", " ".join(words))


def examples(texts: list[str], found: list[str], truth: list[str]) -> list[dict[str, str]]:
    places = range(0, len(texts), max(1, len(texts) // 4))
    return [{"english": texts[i], "found": found[i], "true": truth[i]} for i in places][:4]


def show(name: str, figures: dict[str, Any]) -> None:
    told = (
        f"{key} {figures[key]['value']:.1f} [{figures[key]['low']:.1f} – {figures[key]['high']:.1f}]"
        for key in ("bleu", "chrf")
    )
    print(f"{name:<17} {'  '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
