"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from opbyte.core.errors import SimulationError

__all__ = ["whole", "write_json"]


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
