"""From what a user names to a `RequestTrace`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.catalog import SUFFIXES
from opbyte.core.config import Document
from opbyte.core.errors import ConfigError
from opbyte.core.registry import lookup_error
from opbyte.workloads.traces._rules import broken_rules, too_early
from opbyte.workloads.traces.formats import FORMATS, BadRows, Columns, detected, head_of, opened
from opbyte.workloads.traces.trace import RequestTrace

if TYPE_CHECKING:
    import pandas as pd

    from opbyte.workloads.traces.synthetic import SyntheticTrace

__all__ = ["SAMPLES", "load_trace", "read_trace", "samples"]

#: Folder of the traces that ship with opbyte.
SAMPLES = Path(__file__).parent / "samples"
_ENDINGS = (".gz", ".jsonl", ".json", ".csv")


def load_trace(
    given: RequestTrace | SyntheticTrace | pd.DataFrame | Mapping[str, Any] | str | Path,
    folder: str | Path = ".",
) -> RequestTrace:
    """Return the trace that is meant.

    Args:
        given: The name of a shipped sample; the path of a trace, or of a synthetic definition
            (YAML); such a definition itself; a frame (`RequestTrace.from_frame`); a trace.
        folder: Where relative paths inside a definition begin.

    Raises:
        ConfigError: If something that the user wrote is wrong; with all problems.
        WorkloadError: If the requests make no sense.
    """
    from opbyte.workloads.traces.synthetic import SyntheticTrace, synthetic_from

    if isinstance(given, RequestTrace):
        return given
    if isinstance(given, SyntheticTrace):
        return given.generate()
    if isinstance(given, Mapping):
        document = Document(dict(given), {}, os.path.join(folder, "trace"))  # noqa: PTH118
        return synthetic_from(document).generate()
    if not isinstance(given, str | Path):
        return RequestTrace.from_frame(given)
    path = located(given)
    if path.suffix in (".yaml", ".yml"):
        from opbyte.core.config import load_document

        return synthetic_from(load_document(path)).generate(path.stem)
    return read_trace(path)


def located(given: str | Path) -> Path:
    """Return the file of a path, or of the name of a shipped sample.

    Raises:
        ConfigError: If no sample is called so.
    """
    path = Path(given).expanduser()
    text = str(given)
    if path.exists() or os.sep in text or text.endswith((*SUFFIXES, *_ENDINGS)):
        return path
    found = samples()
    if text not in found:
        raise lookup_error("trace", text, found)
    return found[text]


def samples() -> dict[str, Path]:
    """Return the files of the traces that ship with opbyte, by name."""
    return {file.stem: file for file in sorted(SAMPLES.glob("*.jsonl"))}


def read_trace(
    path: str | Path,
    format: str | None = None,  # noqa: A002  the word of the command line
    *,
    skip_bad: bool = False,
    sort: bool = False,
    block_tokens: int | None = None,
) -> RequestTrace:
    """Read a trace file.

    Args:
        path: A file in one of `FORMATS`; gzip is unpacked, whatever its name.
        format: Name of the format; by default the one that its first line shows.
        skip_bad: Leave malformed rows out and count them in `skipped`.
        sort: Bring rows that stand in another order into the order of arrival.
        block_tokens: Tokens of a prefix block, where the file does not say.

    Raises:
        ConfigError: If the file can not be read or has no request; if rows are malformed or not
            in the order of arrival, with the lines of the first 20 and their number.
    """
    path = Path(path).expanduser()
    chosen = None if format is None else FORMATS.lookup(format)
    bad = BadRows(str(path))
    with opened(path) as file:
        head = head_of(file, str(path))
    with opened(path) as file:
        columns = (chosen or detected(head)).read(file, head, bad, block_tokens)
    _check(columns, bad)
    if bad.lines and not skip_bad:
        raise bad.error("--skip-bad (skip_bad=True) leaves bad rows out.")
    if not len(columns.lines):
        rule = f"the file has no request ({len(bad.lines):,} bad rows, {columns.failed:,} failed)"
        raise ConfigError.one(str(path), "", rule)
    _order(columns, str(path), sort=sort)
    return _trace(columns, path, len(bad.lines))


def _check(columns: Columns, bad: BadRows) -> None:
    """Note the rows that break a rule, and keep the others."""
    arrival = columns.arrival
    clock = arrival is not None and arrival.dtype.kind == "i"
    rules = broken_rules(None if clock else arrival, columns.input_tokens, columns.output_tokens)
    broken = np.zeros(len(columns.lines), bool)
    for name, rule, rows in rules:
        values = getattr(columns, "arrival" if name == "arrival_s" else name)
        for row in np.flatnonzero(rows).tolist():
            bad.add(int(columns.lines[row]), name, rule, f"{values[row]:.15g}")
        broken |= rows
    if broken.any():
        columns.take(np.flatnonzero(~broken))


def _order(columns: Columns, file: str, *, sort: bool) -> None:
    """Bring arrivals into order, or raise; count them from the first where the file has a clock."""
    arrival = columns.arrival
    if arrival is None:
        return
    early = too_early(arrival)
    if early.any() and not sort:
        rows = BadRows(file)
        for row in np.flatnonzero(early).tolist():
            rows.add(int(columns.lines[row]), "", "arrives before a row above it")
        raise rows.error("--sort (sort=True) brings rows into the order of arrival.")
    if early.any():
        columns.take(np.argsort(arrival, kind="stable"))


def _trace(columns: Columns, path: Path, skipped: int) -> RequestTrace:
    arrival = columns.arrival
    if arrival is not None:
        if columns.from_first:
            arrival = arrival - arrival[0]
        if arrival.dtype.kind == "i":
            arrival = arrival / 1e9
    name = path.name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    others: dict[str, Any] = dict(columns.others)
    return RequestTrace(
        arrival_s=np.zeros(len(columns.lines)) if arrival is None else arrival,
        input_tokens=columns.input_tokens,
        output_tokens=columns.output_tokens,
        prefix=columns.prefix,
        **others,
        name=name,
        source=str(path),
        timed=arrival is not None,
        skipped=skipped,
        failed=columns.failed,
    )
