"""Looking at data before training, and writing tables of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.core.config import as_dict
from fathom.core.errors import ConfigError, did_you_mean
from fathom.core.files import replacing

if TYPE_CHECKING:
    import polars as pl

    from fathom.data import Table

WRITERS = {".csv": "write_csv", ".tsv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}


def inspect(source: Any, target: str | Sequence[str] | None = None) -> dict[str, Any]:
    """Return what Fathom makes of a source before any training.

    Returns:
        source, rows, target, columns (name, kind, why, missing, distinct, examples), set_aside (where, row,
        column, reason, unit: what `row` counts), notes.

    Raises:
        DataError: the source cannot be read, or has no such target.
    """
    from fathom.data import infer, read

    table = read(source)
    targets = ((target,) if isinstance(target, str) else tuple(target)) if target else table.target
    columns = infer(table.frame, tuple(targets), folder=table.folder, decimal=table.decimal)
    return {
        "source": table.origin,
        "rows": len(table.frame),
        "target": list(targets),
        "columns": [as_dict(column) for column in columns],
        "set_aside": [as_dict(row) for row in table.set_aside],
        "notes": list(table.notes),
    }


def describe_table(found: dict[str, Any]) -> str:
    """Return the result of `inspect` as text for a terminal."""
    lines = [f"{found['source']}: {found['rows']:,} rows, {len(found['columns'])} columns"]
    names = [_shortened(column["name"], 32) + (" *" if column["name"] in found["target"] else "")
             for column in found["columns"]]  # fmt: skip
    width = max(map(len, names), default=0)
    for name, column in zip(names, found["columns"], strict=True):
        missing = f"; {column['missing']:,} missing" if column["missing"] else ""
        shown = ", ".join(_shortened(str(example), 24) for example in column["examples"][:3])
        example = f"  e.g. {shown}" if shown else ""
        lines.append(f"  {name:<{width}}  {column['kind']:<10}  {column['why']}{missing}{example}")
    if found["target"]:
        lines.append("* to be predicted")
    lines += found["notes"]
    lines += describe_set_aside(found["set_aside"])
    return "\n".join(lines)


def describe_set_aside(rows: Sequence[dict[str, Any]], limit: int = 10, count: int | None = None) -> list[str]:
    """Return one line for each row that could not be used, at most `limit`; `count` where `rows` are the first only."""
    if not rows:
        return []
    count = len(rows) if count is None else count
    lines = [f"{count:,} row{'s were' if count != 1 else ' was'} set aside:"]
    for row in rows[:limit]:
        place = "" if row["row"] is None else f", {row['unit']} {row['row']:,}"
        column = f", column '{row['column']}'" if row["column"] else ""
        lines.append(f"  {row['where']}{place}{column}: {row['reason']}")
    return lines + ([f"  … and {count - limit:,} more"] if count > limit else [])


def places(table: Table) -> list[pl.Series]:
    """Return columns that say where each row of a table stands in its source, where that is not plain.

    Of a folder `file`; where rows were set aside while reading a text file `row`, by its lines, as in `set_aside`.
    """
    import polars as pl

    source = Path(table.origin).expanduser()
    if source.is_dir() and "file" in table.frame.columns:
        return [table.frame["file"]]
    lost = {aside.row for aside in table.set_aside if aside.unit == "line" and aside.row is not None}
    if not lost or not source.is_file():
        return []
    rows = [line for line in _lines(source) if line not in lost]
    return [pl.Series("row", rows, dtype=pl.Int64)] if len(rows) == len(table.frame) else []  # it changed meanwhile


def is_one_row(rows: Any) -> bool:
    """A dict of plain values is one row; a dict with lists, arrays or series is a table."""
    return isinstance(rows, Mapping) and not any(map(_is_column, rows.values()))


def is_pandas(rows: Any) -> bool:
    return type(rows).__module__.partition(".")[0] == "pandas"


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, bytearray, Mapping))


def _lines(path: Path) -> list[int]:
    """Return the line, from 1, at which each record of a text table begins, broken or not, as reading finds them."""
    from fathom.data import _mend, _sniff, tabular
    from fathom.data._unpack import unpacked

    with unpacked(path) as plain:
        if plain.suffix.lower() in tabular.JSON_SUFFIXES:
            with plain.open(encoding="utf-8-sig", errors="replace") as lines:
                return [number for number, line in enumerate(lines, 1) if line.strip()]
        dialect = _sniff.sniff(plain, str(path))
        newline = None if _mend._ends_in_returns(plain, dialect.encoding) else "\n"
        with plain.open(encoding=dialect.encoding, errors="replace", newline=newline) as lines:
            records = _mend._Records(enumerate(lines, 1), dialect)
            records.skip_header()
            return [number for number, _, _ in records]


def as_csv(frame: pl.DataFrame) -> str:
    """Return the frame as CSV text with a header."""
    return frame.write_csv()


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write the frame in the format that the name ends with, whole or not at all.

    Raises:
        ConfigError: an ending that is none of .csv, .tsv, .parquet, .jsonl, or a place that cannot be written.
    """
    import polars as pl

    ending = path.suffix.lower()
    if ending not in WRITERS:
        raise ConfigError(
            f"'{path}' does not tell the format of the table; end it with .csv, .tsv, .parquet or .jsonl."
            + (did_you_mean(ending, WRITERS) if ending else "")
        )
    options = {"separator": "\t"} if ending == ".tsv" else {}
    try:
        with replacing(path) as temporary:
            getattr(frame, WRITERS[ending])(temporary, **options)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise ConfigError(f"'{path}' cannot be written: {reason.rstrip('.')}.") from None


def _shortened(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
