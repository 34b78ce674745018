"""Photographs mended, and put into another style: `python benchmarks/photographs.py [PART …] [--budget MINUTES]`.

    upscale     twice the side: decibels of all pieces together, beside cubic interpolation
    denoise     noise of a tenth of the range taken out: decibels beside the noisy image, and beside scikit-image's
                total variation, non-local means and wavelets, each of which is told how much noise there is
    colourise   colours of grey: decibels beside grey
    style       the look of one photograph on another: content and Gram losses as a trained classifier of Fathom's sees
                them, before and after; pictures go into --grids

Judged are pieces of six photographs within the package scikit-image. Networks never saw any of these: they learn from
pieces of its other pictures, of scikit-learn's two photographs and of those in the Debian packages `mate-backgrounds`
and `plasma-workspace-wallpapers`, where they are installed. Style is learned and judged among five of scikit-image's.
Each part trains for --budget minutes. The figures go to results/photographs.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from skimage import data, restoration
from sklearn.datasets import load_sample_images

import fathom
from fathom.api.sample import write_grid
from fathom.layers.likeness import psnr

RESULTS = Path(__file__).parent / "results" / "photographs.json"
JUDGED = ("astronaut", "camera", "chelsea", "coffee", "rocket", "stereo_motorcycle")
LEARNED = ("brick", "grass", "gravel", "hubble_deep_field", "immunohistochemistry", "retina")
NATURE = "Aqua Blinds Dune Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower"
PLASMA = "Autumn BytheWater ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path"
DESKTOPS = {
    "mate-backgrounds": tuple(f"/usr/share/backgrounds/mate/nature/{name}.jpg" for name in NATURE.split()),
    "plasma-workspace-wallpapers": tuple(
        f"/usr/share/wallpapers/{name}/contents/images/2560x1600.jpg" for name in PLASMA.split()
    ),
}
DESKTOP_WIDTHS = (480, 720, 1080)  # pixels that these large ones are brought to, so that they are sharp to the pixel
KINDS, UNSEEN = ("astronaut", "coffee", "hubble_deep_field", "retina", "immunohistochemistry"), ("chelsea", "rocket")
NOISE = 0.1
GREY, WHOLE = "prepare.image_colour=rgb", ("evaluate.baselines=false", "augment.shift=0")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    options.add_argument("--budget", type=float, default=5.0, help="minutes of each training")
    options.add_argument("--side", type=int, default=48, help="pixels of a piece's side")
    options.add_argument("--pieces", type=int, default=15_000, help="to learn from")
    options.add_argument("--model", default="edsr", help="what mends")
    options.add_argument("--grids", type=Path, help="folder for pictures")
    options.add_argument("--set", nargs="+", action="extend", default=[], help="an option of every training")
    given = options.parse_args()
    if given.grids:
        given.grids.mkdir(parents=True, exist_ok=True)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in given.parts or PARTS:
        found = PARTS[name](given)
        found |= {"budget_minutes": given.budget, "side": given.side, "pieces": given.pieces}
        known[name] = found | {"machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"}
        print(json.dumps({name: found}, indent=2), flush=True)
        RESULTS.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def mended(what: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Return what trains a network that mends images, and judges it by photographs that it never saw."""

    def run(given: argparse.Namespace) -> dict[str, Any]:
        seen = [halved(name) for name in LEARNED] + others()
        learned, judged = pieces(seen, given.side, given.pieces), pieces([halved(n) for n in JUDGED], given.side, 720)
        sets = [GREY, *WHOLE, "augment.flip=yes", "split.valid=0.03", *given.set]
        sets += [f"objective.noise={NOISE}"] if what == "denoise" else []
        how: dict[str, Any] = {"objective": what, "model": given.model, "minutes": given.budget, "seed": 0}
        model = fathom.fit(table(learned), test=table(judged), sets=sets, **how)
        found: dict[str, Any] = {"model": given.model, "pictures": len(seen), **together(model, judged)}
        each = {n: together(model, part) for n, part in zip(JUDGED, np.split(judged, len(JUDGED)), strict=True)}
        found["gain_db_of"] = {name: round(figures["gain_db"], 2) for name, figures in each.items()}
        if what == "denoise":
            found |= classical(judged)
        if given.grids:
            few = {model.artifact.spec.images[0].key: torch.from_numpy(judged[::90]).permute(0, 3, 1, 2)}
            with torch.inference_mode():
                write_grid(next(iter(model.module.eval().show(few).values())).numpy(), given.grids / f"{what}.png")
        return found

    return run


def together(model: fathom.Model, images: np.ndarray) -> dict[str, float]:
    """Return the decibels of all pieces together, mended and as they were spoiled: those of the mean of errors, since a
    flat piece alone has any number of them."""
    key = model.artifact.spec.images[0].key
    torch.manual_seed(0)
    rows: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(100):
            for name, values in model.module.eval().metrics({key: part}).items():
                rows.setdefault(name, []).append(values)
    means = {name: torch.cat(values) for name, values in rows.items()}
    found = {name: decibels(means[name]) for name in ("psnr", "psnr_before")}
    found |= {name: float(means[name].mean()) for name in ("ssim", "ssim_before")}
    return {"gain_db": found["psnr"] - found["psnr_before"], **found}


def decibels(each: torch.Tensor) -> float:
    return float(-10 * (10 ** (-each.double() / 10)).mean().log10())


def classical(images: np.ndarray) -> dict[str, float]:
    """Return the decibels of scikit-image's own ways to take noise out of pieces [N, H, W, 3]."""
    draw, wanted = np.random.default_rng(0), images[::6] / 255.0
    seen = wanted + NOISE * draw.normal(size=wanted.shape)
    ways = {
        "total_variation": lambda x: restoration.denoise_tv_chambolle(x, weight=NOISE, channel_axis=2),
        "non_local_means": lambda x: restoration.denoise_nl_means(x, h=0.8 * NOISE, sigma=NOISE, channel_axis=2),
        "wavelets": lambda x: restoration.denoise_wavelet(x, sigma=NOISE, channel_axis=2, rescale_sigma=True),
    }
    found = {}
    for name, way in ways.items():
        made = np.stack([way(image) for image in seen]).clip(0, 1)
        found[f"psnr_of_{name}"] = decibels(psnr(torch.from_numpy(made), torch.from_numpy(wanted)))
    return found


def style(given: argparse.Namespace) -> dict[str, Any]:
    """Train a classifier of photographs, and by what it sees a network that gives one the look of another."""
    learned = pieces([halved(name) for name in KINDS], given.side, 3000)
    kinds = np.repeat(KINDS, len(learned) // len(KINDS))
    sets = [GREY, *WHOLE, *given.set]
    with TemporaryDirectory() as folder:
        place, picture = Path(folder) / "judge", Path(folder) / "style.png"
        Image.fromarray(photograph("coffee")).resize((256, 256)).save(picture)
        seen = fathom.fit(
            table(learned, kinds), "kind", model="resnet", out=place, minutes=given.budget / 3, sets=sets, seed=0
        )
        sets += [f"objective.perceive.features={place}", f"objective.perceive.style={picture}"]
        sets += ["objective.translate_image.what=keep", "objective.translate_image.pixel_weight=0"]
        sets += ["objective.perceive.weight=1", "engine.keep=last"]
        judged = pieces([halved(name) for name in UNSEEN], given.side, 64)
        costs: dict[str, float] = {}
        for when, minutes in (("before", 0.01), ("after", given.budget)):
            model = fathom.fit(
                table(learned), objective="perceive(translate_image)", model="unet", minutes=minutes, sets=sets, seed=0
            )
            costs |= apart(model, place, picture, judged, when)
        if given.grids:
            write_grid(model.redraw(table(judged), 24), given.grids / "style.png")
    accuracy = seen.metrics[next(iter(set(seen.metrics) & {"test", "validation"}))]["kind"]["metrics"]["accuracy"]
    return {"classifier": accuracy["value"], **costs}


def apart(model: fathom.Model, place: Path, picture: Path, images: np.ndarray, when: str) -> dict[str, float]:
    """Return how far what the model makes of images is from their content and from the picture's look."""
    from fathom.wrappers.perceive import distance, gram

    judge = fathom.load(place)
    batch = {model.artifact.spec.images[0].key: torch.from_numpy(images).permute(0, 3, 1, 2)}
    look = np.asarray(Image.open(picture).resize(images.shape[1:3][::-1]), dtype=np.float32)

    def maps(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return judge.module.eval().model({judge.artifact.spec.images[0].key: x}).maps

    with torch.inference_mode():
        made = maps(model.module.eval().translated(batch) * 255)
        given = maps(next(iter(batch.values())).float())
        looks = [gram(m) for m in maps(torch.from_numpy(look).permute(2, 0, 1)[None])]
        content = torch.stack([distance(m, w) for m, w in zip(made, given, strict=True)]).mean()
        pairs = [(gram(m) - g, g) for m, g in zip(made, looks, strict=True)]
        styled = torch.stack([d.square().sum((1, 2)).mean() / g.square().sum() for d, g in pairs]).mean()
    return {f"content_{when}": float(content), f"style_{when}": float(styled)}


def photograph(name: str) -> np.ndarray:
    """Return a picture of scikit-image's package, [H, W, 3] uint8."""
    found = getattr(data, name)()
    image: np.ndarray = found[0] if isinstance(found, tuple) else found  # a stereo pair's left one
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]


def halved(name: str) -> np.ndarray:
    """Return one in half its size, so that it is sharp to the pixel."""
    large = Image.fromarray(photograph(name))
    return reduced(large, large.width // 2)


def reduced(large: Image.Image, width: int) -> np.ndarray:
    height = round(large.height * width / large.width)
    return np.asarray(large.resize((width, height), Image.Resampling.LANCZOS))


def others() -> list[np.ndarray]:
    """Return photographs of other packages in several sizes, [H, W, 3] uint8."""
    found = list(load_sample_images().images)
    found += [reduced(Image.fromarray(image), image.shape[1] // 2) for image in found]
    for package, paths in DESKTOPS.items():
        there = [path for path in paths if Path(path).exists()]
        if len(there) < len(paths):
            print(f"Not found: {len(paths) - len(there)} of {len(paths)} photographs (apt install {package}).")
        for path in there:
            with Image.open(path) as large:
                found += [reduced(large.convert("RGB"), width) for width in DESKTOP_WIDTHS]
    return found


def pieces(images: list[np.ndarray], side: int, count: int) -> np.ndarray:
    """Return square pieces of pictures, as many of each, from places drawn by chance: [N, side, side, 3] uint8."""
    draw, found = np.random.default_rng(0), []
    for image in images:
        for _ in range(count // len(images)):
            top, left = (int(draw.integers(length - side + 1)) for length in image.shape[:2])
            found.append(image[top : top + side, left : left + side])
    return np.stack(found)


def table(images: np.ndarray, kinds: np.ndarray | None = None) -> pl.DataFrame:
    """Return images as Fathom reads them: PNG files in a column, perhaps with a class."""
    rows = []
    for number, image in enumerate(images):
        held = io.BytesIO()
        Image.fromarray(image).save(held, "png")
        rows.append({"image": {"bytes": held.getvalue(), "path": f"{number}.png"}})
    frame = pl.DataFrame(rows)
    return frame if kinds is None else frame.with_columns(kind=pl.Series(kinds))


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "upscale": mended("upscale"),
    "denoise": mended("denoise"),
    "colourise": mended("colourise"),
    "style": style,
}

if __name__ == "__main__":
    main()
