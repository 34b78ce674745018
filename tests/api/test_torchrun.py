"""The command line under torchrun: two processes write one model, and go on where one of them was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TABLE = Path(__file__).parent.parent / "my.csv"
RUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
OPTIONS = ["--target", "cultivar", "--model", "mlp", "--set", "model.dropout=0", "--set", "engine.precision=fp32",
           "--set", "engine.threads=1", "--set", "evaluate.baselines=false"]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(port: int, out: Path, *more: str, restarts: int = 0) -> list[str]:
    elastic = ["--max-restarts", str(restarts)]
    return [*RUN, str(port), *elastic, "-m", "fathom", "fit", str(TABLE), *OPTIONS, "--out", str(out), *more]


def test_two_processes_write_one_model_that_is_the_one_of_one_process(tmp_path: Path) -> None:
    done = subprocess.run(
        command(29611, tmp_path / "two", "--epochs", "4", "--json"), capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)  # one answer, of one process
    assert done.stderr.count("training on") == 1 and "Traceback" not in done.stderr
    alone = [sys.executable, "-m", "fathom", "fit", str(TABLE), *OPTIONS, "--out", str(tmp_path / "one")]
    subprocess.run([*alone, "--epochs", "4"], check=True, capture_output=True, env=ENVIRONMENT)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(tmp_path: Path) -> None:
    run = subprocess.Popen(
        command(29612, tmp_path, "--epochs", "150", "--set", "engine.checkpoint_seconds=0.1", restarts=1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    while run.poll() is None and len(list((tmp_path / "checkpoints").glob("checkpoint-*"))) < 2:
        time.sleep(0.02)
    os.kill(_worker(run.pid, rank=1), signal.SIGKILL)
    _, told = run.communicate()
    assert run.returncode == 0, told
    assert "going on from step" in told
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("given", [["--set", "engine.batch_size=100000"], ["--set", "engine.precision=fp12"]])
def test_impossible_settings_are_named_before_any_work_starts(given: list[str], tmp_path: Path) -> None:
    alone = [sys.executable, "-m", "fathom", "fit", str(TABLE), *OPTIONS, "--out", str(tmp_path / "out"), *given]
    done = subprocess.run(alone, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2 and given[1].split("=")[1] in done.stderr.replace(",", "")
    assert not (tmp_path / "out" / "checkpoints").exists()


def _worker(parent: int, rank: int) -> int:
    """Return the process of that rank among a torchrun's children."""
    for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(number)
    raise AssertionError("torchrun has no such worker")
