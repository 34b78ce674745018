"""How long a user waits for nothing: `python benchmarks/startup.py [--runs N]`.

Times whole processes, in turn: Python alone, `import fathom`, `fathom --help`. The bar is 0.25 s for each of the last
two. The figures go to results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

BAR = 0.25  # seconds
COMMANDS = {
    "python alone": ["-c", "pass"],
    "import fathom": ["-c", "import fathom"],
    "fathom --help": ["-c", "import sys; sys.argv = ['fathom', '--help']; from fathom.cli import main; main()"],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=15, help="of each command, the first not counted")
    runs = options.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:<14}  {median:.3f} s   (from {min(times[name][1:]):.3f} to {max(times[name][1:]):.3f})")
    record = {
        "what": "start-up of a process, median seconds",
        "bar": BAR,
        "reached": max(medians["import fathom"], medians["fathom --help"]) < BAR,
        "seconds": medians,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    path = Path(__file__).parent / "results" / "startup.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def seconds(arguments: list[str]) -> float:
    """Return how long one process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
