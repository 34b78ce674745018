"""Write docs/options.md, the table of every option, from the dataclasses: `python scripts/options.py`."""

from __future__ import annotations

from pathlib import Path

from fathom.api.config import DataConfig, EvaluateConfig
from fathom.core import catalog
from fathom.core.config import describe
from fathom.data import PrepareConfig, SplitConfig
from fathom.data.augment import AugmentConfig
from fathom.engine.plan import Plan
from fathom.transfer import TransferConfig

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
GROUPS = {
    "data": DataConfig,
    "split": SplitConfig,
    "prepare": PrepareConfig,
    "augment": AugmentConfig,
    "transfer": TransferConfig,
    "engine": Plan,
    "evaluate": EvaluateConfig,
}
INTRODUCTION = """# Options

Each is given as `--set GROUP.NAME=VALUE`, or in a TOML file for `--config`, as a line `NAME = VALUE` under `[GROUP]`;
every run writes the file that repeats it, `config.toml`. A list is written `["a", "b"]`. A column's kind is set by
`--set data.kinds.COLUMN=KIND`, or under `[data.kinds]` where its name has a dot. Where an option of `engine`,
`objective` or `augment` is left open, the model's recipe may set another value than the default shown here.
"""


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    parts += [_table(f"`{group}`", config) for group, config in GROUPS.items()]
    for room, group in (("models", "model"), ("objectives", "objective")):
        for name in catalog.files(room):
            parts.append(_table(f"`{group}` where `{group}.name` is `{name}`", type(catalog.find(room, name).config)))
    for name in catalog.files("wrappers"):
        parts.append(_table(f"`objective.{name}` of wrapper `{name}`", type(catalog.find("wrappers", name).config)))
    return "\n".join(parts)


def _table(title: str, config: type) -> str:
    rows = [f"## {title}", "", "| option | takes | default | |", "| --- | --- | --- | --- |"]
    for name, kind, default, told in describe(config):
        shown = "" if not isinstance(default, (str, int, float, bool, tuple)) else f"`{default!r}`".replace("'", '"')
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{name}`", kind, shown, told)) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
