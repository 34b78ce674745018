"""Tables larger than memory: streamed into a temporary Arrow file that is mapped into memory.

Mapping takes pyarrow (polars itself copies); without it such a table is held in memory after all.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from fathom.data._clean import clean_lazily

SHARE = 0.25  # of the free memory: a larger file is not held in memory


def limit() -> int:
    """Return the bytes beyond which a file is mapped instead of held in memory."""
    from fathom.data._tensors import free_memory

    return int(SHARE * free_memory())


def spill(table: pl.LazyFrame) -> pl.DataFrame:
    """Return the table, cleaned, as a frame whose columns lie in a temporary file.

    The file is deleted at once where the system lets a mapped file live on without its name, else at exit.
    """
    if find_spec("pyarrow") is None:
        return clean_lazily(table).collect(engine="streaming")
    handle, name = tempfile.mkstemp(prefix="fathom-", suffix=".arrow", dir=_folder())
    os.close(handle)
    path = Path(name)
    try:
        clean_lazily(table).sink_ipc(path, compression="uncompressed")
        return _mapped(path)
    finally:
        try:
            path.unlink()
        except PermissionError:  # Windows keeps a mapped file
            atexit.register(path.unlink, missing_ok=True)


def _mapped(path: Path) -> pl.DataFrame:
    import pyarrow as pa

    frame = pl.from_arrow(pa.ipc.open_file(pa.memory_map(str(path))).read_all(), rechunk=False)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _folder() -> str | None:
    """$TMPDIR, else /var/tmp, which unlike /tmp never lies in memory."""
    return None if "TMPDIR" in os.environ or not Path("/var/tmp").is_dir() else "/var/tmp"
