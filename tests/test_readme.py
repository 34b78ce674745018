"""Every command and program in the README and the docs works as printed, with training cut to one epoch."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICKLY = (
    "import fathom, functools; fathom.fit = functools.partial(fathom.fit, epochs=1, "
    "sets=['evaluate.baseline_seconds=2']);"
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of each fenced block that is meant to be run: sh and python."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_commands_work_as_printed(page: Path, tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_bytes((ROOT / "tests" / "my.csv").read_bytes())
    for language, text in blocks(page):
        if language == "python":
            named = re.match(r"# (\w+\.py)\n", text)  # a file that later blocks speak of
            if named:
                (tmp_path / named[1]).write_text(text, encoding="utf-8")
            _run([sys.executable, "-c", QUICKLY + text], tmp_path)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "fathom":
                quick = ["--epochs", "1", "--set", "evaluate.baseline_seconds=2"] if words[1] == "fit" else []
                _run([sys.executable, "-c", "from fathom.cli import main; main()", *words[1:], *quick], tmp_path)


def test_every_room_has_its_line_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [p for p in (ROOT / "src" / "fathom").iterdir() if p.is_dir() and not p.name.startswith("_")]
    assert [room.name for room in rooms if f"`{room.name}/`" not in text] == []


def test_the_page_of_options_is_that_of_the_code() -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "options.py"))["render"]
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == render(), "run scripts/options.py"


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
