"""Training in Fathom beside the libraries that people train with: the same network, batch, optimiser and data.

    python benchmarks/train                                             # everything
    python benchmarks/train --workloads mlp gpt --peers fathom plain --repeats 3 --seconds 8
    python benchmarks/train --peer-python PATH                          # the Python that has the peers installed

Every run has a process of its own; runs of different libraries take turns, so that a busy moment of the machine meets
all of them, and medians are compared. Peers get their own defaults; `tuned` is a PyTorch loop given by hand what is
known to help: one or two threads, data in memory, fused AdamW, channels last, bf16 where the processor has it.
Results are kept as JSON, run by run, and the table is made from them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "train.json"
PEERS = ("fathom", "plain", "tuned", "lightning", "hf", "keras_torch", "keras_jax", "skorch")
WORKLOADS = ("mlp", "lenet", "resnet18", "vit", "gpt", "lstm", "bert", "gcn")
GRACE = 240.0  # seconds that a run may take besides those that are counted


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--workloads", nargs="*", default=WORKLOADS, choices=WORKLOADS)
    options.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    options.add_argument("--repeats", type=int, default=3, help="runs of each")
    options.add_argument("--seconds", type=float, default=5.0, help="that are counted in each run, after warming up")
    options.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers installed")
    options.add_argument("--out", type=Path, default=RESULTS, help="where the results are kept")
    options.add_argument("--one", nargs=2, metavar=("PEER", "WORKLOAD"), help=argparse.SUPPRESS)
    options.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(_one(*given.one, given.seconds)))
    elif given.peak:
        print(json.dumps(_limits(given.workloads)))
    else:
        _all(given)


def _all(given: argparse.Namespace) -> None:
    """Run everything in turn, and keep and show the results."""
    from table import show

    limits = _process([given.peer_python, str(HERE), "--peak", "--workloads", *given.workloads])
    runs: list[dict[str, Any]] = []
    for workload in given.workloads:
        for repeat in range(given.repeats):
            for peer in given.peers:
                found = _process(
                    [given.peer_python, str(HERE), "--seconds", str(given.seconds), "--one", peer, workload]
                )
                if found:
                    runs.append({"workload": workload, "peer": peer, "repeat": repeat, **found})
                    rate = found.get("samples_per_second", 0.0)
                    print(f"{workload:9} {peer:12} {rate:12,.1f} samples/s", file=sys.stderr, flush=True)
        _keep(given.out, limits, [run for run in runs if run["workload"] == workload])
    show(json.loads(given.out.read_text()))


def _keep(path: Path, limits: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Put runs into the file, in place of those of the same library and workload."""
    record = json.loads(path.read_text()) if path.exists() else {"machine": {}, "flops": {}, "runs": []}
    record["machine"] = limits["machine"]
    record["flops"] |= limits["flops"]
    new = {(run["workload"], run["peer"]) for run in runs}
    record["runs"] = [run for run in record["runs"] if (run["workload"], run["peer"]) not in new] + runs
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _process(command: list[str]) -> dict[str, Any]:
    """Return what a process of its own printed last; nothing where it makes no sense, or failed."""
    environment = os.environ | {"FATHOM_BENCHMARK_BEGAN": str(time.time()), "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=GRACE, check=False)
    except subprocess.TimeoutExpired:
        print(f"{' '.join(command[-2:])}: no end in {GRACE:.0f} s", file=sys.stderr)
        return {}
    if done.returncode:
        print(f"{' '.join(command[-2:])}: {(done.stderr.strip() or 'failed').splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _one(peer: str, workload: str, seconds: float) -> dict[str, Any]:
    """Run one library on one workload in this process."""
    if peer.startswith("keras"):
        os.environ["KERAS_BACKEND"] = peer.removeprefix("keras_")
    from clock import Clock
    from workloads import WORKLOADS as KNOWN

    work = KNOWN[workload]
    if peer in work.without:
        return {}
    clock = Clock(seconds, work.goal)
    room = {"tuned": "plain", "keras_torch": "keras", "keras_jax": "keras"}.get(peer, peer)
    module = import_module(f"peer_{room}")
    (module.run_tuned if peer == "tuned" else module.run)(work, clock)
    return clock.result()


def _limits(workloads: list[str]) -> dict[str, Any]:
    """Return the machine's matmul peak, and the operations of a sample in each workload, forward and backward."""
    import torch
    from peak import flops, matmul_peak
    from workloads import WORKLOADS as KNOWN

    peak = {dtype: matmul_peak(getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gigaflops": peak,
    }
    return {"machine": machine, "flops": {name: flops(KNOWN[name]) for name in workloads}}


if __name__ == "__main__":
    main()
