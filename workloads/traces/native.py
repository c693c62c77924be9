"""Writing traces: Mooncake's JSONL, which replays on real servers too."""

from __future__ import annotations

import gzip
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import IO, cast

from opbyte.core.errors import ConfigError
from opbyte.workloads.traces.jsonl_formats import NATIVE_BLOCK_TOKENS
from opbyte.workloads.traces.trace import RequestTrace

__all__ = ["write_trace"]

_KEYS = {
    "session": "session_id",
    "tenant": "tenant",
    "priority": "priority",
    "adapter": "adapter",
    "model": "model",
}


def write_trace(trace: RequestTrace, path: str | Path) -> Path:
    """Write a trace as JSON lines; packed where the name ends in `.gz`.

    A line has `timestamp` (milliseconds; none where the trace is not timed), `input_length`,
    `output_length`, and as far as the trace has them `hash_ids`, `block_size` (where it is not
    512), `session_id`, `tenant`, `priority`, `adapter`, `model`. Timestamps are decimals that
    `read_trace` brings back to the very same float. The client of a closed loop is not written.

    Raises:
        ConfigError: If the file can not be written; an existing one is then unchanged.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as plain:
            if path.suffix == ".gz":
                # No time of writing and no name inside: equal traces make equal files.
                with gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as packed:
                    _write(trace, cast("IO[bytes]", packed))
            else:
                _write(trace, plain)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError.one(str(path), "", f"can not be written: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _write(trace: RequestTrace, file: IO[bytes]) -> None:
    keys = [(key, getattr(trace, ours)) for ours, key in _KEYS.items()]
    others = [(key, values.tolist()) for key, values in keys if values is not None]
    prefix = trace.prefix
    size = prefix.block_tokens if prefix is not None else NATIVE_BLOCK_TOKENS
    block = "" if size == NATIVE_BLOCK_TOKENS else f', "block_size": {size}'
    offsets = prefix.offsets.tolist() if prefix is not None else []
    columns = zip(
        trace.arrival_s.tolist(),
        trace.input_tokens.tolist(),
        trace.output_tokens.tolist(),
        strict=True,
    )
    for row, (arrival, asked, answered) in enumerate(columns):
        time = f'"timestamp": {_milliseconds(arrival)}, ' if trace.timed else ""
        text = f'{{{time}"input_length": {asked}, "output_length": {answered}'
        if prefix is not None:
            ids = prefix.ids[offsets[row] : offsets[row + 1]].tolist()
            text += f', "hash_ids": {json.dumps(ids)}{block}'
        for key, values in others:
            text += f', "{key}": {values[row]}'
        file.write(f"{text}}}\n".encode())


def _milliseconds(seconds: float) -> str:
    """Return the shortest decimal of `seconds` with its point moved by three places."""
    number = Decimal(repr(seconds)).scaleb(3)
    if not number:
        return "0"
    plain = f"{number:f}" if -9 <= number.adjusted() <= 20 else str(number)
    return plain.rstrip("0").rstrip(".") if "." in plain and "E" not in plain else plain
