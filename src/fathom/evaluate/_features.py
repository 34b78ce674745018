"""What the simple baselines see: the same preprocessed columns as the model, as one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.core.types import Batch, DataSpec, Field

LINEAR_SIDE, TREE_SIDE = 32, 14  # pixels, of an image's side
TREE_TOPICS = 32  # dimensions that trees see of a text
TREE_CLASSES = 255  # of a category, beyond which trees see it as a number

Texts = Mapping[str, tuple[Sequence[str], Sequence[str]]]  # by field: of the training rows, of the test rows


@dataclass
class Matrices:
    """A matrix of the training rows and one of the test rows, with what was done to make them small."""

    train: Any  # [N, F], dense or sparse
    test: Any
    notes: tuple[str, ...] = ()
    categorical: tuple[int, ...] = ()  # columns that hold codes


def linear(train: Batch, test: Batch, spec: DataSpec, texts: Texts) -> Matrices:
    """Standardised numbers, one-hot categories, pixels, and TF-IDF of words and word pairs, side by side."""
    from scipy import sparse
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    parts: list[tuple[Any, Any]] = []
    notes = []
    if spec.numbers:
        scaler = StandardScaler().fit(_numpy(train["number"]))
        parts.append((scaler.transform(_numpy(train["number"])), scaler.transform(_numpy(test["number"]))))
    if spec.categories:
        encoder = OneHotEncoder(handle_unknown="ignore", dtype=np.float32).fit(_numpy(train["category"]))
        parts.append((encoder.transform(_numpy(train["category"])), encoder.transform(_numpy(test["category"]))))
    for field in spec.images:
        first, note = pixels(train[field.key], LINEAR_SIDE)
        mean, std = first.mean(), first.std() or 1.0
        parts.append(((first - mean) / std, (pixels(test[field.key], LINEAR_SIDE)[0] - mean) / std))
        notes += [note] if note else []
    for field in spec.texts:
        parts.append(tf_idf(*_texts(field, train, test, texts)))
    if not any(sparse.issparse(a) for a, _ in parts):
        return Matrices(np.hstack([a for a, _ in parts]), np.hstack([b for _, b in parts]), tuple(notes))
    first, second = (sparse.hstack([p[i] for p in parts]).tocsr() for i in (0, 1))
    return Matrices(first, second, tuple(notes))


def trees(train: Batch, test: Batch, spec: DataSpec, texts: Texts, seed: int) -> Matrices:
    """Numbers as the model gets them (gaps filled, far values drawn in: their order, which is all that trees see, is
    kept), category codes, small images, and the main directions of TF-IDF, side by side."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    notes, categorical = [], []
    if spec.categories:
        parts.append((_numpy(train["category"]), _numpy(test["category"])))
        categorical = [i for i, f in enumerate(spec.categories) if len(f.classes) <= TREE_CLASSES]
    if spec.numbers:
        parts.append((_numpy(train["number"]), _numpy(test["number"])))
    for field in spec.images:
        first, note = pixels(train[field.key], TREE_SIDE)
        parts.append((first, pixels(test[field.key], TREE_SIDE)[0]))
        notes += [note] if note else []
    for field in spec.texts:
        parts.append(_topics(*tf_idf(*_texts(field, train, test, texts)), seed=seed))
        notes.append(f"'{field.name}' as {parts[-1][0].shape[1]} main directions of its TF-IDF")
    first, second = (np.hstack([p[i] for p in parts]).astype(np.float32) for i in (0, 1))
    return Matrices(first, second, tuple(notes), tuple(categorical))


def tf_idf(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Return sparse matrices of words and word pairs that stand in at least two training texts (or in one)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def vectorizer(fewest: int) -> Any:
        return TfidfVectorizer(
            ngram_range=(1, 2), min_df=fewest, sublinear_tf=True, max_features=200_000, token_pattern=r"(?u)\b\w+\b"
        )

    try:
        fitted = vectorizer(2).fit(train)
    except ValueError:  # no word stands in two texts
        fitted = vectorizer(1).fit(train)
    return fitted.transform(train).astype(np.float32), fitted.transform(test).astype(np.float32)


def pixels(images: Any, side: int) -> tuple[np.ndarray, str]:
    """Return [N, C·H·W] float32 of 0 to 1, averaged down to `side` where larger, and a note that says so."""
    import torch
    from torch.nn import functional as F

    height, width = images.shape[-2:]
    small = (min(height, side), min(width, side))
    if small == (height, width):
        return (images.reshape(len(images), -1).float() / 255).numpy(), ""
    chunks = [F.adaptive_avg_pool2d(chunk.float(), small) for chunk in images.split(1024)]
    note = f"images averaged down to {small[1]}×{small[0]} pixels"
    return (torch.cat(chunks).reshape(len(images), -1) / 255).numpy(), note


def _topics(train: Any, test: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(max(1, min(TREE_TOPICS, min(train.shape) - 1)), random_state=seed).fit(train)
    return svd.transform(train), svd.transform(test)


def _texts(field: Field, train: Batch, test: Batch, texts: Texts) -> tuple[Sequence[str], Sequence[str]]:
    """Return the field's texts; where only tokens are at hand, their numbers serve as words."""
    if field.name in texts:
        return texts[field.name]
    first, second = (
        [" ".join(f"t{token}" for token in row if token != field.pad) for row in batch[field.key].tolist()]
        for batch in (train, test)
    )
    return first, second


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()
