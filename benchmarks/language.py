"""How well a language model tells verses, in bits per byte, beside n-grams, compressors and nanoGPT's recipe.

    python benchmarks/language.py [--epochs 20] [--seeds 1] [--skip-nanogpt] [--rows N]

All learn from the training rows of the bundled sample `verses` (English) and are judged on its test rows, each verse
alone, its end told as well. Fathom, the n-grams and nanoGPT's recipe tell the same tokens, those of the byte-pair
tokenizer that Fathom learns from the training rows:

    5-gram          interpolated Kneser-Ney with three discounts an order (Chen, Goodman, An Empirical Study of
                    Smoothing Techniques for Language Modeling, 1999); no n-gram reaches over a verse's beginning
    gzip, xz        the bytes that the test verses add to the compressed training verses, a line each
    nanoGPT         a network of the same sizes (transformers' GPT-2), trained as nanoGPT trains on small data: windows
                    of a stream of verses that ignore where verses end, AdamW (0.9, 0.99), weight decay 0.1, warm-up and
                    cosine, clipping at 1, dropout as Fathom's; on as many tokens as Fathom saw

The figures go to results/language.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import os
import platform
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

import fathom
from fathom.core.types import END, PAD
from fathom.data._samples import find

RESULTS = Path(__file__).parent / "results" / "language.json"
ORDER = 5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--vocabulary", type=int, default=4096)
    options.add_argument("--width", type=int, default=192)
    options.add_argument("--depth", type=int, default=4)
    options.add_argument("--heads", type=int, default=6)
    options.add_argument("--dropout", type=float, default=0.1)
    options.add_argument("--batch", type=int, default=32, help="verses of a step")
    options.add_argument("--rows", type=int, default=0, help="training and test rows at most; 0: all")
    options.add_argument("--skip-nanogpt", action="store_true")
    options.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="sets", help="options of every training of Fathom's"
    )
    given = options.parse_args()
    verses = pl.read_parquet(find("verses").path)
    train, test = (verses.filter(pl.col("split") == part)["text"] for part in ("train", "test"))
    if given.rows:
        train, test = train.head(given.rows), test.head(given.rows)
    runs = [by_fathom(train, test, given, seed) for seed in range(given.seeds)]
    model, own = runs[0].pop("model"), [{k: v for k, v in run.items() if k != "model"} for run in runs]
    documents = [tokens_of(model, part) for part in (train, test)]
    size = sum(len(text.encode()) for text in test)
    found = {"fathom": own, "5-gram": by_ngrams(*documents, size, given.vocabulary)}
    found |= {name: by_compressor(train, test, press) for name, press in COMPRESSORS.items()}
    if not given.skip_nanogpt:
        told = sum(map(len, documents[0])) * given.epochs
        found["nanogpt"] = [by_nanogpt(*documents, size, told, given, seed) for seed in range(given.seeds)]
    record = {
        "what": f"{len(train):,} verses to learn from, {len(test):,} of {size:,} bytes to judge by",
        "settings": vars(given),
        "bits_per_byte": found,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    show(found)


def by_fathom(train: pl.Series, test: pl.Series, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    model = {"name": "gpt", "width": given.width, "depth": given.depth, "num_heads": given.heads}
    trained = fathom.fit(
        train.to_frame(),
        test=test.to_frame(),
        objective="next_token",
        seed=seed,
        epochs=given.epochs,
        config={
            "model": {**model, "dropout": given.dropout},
            "prepare": {"vocabulary": given.vocabulary, "text_length": 128},
            "engine": {"batch_size": given.batch},
            "split": {"valid": 0.03},
        },
        sets=given.sets,
        progress=True,
    )
    measured = trained.metrics["measures"]["bits_per_byte"]
    parameters = sum(p.numel() for p in trained.module.parameters())
    seconds = time.perf_counter() - began
    return {"value": measured["value"], "seconds": seconds, "parameters": parameters, "model": trained} | {
        key: measured[key] for key in ("low", "high")
    }


def tokens_of(model: Any, texts: pl.Series) -> list[list[int]]:
    """Return each text as Fathom reads it: START … END."""
    encoder = model.artifact.preprocess.texts[0]
    rows = np.zeros((len(texts), encoder.length), dtype=np.int32)
    encoder.encode(texts, rows)
    return [row[row != PAD].tolist() for row in rows]


class KneserNey:
    """Interpolated Kneser-Ney. A context is the tokens before, within the same verse, at most `ORDER` − 1.

    Attributes:
        rows: by context its tokens' counts: real ones where nothing can stand before the n-gram (it is of the highest
            order, or begins a verse), else in how many different contexts it stands.
    """

    def __init__(self, documents: list[list[int]], vocabulary: int) -> None:
        self.uniform = 1.0 / vocabulary
        real: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(ORDER + 1)]
        for tokens in documents:
            for place in range(1, len(tokens)):
                for order in range(1, min(ORDER, place + 1) + 1):
                    real[order][tuple(tokens[place - order + 1 : place + 1])] += 1
        counts: list[dict[tuple[int, ...], int]] = [{} for _ in range(ORDER + 1)]
        counts[ORDER] = real[ORDER]
        for order in range(1, ORDER):
            before = Counter(gram[1:] for gram in real[order + 1])
            first = documents[0][0]
            counts[order] = {g: c if g[0] == first else before[g] for g, c in real[order].items()}
        self.rows: list[dict[tuple[int, ...], dict[int, int]]] = [defaultdict(dict) for _ in range(ORDER + 1)]
        for order in range(1, ORDER + 1):
            for gram, count in counts[order].items():
                self.rows[order][gram[:-1]][gram[-1]] = count
        self.discounts = [_discounts(each.values()) for each in counts]
        self.left: list[dict[tuple[int, ...], tuple[float, float]]] = [
            {context: self._weights(order, row) for context, row in self.rows[order].items()}
            for order in range(ORDER + 1)
        ]

    def _weights(self, order: int, row: dict[int, int]) -> tuple[float, float]:
        """Return a context's total count, and the share of probability that is left to shorter contexts."""
        total = sum(row.values())
        return total, sum(self.discounts[order][min(count, 3)] for count in row.values()) / total

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        found = self.uniform
        for order in range(1, len(context) + 2):
            part = context[len(context) - order + 1 :]
            row = self.rows[order].get(part)
            if row is None:
                break  # nor is any longer one known
            total, left = self.left[order][part]
            count = row.get(token, 0)
            found = max(count - self.discounts[order][min(count, 3)], 0.0) / total + left * found
        return found


def _discounts(counts: Any) -> tuple[float, float, float, float]:
    """Return what is taken from counts of 0, 1, 2 and more (Chen and Goodman's estimates)."""
    times = Counter(min(count, 5) for count in counts)
    share = times[1] / max(1, times[1] + 2 * times[2])
    found = [0.0]
    for count in (1, 2, 3):
        usual = count - (count + 1) * share * times[count + 1] / max(1, times[count])
        found.append(min(max(usual, 0.1), count))
    return tuple(found)  # type: ignore[return-value]


def by_ngrams(train: list[list[int]], test: list[list[int]], size: int, vocabulary: int) -> dict[str, float]:
    began = time.perf_counter()
    model = KneserNey(train, vocabulary)
    for context in ((), (train[0][0],), tuple(train[0][:3])):  # probabilities add up to one
        assert abs(sum(model.probability(token, context) for token in range(vocabulary)) - 1) < 1e-9
    nats = 0.0
    for tokens in test:
        for place in range(1, len(tokens)):
            nats -= math.log(model.probability(tokens[place], tuple(tokens[max(0, place - ORDER + 1) : place])))
    return {"value": nats / math.log(2) / size, "seconds": time.perf_counter() - began}


COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def by_compressor(train: pl.Series, test: pl.Series, press: Any) -> dict[str, float]:
    before, after = ("".join(f"{text}\n" for text in part).encode() for part in (train, test))
    alone, added = len(press(after)), len(press(before + after)) - len(press(before))
    return {"value": 8 * added / (len(after) - len(test)), "alone": 8 * alone / (len(after) - len(test))}


def by_nanogpt(
    train: list[list[int]], test: list[list[int]], size: int, told: int, given: argparse.Namespace, seed: int
) -> dict[str, float]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    began, block, batch = time.perf_counter(), 128, 16
    config = GPT2Config(
        vocab_size=given.vocabulary, n_positions=block, n_embd=given.width, n_layer=given.depth, n_head=given.heads,
        resid_pdrop=given.dropout, embd_pdrop=given.dropout, attn_pdrop=given.dropout, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}]
    groups.append({"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    order = np.random.default_rng(seed).permutation(len(train))
    stream = torch.tensor([token for row in order for token in train[row]])
    steps = told // (block * batch)
    warm = min(100, steps // 10)
    for step in range(steps):
        share = (step - warm) / max(1, steps - warm)
        rate = 1e-3 * (step + 1) / warm if step < warm else 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(stream) - block, (batch,))
        windows = stream[starts[:, None] + torch.arange(block + 1)]
        logits = model(windows[:, :-1]).logits
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {"value": _bits(model.eval(), test) / size, "seconds": time.perf_counter() - began}


@torch.no_grad()
def _bits(model: Any, documents: list[list[int]]) -> float:
    """Return the bits that all tokens but the first of each document take."""
    total = 0.0
    for start in range(0, len(documents), 64):
        rows = documents[start : start + 64]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [END] * (longest - len(row)) for row in rows])
        real = torch.arange(1, longest) < torch.tensor([[len(row)] for row in rows])
        costs = F.cross_entropy(model(tokens[:, :-1]).logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        total += float((costs * real).sum()) / math.log(2)
    return total


def show(found: dict[str, Any]) -> None:
    for name, figures in found.items():
        each = figures if isinstance(figures, list) else [figures]
        values = [figure["value"] for figure in each]
        more = f", {each[0]['alone']:.3f} by itself" if "alone" in each[0] else ""
        print(f"{name:<8} {np.mean(values):.3f} bits per byte{more}")


if __name__ == "__main__":
    main()
