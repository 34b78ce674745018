"""Where it fails: the mistakes a model was surest of, and the numbers it missed by most."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fathom.core.types import Field

SIDE = 96  # pixels, of a shown image's longer side
LONGEST_TEXT = 600  # characters


def mistakes(target: Field, output: np.ndarray, truth: np.ndarray, limit: int = 24) -> list[dict[str, Any]]:
    """Return the worst mistakes, worst first.

    Args:
        target: a category or a number.
        output: probabilities [N, C], or values [N].
        truth: codes [N], or values [N]; rows whose truth is unknown are passed over.
        limit: how many at most.

    Returns:
        Of a category the wrong rows by the probability given to the wrong class, {"row", "truth", "predicted",
        "probability", "truth_probability"}; of a number the rows by absolute error, {"row", "truth", "predicted",
        "error"}. `row` is the position in `truth`.
    """
    output, truth = np.asarray(output), np.asarray(truth)
    if target.kind == "category":
        return _confident(target, output, truth, limit)
    error = output.reshape(-1).astype(np.float64) - truth.astype(np.float64)
    size = np.where(np.isfinite(error), np.abs(error), -1.0)
    rows = [int(i) for i in np.argsort(-size, kind="stable")[:limit] if size[i] > 0]
    return [
        {"row": i, "truth": float(truth[i]), "predicted": float(output.reshape(-1)[i]), "error": float(error[i])}
        for i in rows
    ]


def show(
    row: int,
    images: Mapping[str, Any] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Return what a reader needs to judge one row: {"images": {name: PNG data URI}, "texts": {name: text},
    "columns": {name: value as text}}.

    Args:
        row: its position.
        images: by name, uint8 [N, C, H, W], an array or tensor; C is 1 or 3.
        texts: by name, N texts.
        columns: by name, N values.
    """
    return {
        "images": {name: data_uri(np.asarray(pixels[row])) for name, pixels in (images or {}).items()},
        "texts": {name: _shorten(str(values[row]), LONGEST_TEXT) for name, values in (texts or {}).items()},
        "columns": {name: _shorten(_plain(values[row]), 80) for name, values in (columns or {}).items()},
    }


def data_uri(pixels: np.ndarray) -> str:
    """Return an image [C, H, W] uint8 as a PNG data URI, made smaller if it is large."""
    from PIL import Image

    shaped = pixels[0] if len(pixels) == 1 else pixels[:3].transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(shaped, dtype=np.uint8))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _confident(target: Field, probabilities: np.ndarray, truth: np.ndarray, limit: int) -> list[dict[str, Any]]:
    predicted = probabilities.argmax(1)
    sureness = probabilities.max(1)
    wrong = np.flatnonzero((predicted != truth) & (truth >= 0) & (truth < len(target.classes)))
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][:limit]
    return [
        {
            "row": int(i),
            "truth": target.classes[truth[i]],
            "predicted": target.classes[predicted[i]],
            "probability": float(sureness[i]),
            "truth_probability": float(probabilities[i, truth[i]]),
        }
        for i in worst
    ]


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _shorten(text: str, longest: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
