"""Image columns: from files or bytes to one uint8 tensor [N, C, H, W].

load            a value (bytes, path, or {bytes, path}) -> the bytes of its file
decode          the bytes -> uint8 [C, H, W], upright, of one size and colour
ImageEncoder    what size and colour the training images have, and every image brought to it

Only formats that are pure pixels are read (no PostScript, no vectors), nothing above `MOST_PIXELS`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from PIL import Image, ImageOps

from fathom.core.errors import DataError
from fathom.core.types import Field, Stats

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
MOST_PIXELS = 80_000_000  # of one image; a small file may claim to be far larger
MOST_BYTES = 256_000_000  # of one file
CAP = 224  # side that larger images are brought to unless the user says otherwise
PROBE, COLOUR_PROBE = 1000, 200  # training images whose size, and whose colours, decide
CHUNK = 512  # images taken out of the table at once
MEASURED = 10_000  # images that the statistics are taken from
NEAR_GREY = 8  # levels by which the channels of a grey image may differ after lossy compression


class UnreadableError(Exception):
    """Why an image is set aside."""


def load(value: Any, folder: Path | None = None, paths: bool = True) -> bytes:
    """Return the bytes of an image's file.

    Args:
        value: bytes, a path, or a dict of `bytes` and `path` as Hugging Face data sets have it.
        folder: where relative paths start; the working folder where None.
        paths: whether paths are followed at all. They lead wherever the table's author likes: right for a user's own
            table, wrong for a request from the network.

    Raises:
        UnreadableError: saying why.
    """
    if isinstance(value, dict):
        data = value.get("bytes")
        value = data if data is not None else value.get("path")
    if value is None or value in ("", b""):
        raise UnreadableError("image is missing")
    if isinstance(value, bytes):
        if len(value) > MOST_BYTES:
            raise UnreadableError(f"image has {len(value):,} bytes; the most is {MOST_BYTES:,}")
        return value
    if not isinstance(value, (str, os.PathLike)):
        raise UnreadableError(f"an image is bytes or a path, not {type(value).__name__}")
    if not paths:
        raise UnreadableError("a path was given where only the bytes of an image are accepted")
    path = Path(folder or ".") / value
    try:
        if not path.is_file():
            raise UnreadableError(f"there is no file '{value}'")
        if path.stat().st_size > MOST_BYTES:
            raise UnreadableError(f"'{value}' has {path.stat().st_size:,} bytes; the most is {MOST_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UnreadableError(
            f"'{str(value)[:200]}' cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_formats())
    if image.width * image.height > MOST_PIXELS:
        raise UnreadableError(f"image has {image.width} × {image.height} pixels; the most is {MOST_PIXELS:,}")
    return image


def decode(data: bytes, channels: int, height: int, width: int, fit: str = "stretch") -> np.ndarray:
    """Return uint8 [C, H, W]: turned upright, transparency on white, 16 bits brought to 8, animations' first frame.

    Args:
        channels: 1 (grey) or 3 (red, green, blue).
        fit: how an image of another shape fills H × W: "stretch", "crop" its middle, or "pad" with black.

    Raises:
        UnreadableError: the data are no image, are damaged, or are too large.
    """
    try:
        image = _open(data)
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (max(height, width),) * 2)  # decodes at a fraction of the size where that is enough
        pixels = np.asarray(_resize(_colour(_upright(image), channels), height, width, fit))  # [H, W] or [H, W, C]
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file makes a decoder raise whatever it likes
        raise UnreadableError(_why(error)) from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _why(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    return f"image is damaged: {str(error).strip() or type(error).__name__}"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the camera's orientation, where the file has one."""
    if "exif" in image.info or image.format in ("TIFF", "MPO"):
        return ImageOps.exif_transpose(image)
    return image


def _colour(image: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF" and image.mode != "1":
        image = _eight_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring 16-bit whole numbers, and fractions from 0 to 1, to 0–255."""
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels) * (255.0 if np.nanmax(pixels, initial=0) <= 1 else 1.0)
    elif pixels.dtype.itemsize > 1:
        pixels = pixels >> 8
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _resize(image: Image.Image, height: int, width: int, fit: str) -> Image.Image:
    if image.size == (width, height):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if fit == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """An image column.

    Attributes:
        channels, height, width: what every image is brought to.
        stats: of each channel over training images, in units of 0–255.
    """

    column: str
    channels: Literal[1, 3]
    height: int
    width: int
    fit_by: Literal["stretch", "crop", "pad"]
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        if not (1 <= self.height <= 4096 and 1 <= self.width <= 4096):
            raise ValueError("the sides of an image are 1 to 4096 pixels")
        if not all(map(math.isfinite, (*self.stats.mean, *self.stats.std))):
            raise ValueError("statistics are finite numbers")

    @classmethod
    def fit(
        cls,
        name: str,
        series: pl.Series,
        sample: np.ndarray,
        folder: Path | None,
        size: int,
        colour: str,
        fit_by: Literal["stretch", "crop", "pad"],
    ) -> ImageEncoder:
        """Decide size and colour from training images among those at `sample`.

        Raises:
            DataError: none of them can be read.
        """
        sizes, grey, reason = _probe(series.gather(sample[:: max(1, math.ceil(len(sample) / PROBE))]).to_list(), folder)
        if not sizes:
            raise DataError(f"No image of column '{name}' can be read: {reason}.")
        height, width = _common_size(sizes) if size == 0 else (size, size)
        one = colour == "grey" or (colour == "auto" and sum(grey) >= 0.99 * max(1, len(grey)))
        return cls(column=name, channels=1 if one else 3, height=height, width=width, fit_by=fit_by)

    @property
    def output(self) -> Field:
        shape = (self.channels, self.height, self.width)
        return Field(name=self.column, kind="image", source=self.column, shape=shape, stats=self.stats)

    def encode(
        self, series: pl.Series, rows: np.ndarray, pixels: np.ndarray, folder: Path | None, paths: bool
    ) -> dict[int, str]:
        """Write the images at `rows` of the series to `pixels` [N, C, H, W]; return why some (places in N) are not."""
        failed: dict[int, str] = {}

        def one(place: int, value: Any) -> None:
            try:
                data = load(value, folder, paths)
                pixels[place] = decode(data, self.channels, self.height, self.width, self.fit_by)
            except UnreadableError as error:
                failed[place] = str(error)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(rows), CHUNK):
                values = series.gather(rows[start : start + CHUNK]).to_list()
                for _ in pool.map(one, range(start, start + len(values)), values, chunksize=32):
                    pass
        return dict(sorted(failed.items()))

    def measured(self, pixels: np.ndarray) -> ImageEncoder:
        """Return this encoder with the statistics of training images `pixels` [N, C, H, W]."""
        step = max(1, len(pixels) // MEASURED)
        levels = np.arange(256)
        counts = np.zeros((self.channels, 256))
        for start in range(0, len(pixels), step * CHUNK):
            some = pixels[start : start + step * CHUNK : step]
            for channel in range(self.channels):
                counts[channel] += np.bincount(some[:, channel].ravel(), minlength=256)
        share = counts / counts.sum(1, keepdims=True)  # [C, 256]
        mean = share @ levels
        std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
        std[std == 0] = 1.0  # others divide by it
        seen = [np.flatnonzero(row) for row in counts]
        stats = Stats(
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            minimum=tuple(float(s[0]) for s in seen),
            maximum=tuple(float(s[-1]) for s in seen),
        )
        return replace(self, stats=stats)


def _probe(values: Sequence[Any], folder: Path | None) -> tuple[list[tuple[int, int]], list[bool], str]:
    """Return (height, width) of the readable images, whether each of some of them is grey, and the last reason."""
    sizes: list[tuple[int, int]] = []
    grey: list[bool] = []
    reason = "there is none"
    every = math.ceil(len(values) / COLOUR_PROBE)  # spread, for tables are often sorted by class
    for place, value in enumerate(values):
        try:
            image = _open(load(value, folder))
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            size = image.size if turned else image.size[::-1]
            if place % every == 0:
                grey.append(_is_grey(image))
            sizes.append(size)
        except UnreadableError as error:
            reason = str(error)
        except Exception as error:
            reason = _why(error)
    return sizes, grey, reason


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF":
        return True
    image.draft(None, (64, 64))
    pixels = np.asarray(_colour(image, 3).resize((64, 64)), dtype=np.int16)
    return int((pixels.max(2) - pixels.min(2)).max()) <= NEAR_GREY


def _common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The one size all have, if it is not above `CAP`; else a square of their median shorter side."""
    if len(set(sizes)) == 1 and max(sizes[0]) <= CAP:
        return sizes[0]
    side = float(np.median([min(size) for size in sizes]))
    return (int(min(CAP, max(8, round(side / 8) * 8))),) * 2
