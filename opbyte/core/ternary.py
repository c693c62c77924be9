"""Ternary weights in memory: 2 bits, trits in bytes, index keys of look-up tables, Sherry's 3:4.

A matrix of weights in {-1, 0, 1} is stored row by row. Every `group` weights of a row become a code
of `bits` bits, codes follow each other without gaps from the least significant bit on, and each row
starts at a byte: a row of c weights takes ceil(ceil(c / group) * bits / 8) bytes. Weights that are
missing in a row's last group are zeros.

An index key is sign and magnitude of the balanced ternary number whose digits are the weights: its
magnitude is the entry of a table with (3^mu - 1) / 2 sums, 0 is no entry, and its sign says whether
the entry is subtracted (Geens et al., ISPASS 2026). No lossless code of independent weights is
shorter than their entropy, log2(3) = 1.585 bits where all three are equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.registry import lookup_error

__all__ = [
    "FORMATS",
    "KEY_BITS",
    "MOST_MU",
    "TernaryFormat",
    "check_mu",
    "entries",
    "entropy_bits",
    "key_format",
    "pack",
    "packed_bytes",
    "ternary_format",
    "unpack",
]

Trits = npt.NDArray[np.int8]
Packed = npt.NDArray[np.uint8]

#: Most activations that share a table: the published generator's own limit, 265,720 entries.
MOST_MU = 12


@dataclass(frozen=True)
class TernaryFormat:
    """How groups of weights become codes.

    Attributes:
        name: Its name; keys of tables are called `key1` to `key12`.
        group: Weights of a code.
        bits: Bits of a code.
        dtype: The number format of the same size, by which models and operators know it.
        zeros: Zeros that each group must have, None for any number.
        source: Where it is defined.
    """

    name: str
    group: int
    bits: int
    dtype: str
    source: str
    zeros: int | None = None

    @property
    def bits_per_weight(self) -> float:
        """Return bits of a weight without padding."""
        return self.bits / self.group

    @property
    def bound(self) -> float:
        """Return the bits of a weight that no lossless code of its states can beat on average."""
        states = 3**self.group
        if self.zeros is not None:
            states = math.comb(self.group, self.zeros) * 2 ** (self.group - self.zeros)
        return math.log2(states) / self.group

    @property
    def is_key(self) -> bool:
        """Return whether its codes are sign and index of a table's entry."""
        return self.name.startswith("key")


def entries(mu: int) -> int:
    """Return the sums that a table of mu activations holds, (3^mu - 1) / 2.

    Raises:
        ConfigError: If no table has so many activations.
    """
    count: int = (3 ** check_mu(mu) - 1) // 2
    return count


def check_mu(mu: object) -> int:
    """Return a number of activations that share a table as an int.

    Raises:
        ConfigError: If it is no whole number from 1 to 12.
    """
    whole = isinstance(mu, int | float | np.integer | np.floating) and not isinstance(mu, bool)
    if not whole or mu != int(mu) or not 1 <= mu <= MOST_MU:  # type: ignore[call-overload,operator]
        rule = f"mu, the activations of a table, must be a whole number from 1 to {MOST_MU}"
        raise ConfigError.one("", "mu", rule, mu, "Two to five are usual.")
    return int(mu)  # type: ignore[call-overload,no-any-return]


#: Bits of a key by mu: the index of an entry or none of them, and a sign.
KEY_BITS: Mapping[int, int] = MappingProxyType(
    {mu: math.ceil(math.log2((3**mu - 1) // 2 + 1)) + 1 for mu in range(1, MOST_MU + 1)}
)
_KEY_DTYPE = {1: "t2", 2: "t2", 3: "t1.67", 4: "t1.75", 5: "t1.6", 6: "t1.67", 7: "t1.71"}
_KEYS = "Geens et al., ISPASS 2026: log2ceil(E + 1) + 1 bits"


def _table() -> dict[str, TernaryFormat]:
    rows = [
        TernaryFormat("t2", 1, 2, "t2", "BitNet b1.58: one weight in 2 bits (I2)"),
        TernaryFormat("t1.67", 3, 5, "t1.67", "bitnet.cpp TL2: 3 weights in 5 bits"),
        TernaryFormat("t1.6", 5, 8, "t1.6", "3^5 = 243 <= 256: 5 weights in a byte"),
        TernaryFormat("t1.25", 4, 5, "t1.25", "Sherry, arXiv 2601.07892: one zero in 4", zeros=1),
    ]
    rows += [
        TernaryFormat(f"key{mu}", mu, bits, _KEY_DTYPE[mu], _KEYS)
        for mu, bits in KEY_BITS.items()
        if mu in _KEY_DTYPE
    ]
    return {row.name: row for row in rows}


FORMATS: Mapping[str, TernaryFormat] = MappingProxyType(_table())


def ternary_format(name: str) -> TernaryFormat:
    """Return a format by name.

    Raises:
        ConfigError: If it is unknown, with the nearest name.
    """
    if name not in FORMATS:
        raise lookup_error("ternary format", name, FORMATS)
    return FORMATS[name]


def key_format(mu: int) -> TernaryFormat:
    """Return the format of a table's keys.

    Raises:
        ConfigError: If mu is not from 1 to 7, the sizes for which keys are stored.
    """
    if check_mu(mu) not in _KEY_DTYPE:
        rule = f"keys are stored for mu from 1 to {max(_KEY_DTYPE)}"
        raise ConfigError.one("", "mu", rule, mu)
    return FORMATS[f"key{check_mu(mu)}"]


def packed_bytes(rows: int, columns: int, name: str) -> int:
    """Return the bytes of a matrix, padding of rows included."""
    form = ternary_format(name)
    return rows * math.ceil(math.ceil(columns / form.group) * form.bits / 8)


def entropy_bits(weights: Trits) -> float:
    """Return the entropy of weights as if they were independent, bits of a weight."""
    counts = np.unique(np.asarray(weights), return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def pack(weights: npt.ArrayLike, name: str) -> Packed:
    """Return a matrix as a format stores it, (rows, bytes of a row).

    Args:
        weights: (rows, columns) of -1, 0 and 1, of any number type.
        name: Name of a format.
    Raises:
        ConfigError: If the format is unknown.
        WorkloadError: If something is no matrix of such weights, or a group of Sherry's 3:4 format
            has not one zero; the first place is named.
    """
    form, matrix = ternary_format(name), _checked(weights)
    rows, columns = matrix.shape
    if form.zeros is not None:
        _check_zeros(matrix, form)
    groups = -(-columns // form.group)
    padded = np.zeros((rows, groups * form.group), np.int8)
    padded[:, :columns] = matrix
    codes = _coded(padded.reshape(rows, groups, form.group), form)
    bits = (codes[:, :, None] >> np.arange(form.bits, dtype=codes.dtype)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(rows, -1), axis=1, bitorder="little")


def unpack(packed: Packed, columns: int, name: str) -> Trits:
    """Return the weights that `pack` stored, (rows, columns).

    Raises:
        ConfigError: If the format is unknown.
        WorkloadError: If bytes and columns do not match, or a code has no weights.
    """
    form, stored = ternary_format(name), np.asarray(packed, np.uint8)
    groups = -(-columns // form.group)
    if stored.ndim != 2 or stored.shape[1] != packed_bytes(1, columns, name):
        due = packed_bytes(1, columns, name)
        raise WorkloadError(
            f"{columns} weights of a row take {due} bytes in {name}, got an array of "
            f"{stored.shape}. give the array that `pack` returned"
        )
    bits = np.unpackbits(stored, axis=1, count=groups * form.bits, bitorder="little")
    shaped = bits.reshape(len(stored), groups, form.bits)
    codes = np.zeros(shaped.shape[:2], np.uint16)
    for bit in range(form.bits):
        codes |= shaped[:, :, bit].astype(np.uint16) << np.uint16(bit)
    table, valid = _decoding(name)
    wrong = ~valid[codes]
    if wrong.any():
        row, group = (int(i) for i in np.argwhere(wrong)[0])
        code = int(codes[row, group])
        raise WorkloadError(f"code {code} of row {row}, group {group} has no weights in {name}")
    return table[codes].reshape(len(stored), -1)[:, :columns]


def _checked(weights: npt.ArrayLike) -> Trits:
    matrix = np.asarray(weights)
    if matrix.ndim != 2 or not matrix.size:
        rule = "ternary weights are a matrix of (rows, columns)"
        raise WorkloadError(f"{rule}, got an array of shape {matrix.shape}")
    wrong = (matrix != -1) & (matrix != 0) & (matrix != 1)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        value = matrix[row, column]
        raise WorkloadError(f"ternary weights are -1, 0 or 1, got {value} at [{row}, {column}]")
    return matrix.astype(np.int8)


def _check_zeros(matrix: Trits, form: TernaryFormat) -> None:
    rows, columns = matrix.shape
    if columns % form.group:
        raise WorkloadError(
            f"{form.name} stores rows of whole groups of {form.group} weights, got {columns} "
            "columns"
        )
    zeros = (matrix.reshape(rows, -1, form.group) == 0).sum(axis=2)
    wrong = zeros != form.zeros
    if wrong.any():
        row, group = (int(i) for i in np.argwhere(wrong)[0])
        raise WorkloadError(
            f"{form.name} needs {form.zeros} zero in every {form.group} weights, got "
            f"{zeros[row, group]} in row {row}, columns {form.group * group} to "
            f"{form.group * (group + 1) - 1}. prune the weights 3:4, or store them in t1.6"
        )


def _coded(groups: Trits, form: TernaryFormat) -> npt.NDArray[np.uint16]:
    """Return the code of each group, (rows, groups); groups are (rows, groups, group)."""
    place = 3 ** np.arange(form.group - 1, -1, -1, dtype=np.int32)
    if form.is_key:
        # The first weight is the highest digit of a balanced ternary number.
        number = groups.astype(np.int32) @ place
        return np.asarray(np.abs(number) | (number < 0) << (form.bits - 1), np.uint16)
    if form.zeros is not None:
        return _sherry(groups)
    if form.group == 1:
        return np.asarray(groups[:, :, 0] + 1, np.uint16)
    return np.asarray((groups + np.int8(1)).astype(np.int32) @ place, np.uint16)


def _sherry(groups: Trits) -> npt.NDArray[np.uint16]:
    """Return Sherry's codes: where the zero is, two signs against the first weight's, its sign."""
    where = np.argmax(groups == 0, axis=2).astype(np.uint16)
    kept = np.take_along_axis(groups, _KEPT[where], axis=2)
    against = (kept[:, :, 1:] != kept[:, :, :1]).astype(np.uint16)
    negative = (kept[:, :, 0] < 0).astype(np.uint16)
    return np.asarray(where | against[:, :, 0] << 2 | against[:, :, 1] << 3 | negative << 4)


#: The three other places of a group, by where its zero is.
_KEPT = np.array([[i for i in range(4) if i != zero] for zero in range(4)], dtype=np.int64)


@lru_cache(maxsize=32)
def _decoding(name: str) -> tuple[Trits, npt.NDArray[np.bool_]]:
    """Return the weights of each code, (codes, group), and which codes have any, (codes,)."""
    form = ternary_format(name)
    count = 3**form.group
    digits = np.arange(count)[:, None] // 3 ** np.arange(form.group - 1, -1, -1) % 3
    every = (digits - 1).astype(np.int8)
    if form.zeros is not None:
        every = every[(every == 0).sum(axis=1) == form.zeros]
    codes = _coded(every[None], form)[0]
    table = np.zeros((2**form.bits, form.group), np.int8)
    valid = np.zeros(2**form.bits, bool)
    table[codes], valid[codes] = every, True
    return table, valid
