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
    """Return an int64, and tell the compiler that it is not negative: no index counts from the end.

    Each element that is looked up by it then saves a comparison.
    """
    del number

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zero = arguments[0].type(0)
        builder.assume(builder.icmp_signed(">=", arguments[0], zero))
        return arguments[0]

    return types.int64(types.int64), generate


index: Any = intrinsic(_index)
