"""The command line from end to end, as a user types it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from fathom.cli import main

QUICK = ["--epochs", "2", "--set", "engine.threads=1", "--set", "engine.precision=fp32"]


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str


def fathom(*arguments: object, code: int = 0) -> Done:
    """Run the command line in this process, which has imported what it needs already."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["fathom", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGTERM, before[1])
    assert left.value.code == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's wine table as a CSV, with a row broken and a cell missing."""
    from sklearn.datasets import load_wine

    folder = tmp_path_factory.mktemp("wine")
    data = load_wine(as_frame=True)
    frame = pl.from_pandas(data.frame).with_columns(
        pl.col("target").replace_strict({0: "barolo", 1: "grignolino", 2: "barbera"}, return_dtype=pl.String)
    )
    lines = frame.write_csv().splitlines()
    lines[5] = "," + lines[5].split(",", 1)[1]
    lines.insert(9, lines[9] + ",7,8,9")
    (folder / "wine.csv").write_text("\n".join(lines) + "\n")
    return folder / "wine.csv"


@pytest.fixture(scope="module")
def trained(wine: Path) -> Path:
    out = wine.parent / "model"
    fathom("fit", wine, "--target", "target", "--out", out, *QUICK)
    return out


def test_fit_writes_a_model_and_says_where(trained: Path) -> None:
    told = fathom("info", trained)
    assert "accuracy" in told.stdout and str(trained) in told.stdout
    for name in ("model.safetensors", "config.json", "spec.json", "metrics.json", "README.md", "report.html",
                 "config.toml", "evidence.json", "manifest.json", "preprocess/preprocess.json"):  # fmt: skip
        assert (trained / name).is_file(), name


def test_a_broken_row_is_listed_with_its_place(wine: Path, trained: Path) -> None:
    evidence = json.loads((trained / "evidence.json").read_text())
    assert evidence["data"]["set_aside_count"] == 1
    assert evidence["data"]["set_aside"][0]["row"] == 10


def test_answers_are_json_on_request(wine: Path, trained: Path) -> None:
    assert json.loads(fathom("info", trained, "--json").stdout)["targets"][0]["name"] == "target"
    scores = json.loads(fathom("evaluate", trained, wine, "--json").stdout)
    assert 0 <= scores["targets"]["target"]["metrics"]["accuracy"]["value"] <= 1
    columns = json.loads(fathom("inspect", wine, "--target", "target", "--json").stdout)["columns"]
    assert {c["name"]: c["kind"] for c in columns}["target"] == "category"
    rows = json.loads(fathom("predict", trained, wine, "--json").stdout)
    assert len(rows) == 178 and rows[0]["prediction"] in ("barolo", "grignolino", "barbera")
    for verb in ("models", "objectives", "samples"):
        assert json.loads(fathom(verb, "--json").stdout)[0]["name"]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_predictions_go_to_a_file(wine: Path, trained: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"predictions{ending}"
    fathom("predict", trained, wine, "--out", out)
    readers = {".csv": pl.read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson}
    frame = readers[ending](out)
    assert len(frame) == 178 and frame["probability"].is_between(0, 1).all()


def test_stdout_can_be_piped(wine: Path, trained: Path) -> None:
    done = fathom("predict", trained, wine)
    assert done.stdout.splitlines()[0].startswith("prediction,probability")
    assert len(done.stdout.splitlines()) == 179


def test_the_written_config_repeats_the_run(wine: Path, trained: Path, tmp_path: Path) -> None:
    fathom("fit", "--config", trained / "config.toml", "--out", tmp_path / "again")
    for name in ("model.safetensors", "preprocess/preprocess.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def test_a_finished_run_resumes_to_itself(wine: Path, trained: Path) -> None:
    before = (trained / "model.safetensors").read_bytes()
    fathom("fit", wine, "--target", "target", "--out", trained, "--resume", *QUICK)
    assert (trained / "model.safetensors").read_bytes() == before


def test_the_report_is_written_anew(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    path = Path(fathom("report", trained).stdout.strip())
    assert path == trained / "report.html" and path.read_text() == page
    fathom("info", trained)  # the manifest still holds


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "nowhere.csv", "--target", "x"], "nowhere.csv"),
        (["fit", "WINE"], "--target"),
        (["fit", "WINE", "--target", "alcohool"], "alcohol"),
        (["fit", "WINE", "--target", "target", "--model", "resnt18"], "resnet18"),
        (["fit", "WINE", "--target", "target", "--model", "resnet"], "image"),
        (["fit", "WINE", "--target", "target", "--set", "model.deph=2"], "depth"),
        (["fit", "WINE", "--target", "target", "--set", "engine.epochs=many"], "whole number"),
        (["fit", "WINE", "--target", "target", "--set", "engin.epochs=2"], "engine"),
        (["fit", "WINE", "--target", "target", "--set", "nonsense"], "key=value"),
        (["fit", "WINE", "--target", "target", "--config", "missing.toml"], "missing.toml"),
        (["fit"], "source"),
        (["predict", "EMPTY", "WINE"], "EMPTY"),
        (["inspect", "fashon"], "fashion"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], said: str, wine: Path, tmp_path: Path) -> None:
    names = {"WINE": str(wine), "EMPTY": str(tmp_path)}
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "fit" else []
    done = fathom(*[names.get(a, a) for a in arguments], *out, code=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert names.get(said, said) in lines[0]
    assert done.stdout == ""
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_version() -> None:
    import fathom as package

    assert fathom("--version").stdout.strip() == f"fathom {package.__version__}"


def test_as_a_process_it_writes_answers_to_stdout_and_mistakes_to_stderr() -> None:
    command = [sys.executable, "-c", "from fathom.cli import main; main()"]
    done = subprocess.run([*command, "models"], capture_output=True, text=True)
    assert done.returncode == 0 and "resnet18" in done.stdout and done.stderr == ""
    wrong = subprocess.run([*command, "info", "nowhere"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == "" and "nowhere" in wrong.stderr
