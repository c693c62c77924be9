"""Compiled functions whose cache on disk notices changes of all that is compiled into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba

from opbyte.core.loops import LOOP
from opbyte.hw_models.compute.gpu import attention


def stamped_files() -> list[Path]:
    """Return the files whose functions and constants may be compiled into a loop of serving."""
    kernels = Path(str(attention.__file__)).parent
    return sorted([*Path(__file__).parent.rglob("*.py"), *kernels.glob("*.py")])


@cache
def source_stamp() -> int:
    """Return a number that changes with the source of those files."""
    text = b"".join(file.read_bytes() for file in stamped_files())
    return int.from_bytes(sha256(text).digest()[:6], "little")


@cache
def compiled(function: Callable[..., Any]) -> Any:
    """Return a function compiled.

    Numba's cache looks at the file of the function that it compiles, and not at what that calls:
    so the stamp belongs to what it compiles.

    Args:
        function: Of a module, without keyword arguments.
    """
    stamp = source_stamp()

    def of_source(*args: Any) -> Any:
        assert stamp >= 0
        return function(*args)

    return numba.njit(**LOOP)(of_source)
