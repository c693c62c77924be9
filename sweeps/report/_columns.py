"""Columns of results as compact text that a page decodes to exactly the same values.

A column is bytes of equal width, grouped by significance (all first bytes, then all second ones,
...), compressed (zlib) and written in base64:

    codes     few distinct values: unsigned positions in `values`
    integers  whole numbers below 2^31, as differences of int32
    wide      other whole numbers, int64
    floats    everything else, float64
    words     texts: positions in `texts`
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["encoded", "text_of"]

#: Columns with more distinct values are no dictionary.
_MOST_CODES = 65_536
_LEVEL = 6


def encoded(column: pd.Series) -> dict[str, Any]:
    """Return a column in plain data: `kind`, `data`, and what the kind needs beside.

    Args:
        column: Numbers or texts; missing values are NaN or None.
    """
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return _words(column)
    values = column.to_numpy()
    if np.issubdtype(values.dtype, np.integer):
        return _whole(values.astype(np.int64))
    return _floats(values.astype(np.float64))


def text_of(raw: npt.NDArray[Any]) -> str:
    """Return the bytes of an array, grouped by significance and compressed, as base64."""
    width = raw.dtype.itemsize
    little = np.ascontiguousarray(raw.astype(raw.dtype.newbyteorder("<")))
    planes = little.view(np.uint8).reshape(-1, width).T
    return base64.b64encode(zlib.compress(planes.tobytes(), _LEVEL)).decode("ascii")


def _words(column: pd.Series) -> dict[str, Any]:
    codes, texts = pd.factorize(column.map(lambda v: "" if _missing(v) else str(v)), sort=False)
    shown = [str(t) for t in texts]
    return {"kind": "words", "texts": shown, "data": text_of(codes.astype(_width(len(shown))))}


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _whole(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    if not len(values) or (values.max() < 2**30 and values.min() > -(2**30)):
        steps = np.diff(values, prepend=0).astype(np.int32)
        return {"kind": "integers", "data": text_of(steps)}
    return {"kind": "wide", "data": text_of(values)}


def _floats(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    # By bits, so that -0.0 stays what it is; all NaN are one.
    values = np.where(np.isnan(values), np.nan, values)
    bits, codes = np.unique(values.view(np.int64), return_inverse=True)
    if len(bits) > min(_MOST_CODES, max(len(values) // 4, 16)):
        return {"kind": "floats", "data": text_of(values)}
    data = text_of(codes.astype(_width(len(bits))))
    return {"kind": "codes", "values": text_of(bits.view(np.float64)), "data": data}


def _width(count: int) -> type[np.unsignedinteger[Any]]:
    if count <= 2**8:
        return np.uint8
    return np.uint16 if count <= 2**16 else np.uint32
