"""Files that are written whole or not at all, and files that strangers may have left."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from opbyte.core.errors import SimulationError

__all__ = ["check_regular", "read_json", "whole", "write_json"]


def check_regular(path: Path) -> None:
    """Raise if a path leads to a pipe, a device or a folder: opening one may never end.

    Raises:
        OSError: If it does, or leads nowhere.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "it is no regular file", str(path))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: If it can not be read, or is no regular file.
        ValueError: If it holds no JSON, or lists in lists without an end.
    """
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("too many lists in lists") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Raises:
        SimulationError: If there is no room, or it may not be written.
    """
    text = json.dumps(data, indent=1, default=str) + "\n"
    with whole(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside a path; it takes its place when all of it is on the disk, or is gone.

    Raises:
        SimulationError: If there is no room, or it may not be written.
    """
    token = f"{os.getpid()}-{secrets.token_hex(4)}-{socket.gethostname()}"
    temporary = path.with_name(f".{token}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        remedy = "Finished points are kept: run the same command when this is mended."
        raise SimulationError(f"{path.parent}: can not be written ({reason}). {remedy}") from None
    finally:
        temporary.unlink(missing_ok=True)
