"""Training steps of each objective beside those of its paper in plain PyTorch, or of the library that has them.

    python benchmarks/paradigms.py [CASE …] [--rounds N] [--seconds S] [--set OPTION=VALUE …]

Fathom trains with its defaults: what its tuner chooses for a run of --minutes is kept, as in training. The other side
is a loop as papers and libraries print it (`peers/`): rows from a DataLoader, AdamW, float32, PyTorch's own number of
threads. Both have the same rows, batch and sizes of network. They take turns of --seconds in one process, a step of
each turn left out; of each turn the ratio of rows a second is taken, and the median of these is told with the least and
the largest. The figures go to results/paradigms.json, and the geometric mean is that of all cases measured so far.

lightly, which has SimCLR and DINO, needs torchvision, which does not load beside a CPU build of this PyTorch; word2vec
beside gensim is words.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from peers import images, texts
from peers.loop import Given, Peer, endless

from fathom.api.assemble import Assembled, assemble, preparing, repeats, use_of_targets
from fathom.api.config import gather
from fathom.api.prepare import Material, prepare
from fathom.core.past import Trained
from fathom.core.types import Store, TrainingData
from fathom.data import read
from fathom.engine import allocator, order, tune
from fathom.engine.run import Run

RESULTS = Path(__file__).parent / "results" / "paradigms.json"
WARM = (8, 3)  # steps of either side before anything is timed: recordings of ours are made and proven
Side = Callable[[int, float], list[float]]
PLAIN = ("augment.shift=0", "augment.flip=no")  # what the other side does not do either


@dataclass(frozen=True)
class Case:
    """One objective, what it trains on, and the steps beside it.

    Attributes:
        rows: of the sample `fashion` with their labels ("labels"), without ("images"), with few of them ("few"); of
            `verses` English ("verses") or with Spanish to be written ("pairs").
        teacher: the model, with options, of which the objective learns.
    """

    objective: str
    model: str
    rows: str
    peer: Callable[[Given], Peer]
    batch: int = 64
    sets: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


CASES = {
    "next_token": Case("next_token", "gpt", "verses", texts.next_token, 32),
    "masked_token": Case("masked_token", "bert", "verses", texts.masked_token, 32),
    "translate": Case("translate", "transformer_translator", "pairs", texts.translate, 32),
    "embed_words": Case("embed_words", "words", "verses", texts.embed_words, 32),
    "contrast": Case("simclr", "resnet", "images", images.contrast),
    "self_distill": Case("dino", "vit", "images", images.self_distill),
    "masked_image": Case("mae", "vit", "images", images.masked_image),
    "consistency": Case("fixmatch", "resnet", "few", images.consistency),
    "autoencode": Case("variational", "vae_dense", "images", images.autoencode, 128, ("objective.pixels=bernoulli",)),
    "adversarial": Case("hinge_gan", "resnet_gan", "labels", images.adversarial, 32),
    "diffuse": Case("diffuse", "unet", "labels", images.diffuse, 32),
    "translate_image": Case("upscale", "unet", "images", images.translate_image, 32),
    "distill": Case("distill(supervised)", "lenet", "labels", images.distill, 64, (), ("resnet",)),
    "distilbert": Case(
        "distilbert(masked_token)", "bert", "verses", texts.distilled_tokens, 32, (), ("bert", "model.depth=4")
    ),
    "metric": Case("arcface", "resnet", "labels", images.metric),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    options.add_argument("--rounds", type=int, default=5, help="turns of each side")
    options.add_argument("--seconds", type=float, default=1.5, help="of each turn, and at least one step")
    options.add_argument("--minutes", type=float, default=10.0, help="of the run that Fathom is tuned for")
    options.add_argument("--most", type=int, default=4000, help="training rows")
    options.add_argument("--set", nargs="+", action="extend", default=[], help="an option of Fathom's side")
    given = options.parse_args()
    for name in given.cases or CASES:
        if name not in CASES:
            options.error(f"there is no case '{name}'; there are {', '.join(CASES)}")
        keep(name, measured(CASES[name], given))
    show(json.loads(RESULTS.read_text(encoding="utf-8")))


def measured(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Tune Fathom, let both sides take turns, and return how they compare."""
    threads, frame = torch.get_num_threads(), rows_of(case.rows, given.most)
    assembled, material = built(case, frame, given)
    plan = assembled.plan
    run = Run(assembled.objective, TrainingData(train=material.learned, augment=assembled.augment), plan)
    columns = dict(material.learned.gather(torch.arange(len(material.learned))))
    known = Given(assembled.objective, material.preprocess.spec, columns, plan.batch_size, plan.learning_rate)
    torch.manual_seed(0)
    peer = case.peer(known)
    run.random.swap()
    try:
        run.measure(tune.tune)
        sides = ours_of(run), theirs_of(peer, plan.batch_size)
        for side, warm in zip(sides, WARM, strict=True):
            side(warm, 0.0)
            usual(threads)
        turns = list(taken(run, sides, threads, given))
    finally:
        run.leave()
        run.random.swap()
    ratios = [theirs / ours for ours, theirs in turns]
    return {
        "peer": peer.library,
        "model": case.model,
        "batch": plan.batch_size,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
        "rows_per_second": 1 / statistics.median(ours for ours, _ in turns),
        "peer_rows_per_second": 1 / statistics.median(theirs for _, theirs in turns),
        "knobs": asdict(run.knobs),
        "threads": threads,
        "seconds": given.seconds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }


def taken(run: Run, sides: tuple[Side, Side], threads: int, given: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Yield the mean seconds of a row on either side, turn by turn; who is first changes."""
    for number in range(given.rounds):
        found = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            run.turn_knobs() if side == 0 else usual(threads)
            sides[side](1, 0.0)
            found[side] = statistics.fmean(sides[side](1, given.seconds))
        yield found[0], found[1]


def ours_of(run: Run) -> Side:
    """Return what takes steps of Fathom's, in the order of the epoch."""
    batches = order.batches(run.rows, run.plan.batch_size, run.plan.seed, 0)  # nearly of one size
    alike = [batch for batch in batches if len(batch) == len(batches[0])]
    return timed(lambda: run.train_on(alike[run.step % len(alike)]), len(batches[0]))


def theirs_of(peer: Peer, rows: int) -> Side:
    """Return what takes steps of the other side's, with the loading of their batches."""
    batches = endless(peer.batches)
    return timed(lambda: peer.step(next(batches)), rows)


def timed(step: Callable[[], Any], rows: int) -> Side:
    """Return what takes at least so many steps of so many rows, for at least so long, and tells the seconds of a row
    in each."""

    def steps(least: int, seconds: float) -> list[float]:
        times: list[float] = []
        while len(times) < least or sum(times) < seconds:
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        return [each / rows for each in times]

    return steps


def usual(threads: int) -> None:
    """Put PyTorch's own settings into effect."""
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    allocator.set_memory("returned")


def built(case: Case, frame: pl.DataFrame, given: argparse.Namespace) -> tuple[Assembled, Material]:
    """Return what Fathom trains, and on what."""
    targets = {"labels": "label", "few": "label", "pairs": "spanish"}
    engine = {"minutes": given.minutes, "seed": 0, "batch_size": case.batch}
    engine |= {"optimizer": "adamw", "learning_rate": 1e-3}  # as the other side has it
    sets = [*case.sets, *(PLAIN if case.rows in ("labels", "images", "few") else ()), "split.valid=0", *given.set]
    arguments: dict[str, Any] = {
        "objective": {"name": case.objective},
        "model": {"name": case.model},
        "engine": engine,
        "data": {"target": targets[case.rows]} if case.rows in targets else {},
    }
    past = None
    if case.teacher:
        sets.append(f"objective.{case.objective.partition('(')[0]}.teacher=there")
        if case.objective.startswith("distilbert"):
            sets.append("objective.distilbert.inherit=false")  # weights do not change how long a step takes
    settings = gather({}, arguments, sets)
    settings = settings.over({"prepare": preparing(settings, case.objective)})
    use = use_of_targets(settings, case.objective)
    material = prepare(frame, None, settings, 0, use=use, repeats=repeats(settings, case.objective))
    spec = material.preprocess.spec
    if case.teacher:
        name, *more = case.teacher
        inner = case.objective.partition("(")[2].rstrip(")")
        wanted = gather({}, {**arguments, "objective": {"name": inner}, "model": {"name": name}}, more)
        past = Past(Trained("there", assemble(spec, wanted, None, inner, material.settings).objective.eval(), spec))
    return assemble(spec, settings, None, case.objective, material.settings, None, past), material


@dataclass
class Past:
    """Finds one teacher, which was not trained: that does not change how long it takes to answer."""

    trained: Trained
    begun: str = ""

    def model(self, folder: str, option: str, alike: bool = False) -> Trained:
        return self.trained

    def rows(self, folder: str, source: str, option: str, own: bool = True) -> Store:
        raise AssertionError("a teacher's rows are not asked for")


def rows_of(kind: str, most: int) -> pl.DataFrame:
    """Return rows of a bundled sample."""
    if kind in ("verses", "pairs"):
        frame = read("verses").frame
        if kind == "pairs":
            frame = frame.drop_nulls("spanish")
        return frame.select("text", *(["spanish"] if kind == "pairs" else [])).sample(most, seed=0, shuffle=True)
    table = read("fashion")
    frame = table.frame.filter(pl.col(table.split or "split") == "train").sample(most, seed=0, shuffle=True)
    frame = frame.rename({table.target[0]: "label"}).select("image", "label")
    if kind == "few":
        known = pl.int_range(pl.len()) < most // 8
        return frame.with_columns(label=pl.when(known).then(pl.col("label")))
    return frame if kind == "labels" else frame.select("image")


def keep(name: str, found: dict[str, Any]) -> None:
    """Put one case's figures beside the others'."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, name: found}, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {found['ratio']:.2f} ({found['least']:.2f} to {found['largest']:.2f})", flush=True)


def show(known: dict[str, Any]) -> None:
    """Print a table of all cases, and the geometric mean of their ratios."""
    print(f"\n| objective | beside | rows/s | theirs | ratio | turns |\n|{' --- |' * 6}")
    for name, each in known.items():
        rates = f"{each['rows_per_second']:,.0f} | {each['peer_rows_per_second']:,.0f}"
        print(
            f"| {name} | {each['peer']} | {rates} | {each['ratio']:.2f} | {each['least']:.2f}–{each['largest']:.2f} |"
        )
    mean = math.exp(statistics.fmean(math.log(each["ratio"]) for each in known.values()))
    print(f"\ngeometric mean {mean:.2f}; least {min(each['ratio'] for each in known.values()):.2f}; {len(known)} cases")


if __name__ == "__main__":
    main()
