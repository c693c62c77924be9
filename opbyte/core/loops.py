"""How loops that run millions of times are compiled, and when compiled again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core import types
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import make_array

__all__ = ["LOOP", "apart", "bare", "compiled", "part"]

#: For Numba, of loops that allocate nothing and whose callers hold all arrays: division says NaN
#: or infinite as NumPy's does, and references are not counted. Counting them took two thirds of
#: the time of a serving step. Numba refuses whatever does allocate ("NRT required").
LOOP: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
#: Decorator of functions that become part of the loop that calls them. As calls they would be
#: handed all arrays of the state, some hundred words, which took half of the time of a step.
part = register_jitable(forceinline=True)
#: Decorator of functions that the loop calls: rare ones, which would only make it longer.
apart = register_jitable(error_model="numpy", _nrt=False)


def _begin(_context: Any, array: Any) -> Any:
    def begin(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return make_array(array)(context, builder, args[0]).data  # type: ignore[no-untyped-call]

    return types.CPointer(array.dtype)(array), begin  # type: ignore[no-untyped-call]


#: Within a loop: where the numbers of an array begin, of which no index may be below 0. NumPy's
#: indices count from the end if they are below 0: to ask that at each of them took a third of the
#: time of a loop over records, and an array is handed on as seven words.
bare: Any = intrinsic(_begin)


@cache
def source_stamp(files: tuple[Path, ...]) -> int:
    """Return a number that changes with what the files hold."""
    text = b"".join(file.read_bytes() for file in files)
    return int.from_bytes(sha256(text).digest()[:6], "little")


@cache
def _compiled(function: Callable[..., Any], files: tuple[Path, ...]) -> Any:
    stamp = source_stamp(files)

    def of_source(*args: Any) -> Any:
        assert stamp >= 0
        return function(*args)

    return numba.njit(**LOOP)(of_source)


def compiled(function: Callable[..., Any], files: Iterable[Path]) -> Any:
    """Return a function compiled, once per process; its cache on disk notices changes of `files`.

    Numba's cache looks at the file of the function that it compiles, and not at what that calls:
    so a stamp of all source that may be compiled into it belongs to what is compiled.

    Args:
        function: Of a module, without keyword arguments.
        files: Whose functions and constants may be compiled into it.
    """
    return _compiled(function, tuple(files))
