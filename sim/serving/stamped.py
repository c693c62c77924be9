"""Compiled functions whose cache on disk notices changes of all that is compiled into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from opbyte.core import loops
from opbyte.hw_models.compute.gpu import attention


@cache
def stamped_files() -> tuple[Path, ...]:
    """Return the files whose functions and constants may be compiled into a loop of serving."""
    kernels = Path(str(attention.__file__)).parent
    return tuple(sorted([*Path(__file__).parent.rglob("*.py"), *kernels.glob("*.py")]))


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function of serving compiled, once per process.

    Args:
        function: Of a module, without keyword arguments.
    """
    return loops.compiled(function, stamped_files())
