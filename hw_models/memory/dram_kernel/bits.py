"""What takes one machine instruction, or none."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

__all__ = ["index", "lowest"]


def _lowest(_typing: Any, mask: Any) -> Any:
    """Return the number of the lowest set bit of an int64 that is not 0."""
    del mask

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        import llvmlite.ir as ir

        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


lowest: Any = intrinsic(_lowest)


def _index(_typing: Any, number: Any) -> Any:
    """Return the lower half of an int64, so that the compiler sees that it is not negative.

    No index then counts from the end, and each element that is looked up saves a comparison.
    """
    del number

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        import llvmlite.ir as ir

        return builder.zext(builder.trunc(arguments[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.int64), generate


index: Any = intrinsic(_index)
