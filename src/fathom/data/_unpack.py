"""Files under gzip's compression."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.core.errors import DataError

CHUNK = 1 << 23


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the path, or that of a temporary copy without the compression, whose name lacks ".gz".

    Raises:
        DataError: the compression is damaged.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fathom-") as folder:
        copy = Path(folder) / (path.stem if path.suffix.lower() == ".gz" else path.name)
        try:
            with gzip.open(path, "rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
        except (OSError, EOFError) as error:
            raise DataError(f"'{path.name}' cannot be unpacked: {error}.") from None
        yield copy
