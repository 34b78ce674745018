"""Images made by a trained generator, and the file that they are looked at in.

sampled      an objective that makes images -> the images
made_of      rows -> what an image to image network makes of them, an autoencoder puts between them, or a model of
             masked images puts back into them
place        where a PNG is to be written -> the same, once it is known that it can be
write_grid   images -> a PNG in which they stand side by side
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.artifact import Artifact, evaluating
from fathom.core.errors import ConfigError, DataError, did_you_mean
from fathom.core.objective import Objective, with_role
from fathom.core.roles import Sampler
from fathom.core.types import Batch, DataSpec
from fathom.data import Preprocess, Table
from fathom.evaluate import grid

MOST = 100_000  # images at a time
SHOWN_SIDE = 64  # pixels, at least, that an image is shown in


def sampled(
    objective: Objective,
    spec: DataSpec,
    count: int = 64,
    classes: Sequence[str] = (),
    seed: int = 0,
    captions: torch.Tensor | None = None,
    **how: Any,
) -> np.ndarray:
    """Return images [N, C, H, W] in 0 … 1; the same seed gives the same.

    Args:
        classes: to make images of, in turn; none: what the model makes by itself.
        captions: [K, T], tokens of what is to be seen, in turn; see `tokens`.
        how: of a diffusion model, `steps` and `guidance`, where they are to be others than in training.

    Raises:
        ConfigError: the model makes no images, cannot be told classes or such options, or a class is unknown.
    """
    _check_count(count)
    maker = with_role(objective, Sampler)
    if maker is None:
        raise ConfigError(
            f"A model trained by {type(objective).__name__} makes no images; train one with --objective diffuse, "
            "adversarial, or autoencode with the model vae."
        )
    how = {name: value for name, value in how.items() if value is not None}
    known = signature(maker.sample).parameters
    for name in how:
        if name not in known:
            raise ConfigError(f"Option '{name}' is for diffusion models; {type(maker).__name__} has no such thing.")
    label = _codes(classes, spec, count) if classes else None
    if captions is not None:
        how["caption"] = captions[torch.arange(count) % len(captions)]
    where = next(objective.parameters()).device
    with evaluating(objective, where):
        images = maker.sample(count, torch.Generator().manual_seed(seed), label, **how)
    found: np.ndarray = images.float().cpu().numpy()
    return found


def tokens(prompts: Sequence[str], preprocess: Preprocess, objective: Objective) -> torch.Tensor:
    """Return what texts are to a model that makes images of what they say: [K, T].

    Raises:
        ConfigError: it was not trained on images with captions.
    """
    import polars as pl

    if all(getattr(part, "words", None) is None for part in objective.members()):
        raise ConfigError(
            f"Nothing can be asked of this model in words, such as '{prompts[0]}': train one with --objective diffuse "
            "on a table of images and a text column that says what is to be seen on each."
        )
    encoder = preprocess.texts[0]
    found = np.empty((len(prompts), encoder.length), dtype=np.int32)
    encoder.encode(pl.Series(list(prompts), dtype=pl.String), found)
    return torch.from_numpy(found).long()


def made_of(found: Artifact, table: Table, count: int) -> np.ndarray:
    """Return pictures [N, C, H', W'] in 0 … 1 of the first rows that can be read: of an image to image network each
    above what it makes of it, of an autoencoder the way from each row to the next, of a model of masked images each
    above what is seen of it, above that with what the model puts back.

    Raises:
        ConfigError: the model is none of these. DataError: no row can be read.
    """
    _check_count(count)
    pictures = _pictures_of(found)
    prepared = found.preprocess.transform(table.frame[:count], folder=table.folder)
    if not len(prepared.rows) or not found.spec.images:
        why = prepared.set_aside[0].reason if prepared.set_aside else "it holds no image"
        raise DataError(f"Nothing of {table.origin} can be shown: {why}.")
    batch = prepared.store.gather(torch.arange(len(prepared.rows)))
    with evaluating(found.module, next(found.module.parameters()).device):
        made: np.ndarray = pictures(batch).float().cpu().numpy()
    return made


def place(out: Path) -> Path:
    """Return where a PNG is to be written, before it is known what stands in it.

    Raises:
        ConfigError: the file is to be no PNG. DataError: it cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"'{out}' was given as the file to write; expected one that ends in .png.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        there = out.exists()
        out.open("ab").close()
        if not there:
            out.unlink()
    except OSError as error:
        raise DataError(f"'{out}' cannot be written: {error.strerror or error}.") from None
    return out


def write_grid(images: np.ndarray, out: Path) -> None:
    """Write images [N, C, H, W] in 0 … 1 side by side into a PNG; wide ones one below the other.

    Raises:
        ConfigError: the file is to be no PNG. DataError: it cannot be written.
    """
    across = 1 if images.shape[-1] > 3 * images.shape[-2] else 8
    png = grid(images, across, zoom=max(1, SHOWN_SIDE // min(images.shape[-2:])))
    try:
        place(out).write_bytes(png)
    except OSError as error:
        raise DataError(f"'{out}' cannot be written: {error.strerror or error}.") from None


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST:
        raise ConfigError(f"Images to make were given as {count}; expected 1 to {MOST:,}.")


def _pictures_of(found: Artifact) -> Callable[[Batch], torch.Tensor]:
    """Return what makes pictures [N, C, H', W'] of a batch of images, by what the model was trained for."""

    def translated(objective: Any, batch: Batch) -> torch.Tensor:
        given = batch[found.spec.images[0].key].float() / 255
        return torch.cat([given, objective.translated(batch).cpu()], dim=2)

    def interpolate(objective: Any, batch: Batch) -> torch.Tensor:
        between: torch.Tensor = next(iter(objective.interpolate(batch).values()))  # [B, S, C, H, W]
        return between.permute(0, 2, 3, 1, 4).flatten(3)

    def put_back(objective: Any, batch: Batch) -> torch.Tensor:
        three: torch.Tensor = objective.put_back(batch)  # [B, 3, C, H, W]
        return three.transpose(1, 2).flatten(2, 3)

    for part in found.module.members():
        for way in (translated, interpolate, put_back):
            if hasattr(part, way.__name__):
                return partial(way, part)
    raise ConfigError(
        f"A model trained by {type(found.module).__name__} makes nothing of given images; expected one trained by "
        "translate_image, autoencode or masked_image."
    )


def _codes(classes: Sequence[str], spec: DataSpec, count: int) -> torch.Tensor:
    """Return the code of each image's class [N]: the given ones in turn."""
    known = spec.targets[0].classes if spec.targets else ()
    for name in classes:
        if not known:
            raise ConfigError(f"Class '{name}' cannot be asked for: the model was trained without classes.")
        if name not in known:
            raise ConfigError(f"There is no class '{name}'.{did_you_mean(name, known)}")
    codes = torch.tensor([known.index(name) for name in classes])
    return codes[torch.arange(count) % len(codes)]
