"""Cut the bundled sample `fashion` from Fashion-MNIST: `python scripts/samples/fashion.py [FOLDER]`.

FOLDER holds the four files of the data set, as the Debian package `dataset-fashion-mnist` installs them. 1,000 training
and 200 test images of each class are drawn with a fixed seed and kept in their first order; each becomes a grey PNG in
the smallest of its encodings. The result is one Parquet with the columns image {bytes, path}, label and split.

Source: Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017.
"""

from __future__ import annotations

import gzip
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import polars as pl

FOLDER = Path("/usr/share/datasets/fashion-mnist")
RESULT = Path(__file__).parents[2] / "src" / "fathom" / "samples" / "fashion.parquet"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SEED = 0
PARTS = (("train", "train", 1_000), ("test", "t10k", 200))  # split, name of its files, images of each class


def read_idx(path: Path) -> np.ndarray:
    """Return the array of a gzipped IDX file: two zero bytes, type 8 (uint8), rank, the sizes, the values."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def png(image: np.ndarray) -> bytes:
    """Return a grey image [H, W] as the smallest PNG that one filter for all its rows gives."""
    bodies = (zlib.compress(rows, 9) for rows in _filtered(image))
    height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey, not interlaced
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", min(bodies, key=len)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _filtered(image: np.ndarray) -> list[bytes]:
    """Return the rows under PNG's first four filters: as they are, less the left, the upper, the mean of both."""
    x = image.astype(np.int16)
    left, upper = np.zeros_like(x), np.zeros_like(x)
    left[:, 1:], upper[1:] = x[:, :-1], x[:-1]
    guesses = (np.zeros_like(x), left, upper, (left + upper) // 2)
    rows = ((x - guess).astype(np.uint8) for guess in guesses)
    return [np.pad(r, ((0, 0), (1, 0)), constant_values=kind).tobytes() for kind, r in enumerate(rows)]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def part(folder: Path, split: str, files: str, each: int) -> pl.DataFrame:
    """Return `each` images of every class of one part, in their first order."""
    images = read_idx(folder / f"{files}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{files}-labels-idx1-ubyte.gz")
    random = np.random.default_rng(SEED)
    chosen = np.sort(np.concatenate([random.permutation(np.flatnonzero(labels == c))[:each] for c in range(10)]))
    return pl.DataFrame(
        {
            "image": [{"bytes": png(images[i]), "path": f"{split}/{i:05d}.png"} for i in chosen],
            "label": [CLASSES[labels[i]] for i in chosen],
            "split": [split] * len(chosen),
        }
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    frame = pl.concat([part(folder, *p) for p in PARTS])
    frame.write_parquet(RESULT, compression="zstd", row_group_size=len(frame))
    print(f"{RESULT}: {len(frame):,} rows, {RESULT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
