"""The lowest set bit of a mask, as one machine instruction."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

__all__ = ["lowest"]


def _lowest(_typing: Any, mask: Any) -> Any:
    """Return the number of the lowest set bit of an int64 that is not 0."""
    del mask

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        import llvmlite.ir as ir

        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


lowest: Any = intrinsic(_lowest)
