"""A training step of every architecture beside the library that it was proven against.

    python benchmarks/architectures                  # every family
    python benchmarks/architectures bert vit --repeats 15
    python benchmarks/architectures bert --cases minilm distil    # some of them; others' figures stay

Forward, backward and fused AdamW, in float32, with the same weights and the same batch, on the same threads. Both run
as the engine would run them: freed memory is kept for the next step, and convolutional networks are measured in both
memory layouts, each in its better one. Steps of either network take turns in going first, so that both meet the same
neighbours on the machine; medians are compared. A file beside this one gives the cases of its family.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from case import Case
from torch import Tensor, nn

from fathom.engine import allocator

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "architectures.json"
BARS = {"mean": 1.0, "least": 0.9}  # reference's time divided by ours


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("families", nargs="*", help="files beside this one; by default all")
    options.add_argument(
        "--cases", nargs="*", default=[""], help="parts of the names of those to measure; by default all"
    )
    options.add_argument("--repeats", type=int, default=11, help="steps of either network that are timed")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    allocator.set_memory("kept")
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("case", "__main__"))
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for family in given.families or known:
        kept = record.get(family, {})
        rows = {row["case"]: row for row in kept.get("cases", ()) if kept.get("memory") == "kept"}
        for case in import_module(family).cases():
            if not any(part in case.name for part in given.cases):
                continue
            row = rows[case.name] = measured(case, given.repeats)
            print(f"{case.family:14}{case.name:46}{row['ratio']:6.2f}×  (ours {row['ours_ms']:.1f} ms)", flush=True)
        ratios = [row["ratio"] for row in rows.values()]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"{family:14}{'geometric mean':46}{mean:6.2f}×", flush=True)
        record[family] = {
            "mean": mean,
            "least": min(ratios),
            "reached": mean >= BARS["mean"] and min(ratios) >= BARS["least"],
            "threads": given.threads,
            "memory": "kept",
            "torch": torch.__version__,
            "cases": list(rows.values()),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def measured(case: Case, repeats: int) -> dict[str, Any]:
    """Return the medians of either network, and how many times as fast ours is."""
    times: dict[str, dict[bool, list[float]]] = {}
    layouts = (False, True) if case.images else (False,)
    for channels_last in layouts:
        sides = {
            "ours": stepper(case.ours, case.run_ours, channels_last),
            "theirs": stepper(case.theirs, case.run_theirs, channels_last),
        }
        for _ in range(2):  # what is made once: buffers, chosen kernels, the optimiser's state
            for step in sides.values():
                step()
        for repeat in range(repeats):
            for side, step in list(sides.items())[:: -1 if repeat % 2 else 1]:
                start = time.perf_counter()
                step()
                times.setdefault(side, {}).setdefault(channels_last, []).append(time.perf_counter() - start)
    best = {side: min(statistics.median(found) for found in each.values()) for side, each in times.items()}
    return {
        "family": case.family,
        "case": case.name,
        "reference": case.reference,
        "ours_ms": 1000 * best["ours"],
        "theirs_ms": 1000 * best["theirs"],
        "ratio": best["theirs"] / best["ours"],
    }


def stepper(network: nn.Module, run: Callable[[nn.Module], Tensor], channels_last: bool) -> Callable[[], None]:
    """Return a function that makes one training step."""
    network.train().to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-5, fused=True)

    def step() -> None:
        run(network).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
