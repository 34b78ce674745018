"""The table of the results: `python benchmarks/train/table.py [FILE]` prints it as Markdown."""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "train.json"
OURS, BY_HAND = "fathom", "tuned"


def show(record: dict[str, Any]) -> None:
    """Print samples a second of each library, Fathom's ratio to the fastest, and what else was measured."""
    rates = medians(record, "samples_per_second")
    peers = list(dict.fromkeys(run["peer"] for run in record["runs"]))
    workloads = list(dict.fromkeys(run["workload"] for run in record["runs"]))
    print("| samples/s | " + " | ".join(workloads) + " |")
    print("| --- |" + " ---: |" * len(workloads))
    for peer in peers:
        cells = [f"{rates[w, peer]:,.0f}" if (w, peer) in rates else "–" for w in workloads]
        print(f"| {peer} | " + " | ".join(cells) + " |")
    for name, against in (("fastest peer", [p for p in peers if p not in (OURS, BY_HAND)]), (BY_HAND, [BY_HAND])):
        ratios = {w: r for w in workloads if (r := _ratio(rates, w, against))}
        cells = [f"{ratios[w]:.2f}×" if w in ratios else "–" for w in workloads]
        print(f"| Fathom to {name} | " + " | ".join(cells) + " |")
        if ratios:
            print(f"\nFathom to {name}, geometric mean: {_mean(list(ratios.values())):.2f}×\n")
    peak = max(record["machine"]["gigaflops"].values())
    shares = {w: rates[w, OURS] * record["flops"][w] / peak / 1e9 for w in workloads if (w, OURS) in rates}
    print(f"Fathom's share of {peak:,.0f} GFLOP/s: " + ", ".join(f"{w} {share:.0%}" for w, share in shares.items()))
    for key, unit in (("startup_seconds", "s"), ("goal_seconds", "s"), ("memory_mb", "MB"), ("tuning_seconds", "s")):
        found = medians(record, key)
        print(f"\n{key.replace('_', ' ')} ({unit})")
        for peer in peers:
            cells = [f"{w} {found[w, peer]:.3g}" for w in workloads if found.get((w, peer))]
            if cells:
                print(f"  {peer:12} " + ", ".join(cells))


def medians(record: dict[str, Any], key: str) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for run in record["runs"]:
        if key in run:
            found.setdefault((run["workload"], run["peer"]), []).append(run[key])
    return {where: statistics.median(values) for where, values in found.items()}


def _ratio(rates: dict[tuple[str, str], float], workload: str, against: list[str]) -> float | None:
    others = [rates[workload, peer] for peer in against if (workload, peer) in rates]
    ours = rates.get((workload, OURS))
    return ours / max(others) if ours and others else None


def _mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


if __name__ == "__main__":
    show(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text()))
