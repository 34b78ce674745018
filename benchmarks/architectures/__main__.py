"""A training step of every architecture beside the library that it was proven against.

    python benchmarks/architectures                  # every family
    python benchmarks/architectures bert vit --repeats 15

Forward, backward and fused AdamW, in float32, with the same weights and the same batch, on the same threads. Steps of
either network alternate, so that both meet the same neighbours on the machine; medians are compared. Convolutional
networks are measured in both memory layouts, each in its better one. A file beside this one gives the cases of its
family.
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

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "architectures.json"
BARS = {"mean": 1.0, "least": 0.9}  # reference's time divided by ours


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("families", nargs="*", help="files beside this one; by default all")
    options.add_argument("--repeats", type=int, default=11, help="steps of either network that are timed")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("case", "__main__"))
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for family in given.families or known:
        rows = []
        for case in import_module(family).cases():
            rows.append(measured(case, given.repeats))
            print(
                f"{case.family:14}{case.name:46}{rows[-1]['ratio']:6.2f}×  (ours {rows[-1]['ours_ms']:.1f} ms)",
                flush=True,
            )
        ratios = [row["ratio"] for row in rows]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"{family:14}{'geometric mean':46}{mean:6.2f}×", flush=True)
        record[family] = {
            "mean": mean,
            "least": min(ratios),
            "reached": mean >= BARS["mean"] and min(ratios) >= BARS["least"],
            "threads": given.threads,
            "torch": torch.__version__,
            "cases": rows,
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
        for _ in range(repeats):
            for side, step in sides.items():
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
