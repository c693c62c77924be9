"""`opbyte query`: SQL over stored points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from opbyte.sweeps.commands._options import Json

_SHOWN = 40


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")],
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over the table points.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print the answer as CSV.")] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Most memory, such as 2 GiB.")
    ] = None,
    json: Json = False,
) -> int:
    """Ask stored points in SQL; they stay on the disk and are not changed."""
    from opbyte.core.errors import ConfigError
    from opbyte.core.units import parse
    from opbyte.sweeps.query import batches
    from opbyte.sweeps.results import open_results

    if csv and json:
        raise ConfigError.one("", "query", "the answer is either CSV or JSON", "--csv --json")
    limit = None if memory is None else parse(memory, "bytes")
    found = batches(open_results(folder), sql, limit)
    try:
        (_csv if csv else _json if json else _table)(next(found), found)
    finally:
        found.close()
    return 0


def _csv(schema: Any, batches: Iterator[Any]) -> None:
    """Print rows as CSV.

    Raises:
        ConfigError: If a column holds lists or the like, which CSV has no way to write.
    """
    import pyarrow as pa
    from pyarrow.csv import CSVWriter, WriteOptions

    from opbyte.core.errors import ConfigError

    kinds = pa.types
    inner = next((f for f in schema if kinds.is_nested(f.type) or kinds.is_interval(f.type)), None)
    if inner is not None:
        rule = f"a cell of CSV holds one number or text, column {inner.name} holds {inner.type}"
        raise ConfigError.one("", "query", rule, "", "Use --json, or take it apart in the query.")
    sys.stdout.flush()
    options = WriteOptions(quoting_style="needed", quoting_header="needed")
    with CSVWriter(sys.stdout.buffer, schema, write_options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    sys.stdout.buffer.flush()


def _json(schema: Any, batches: Iterator[Any]) -> None:
    """Print a list of objects, one a line.

    Raises:
        ConfigError: If two columns have one name, as an object holds each name once.
    """
    import json

    from opbyte.core.errors import ConfigError
    from opbyte.sweeps.console import plain

    twice = next((n for n in schema.names if schema.names.count(n) > 1), None)
    if twice is not None:
        rule = "columns of JSON have names of their own"
        raise ConfigError.one("", "query", rule, twice, "Rename one: `... as other`.")

    before = "[\n"
    for batch in batches:
        for row in batch.to_pylist():
            sys.stdout.write(f"{before} {json.dumps(plain(row))}")
            before = ",\n"
    sys.stdout.write("\n]\n" if before != "[\n" else "[]\n")


def _table(schema: Any, batches: Iterator[Any]) -> None:
    """Print the first rows for people."""
    from opbyte.sweeps.console import Output

    rows: list[list[str]] = []
    for batch in batches:
        some = batch.slice(0, _SHOWN + 1 - len(rows))
        for cells in zip(*(column.to_pylist() for column in some.columns), strict=True):
            rows.append([_cell(c) for c in cells])  # noqa: PERF401  stops early
        if len(rows) > _SHOWN:
            break
    output = Output()
    output.table("", schema.names, rows[:_SHOWN], left=0)
    if len(rows) > _SHOWN:
        output.line(f"the first {_SHOWN} rows; --csv prints all")
    elif not rows:
        output.line("no rows")


def _cell(value: Any) -> str:
    from opbyte.sweeps.console import shown

    if value is None:
        return "-"
    return shown(value, None) if _number(value) else str(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
