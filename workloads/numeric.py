"""Arithmetic that holds for a number and for one value per design point, and checks of both."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Array, Number


def is_array(value: object) -> TypeGuard[Array]:
    """Return whether `value` holds one number for each design point."""
    return isinstance(value, np.ndarray)


def is_zero(value: Number) -> bool:
    """Return whether a value is zero at every point."""
    return not value.any() if is_array(value) else value == 0


def minimum(a: Number, b: Number) -> Number:
    """Return the smaller, point by point; plain floats stay plain floats."""
    if is_array(a) or is_array(b):
        return np.minimum(a, b)
    return min(a, b)


def maximum(a: Number, b: Number) -> Number:
    """Return the larger, point by point; plain floats stay plain floats."""
    if is_array(a) or is_array(b):
        return np.maximum(a, b)
    return max(a, b)


def floor_div(a: Number, b: int) -> Number:
    """Return floor(a / b), point by point."""
    return np.floor(a / b) if is_array(a) else float(a // b)


def ceil_div(a: Number, b: int) -> Number:
    """Return ceil(a / b), point by point: what the fullest of `b` devices gets."""
    if b == 1:
        return a
    return np.ceil(a / b) if is_array(a) else float(-(-a // b))


def share(size: int, parts: int) -> int:
    """Return ceil(size / parts): what the fullest of `parts` devices holds of `size` things."""
    return -(-size // parts)


def checked(kind: str, name: str, value: Any, least: float = 1.0, *, whole: bool = False) -> Number:
    """Return a count of a work: a plain float, or a float64 array of shape (points,).

    Args:
        kind: Name of the work, for the message.
        name: Name of the field, for the message.
        value: A whole number, or a sequence with one for each design point (means need not be
            whole).
        least: Smallest value that makes sense.
        whole: Sequences hold whole numbers too.

    Raises:
        WorkloadError: If it is not a number, not finite, too small, or a scalar that is not whole.
    """
    if isinstance(value, list | tuple) or (is_array(value) and np.ndim(value)):
        return _checked_array(kind, name, value, least, whole=whole)
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.number | np.ndarray):
        raise WorkloadError(f"{kind}: {name} must be a whole number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number != math.floor(number):
        raise WorkloadError(f"{kind}: {name} must be a whole number, got {value}")
    if number < least:
        raise WorkloadError(f"{kind}: {name} must be at least {least:g}, got {value}")
    return number


def _checked_array(kind: str, name: str, value: Any, least: float, *, whole: bool) -> Array:
    try:
        array = np.asarray(value)
        array = array.astype(
            np.float64, casting="same_kind" if array.dtype.kind == "c" else "unsafe"
        )
    except (TypeError, ValueError):
        raise WorkloadError(f"{kind}: {name} must hold numbers, got {value!r:.80}") from None
    if array.ndim != 1 or not array.size:
        raise WorkloadError(
            f"{kind}: {name} must be one number or a list with one for each design point, "
            f"got an array of shape {array.shape}"
        )
    bad = ~(np.isfinite(array) & (array >= least))
    if whole:
        bad |= array != np.floor(array)
    if bad.any():
        point = int(np.flatnonzero(bad)[0])
        rule = "a whole number of" if whole else "finite and"
        raise WorkloadError(
            f"{kind}: {name} must be {rule} at least {least:g}, got {array[point]} at point {point}"
        )
    return array


def same_points(kind: str, **fields: Number) -> None:
    """Check that all arrays among the fields of a work have the same length.

    Raises:
        WorkloadError: If two of them differ, with both names and lengths.
    """
    sizes = {name: value.size for name, value in fields.items() if is_array(value)}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise WorkloadError(f"{kind}: arrays must have one value for each design point: {listed}")
