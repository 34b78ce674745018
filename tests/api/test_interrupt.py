"""A run that is stopped from outside and gone on with ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TABLE = Path(__file__).parent.parent / "my.csv"
COMMAND = [sys.executable, "-c", "from fathom.cli import main; main()", "fit", str(TABLE), "--target", "cultivar"]
OPTIONS = ["--epochs", "60", "--set", "engine.threads=1", "--set", "engine.precision=fp32",
           "--set", "engine.checkpoint_seconds=0.1", "--set", "evaluate.baselines=false"]  # fmt: skip


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *OPTIONS, *more],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background jobs
    )


def has_begun(out: Path) -> bool:
    """Say whether there is a checkpoint beyond the one that is written before the first step."""
    return len(list((out / "checkpoints").glob("checkpoint-*.safetensors"))) > 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed")
    run = start(out)
    assert run.communicate()[1] is not None and run.returncode == 0
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_stopped_and_resumed(number: signal.Signals, code: int, undisturbed: bytes, tmp_path: Path) -> None:
    run = start(tmp_path)
    while run.poll() is None and not has_begun(tmp_path):
        time.sleep(0.01)
    run.send_signal(number)
    _, told = run.communicate()
    assert run.returncode == code, told
    assert "Traceback" not in told
    if code > 0:
        assert "--resume" in told
    assert not (tmp_path / "model.safetensors").exists()
    again = start(tmp_path, "--resume")
    _, told = again.communicate()
    assert again.returncode == 0 and "going on from step" in told, told
    assert (tmp_path / "model.safetensors").read_bytes() == undisturbed
