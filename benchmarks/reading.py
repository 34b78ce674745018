"""A million rows of CSV to tensors: Fathom against polars, which only reads them, with dates as text or as dates.

    python benchmarks/reading.py                       # 1,000,000 rows, 20 columns, five runs of each
    python benchmarks/reading.py --rows 200000 --runs 3 --out reading.json

The file has nine columns of numbers (two with gaps), four of whole numbers, four of classes, two of dates, and a
target. Each run is a process of its own; they take turns, and medians are compared. Time starts when everything is
imported and ends with a frame (polars), or with float32 and int32 tensors on the scale that models learn from (Fathom).
Peak memory is given of the whole process, and of what lies beyond the imports (PyTorch alone is twice the file); the
bar is for the latter. The file is read once beforehand, so that it is cached.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

BARS = {"time": 2.0, "memory": 3.0}


def write(path: Path, rows: int) -> None:
    """Write the table, the same in every run."""
    rng = np.random.default_rng(0)
    columns: dict[str, pl.Series] = {}
    for i in range(9):
        values = pl.Series(np.round(rng.normal(100, 30, rows), 3))
        gaps = pl.Series(rng.random(rows) < 0.05)
        columns[f"number_{i}"] = values.set(gaps, None) if i < 2 else values
    for i in range(4):
        columns[f"count_{i}"] = pl.Series(rng.integers(0, 10 ** (i + 2), rows))
    for i in range(4):
        classes = pl.Series([f"class {c}" for c in range(4 * 3**i)])
        columns[f"class_{i}"] = classes.gather(pl.Series(rng.integers(0, len(classes), rows)))
    start = pl.Series([0], dtype=pl.Int64).cast(pl.Datetime("us"))[0]
    seconds = pl.Series(rng.integers(0, 1_700_000_000, rows))
    moments = pl.select(pl.lit(start) + pl.duration(seconds=seconds)).to_series()
    columns["day"] = moments.dt.date()
    columns["moment"] = moments.dt.strftime("%Y-%m-%d %H:%M:%S")
    columns["target"] = pl.Series(rng.integers(0, 3, rows))
    pl.DataFrame(columns).write_csv(path)


def read_with_polars(path: Path) -> int:
    return pl.read_csv(path).height


def read_with_dates(path: Path) -> int:
    return pl.read_csv(path, try_parse_dates=True).height


def read_with_fathom(path: Path) -> int:
    from fathom.data import Preprocess, infer, read

    frame = read(path).frame
    _, prepared = Preprocess.fit(frame, infer(frame, ["target"]), ["target"])
    return len(prepared.store)


READERS = {"polars": read_with_polars, "dates": read_with_dates, "fathom": read_with_fathom}


def child(how: str, path: Path) -> None:
    """Run once in this process and print what it took."""
    import fathom.data  # noqa: F401  (both sides pay for the same imports)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    rows = READERS[how](path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"how": how, "rows": rows, "seconds": seconds, "peak": peak, "imports": before}))


def measure(path: Path, runs: int) -> dict[str, dict[str, float]]:
    """Return the medians of each side."""
    found: dict[str, list[dict]] = {how: [] for how in READERS}
    for _ in range(runs):
        for how in found:
            command = [sys.executable, __file__, "--child", how, "--path", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[how].append(json.loads(done.stdout))
    return {
        how: {key: statistics.median(run[key] for run in each) for key in ("seconds", "peak", "imports", "rows")}
        for how, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reading.json")
    parser.add_argument("--child", choices=tuple(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, asked.rows)
        path.read_bytes()
        size = path.stat().st_size
        medians = measure(path, asked.runs)
    ratios = {
        "time": medians["fathom"]["seconds"] / medians["polars"]["seconds"],
        "time_with_dates": medians["fathom"]["seconds"] / medians["dates"]["seconds"],
        "memory": (medians["fathom"]["peak"] - medians["fathom"]["imports"]) / size,
        "memory_with_imports": medians["fathom"]["peak"] / size,
    }
    print(f"{asked.rows:,} rows, 20 columns, {size / 1e6:,.0f} MB, {asked.runs} runs each, {os.cpu_count()} cores")
    print(f"{'':8}{'seconds':>9}{'peak MB':>9}{'of it imports':>15}")
    for how, each in medians.items():
        print(f"{how:8}{each['seconds']:>9.2f}{each['peak'] / 1e6:>9.0f}{each['imports'] / 1e6:>15.0f}")
    print(f"time     {ratios['time']:.2f}× polars (bar {BARS['time']:.0f}×), ", end="")
    print(f"{ratios['time_with_dates']:.2f}× polars that reads dates as dates")
    print(f"memory   {ratios['memory']:.2f}× the file (bar {BARS['memory']:.0f}×), with imports ", end="")
    print(f"{ratios['memory_with_imports']:.2f}×")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": asked.rows, "bytes": size, "runs": asked.runs, "polars_version": pl.__version__}
    asked.out.write_text(json.dumps({**result, **medians, "ratios": ratios, "bars": BARS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
