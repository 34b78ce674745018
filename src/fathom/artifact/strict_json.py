"""JSON as an artifact holds it: one reading, or none.

Python's reader takes NaN, lets the last of two equal keys win, and turns 1e999 into infinity. What two readers may
understand differently is refused here, and so is what would exhaust memory or stack.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fathom.core.errors import ArtifactError

DEPTH = 64
LARGEST = 2**63


class _RefusedError(ValueError):
    pass


def read(path: Path, limit: int) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes.

    Raises:
        ArtifactError: not such a file; the message says where and why.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    if len(data) > limit:
        raise ArtifactError(f"'{path}' is larger than {limit:,} bytes, the most that such a file may have.")
    return parse(data, str(path))


def parse(data: bytes, origin: str) -> dict[str, Any]:
    """Return the JSON object in `data`; `origin` is what error messages call it.

    Raises:
        ArtifactError: not UTF-8, not JSON, not an object, or JSON that could be read in more than one way.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
        _check(value, DEPTH)
    except RecursionError:
        raise ArtifactError(f"'{origin}' is nested more than {DEPTH} deep.") from None
    except ValueError as error:  # also what is not UTF-8, or not JSON
        raise ArtifactError(f"'{origin}' cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"'{origin}' holds a {type(value).__name__}; expected a JSON object.")
    return value


def encode(value: Any) -> bytes:
    """Return `value` as indented UTF-8 JSON, the same bytes for the same value.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def plain(value: Any) -> Any:
    """Return measurements as JSON can hold them: numpy's numbers as Python's, what is not finite as null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RefusedError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return found


def _constant(text: str) -> Any:
    raise _RefusedError(f"{text} is no JSON number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError("a number is too large")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -LARGEST <= int(text) < LARGEST:
        raise _RefusedError("a whole number has more than 64 bits")
    return int(text)


def _check(value: Any, depth: int) -> None:
    """Refuse deep nesting, and halves of surrogate pairs, which no UTF-8 file could hold again."""
    if depth < 0:
        raise _RefusedError(f"it is nested more than {DEPTH} deep")
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for key, inner in value.items():
            key.encode("utf-8")
            _check(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth - 1)
