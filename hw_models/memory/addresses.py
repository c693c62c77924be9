"""From byte addresses to banks, rows and columns of one channel.

A decoded request is one integer: the bank's number in the lowest 10 bits, its column in the next
20, bit 30 for a write, the row above bit 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.registry import lookup_error
from opbyte.hw_models.memory.standards import Standard

__all__ = ["COLUMN_AT", "MAPPINGS", "ROW_AT", "WRITE", "Mapping", "decode", "encode", "pack"]

Ints = npt.NDArray[np.int64]
MAPPINGS = ("RoBaRaCoCh", "ChRaBaRoCo", "MOP4CLXOR")
Mapping = str | Sequence[str]

COLUMN_AT, WRITE, ROW_AT = 10, 1 << 30, 32
_BANKS, _COLUMNS = 1 << 10, 1 << 20


def decode(
    standard: Standard, addresses: npt.ArrayLike, mapping: Mapping = "RoBaRaCoCh"
) -> dict[str, Ints]:
    """Split byte addresses into fields.

    Args:
        standard: The memory.
        addresses: Bytes within the channel, (requests,).
        mapping: `RoBaRaCoCh` (from the lowest bit: column, levels, row), `ChRaBaRoCo` (column, row,
            levels from the bank up), `MOP4CLXOR` (two bits of column, levels, rest of the column,
            row; levels and row XORed by column bits), or the fields from the lowest bit, `name` or
            `name:bits`, such as `["column:2", "bankgroup", "bank", "column", "row"]`.

    Returns:
        One array for each level, `row` and `column`.

    Raises:
        WorkloadError: If an address lies outside the channel.
        ConfigError: If the mapping is unknown or does not cover each field once.
    """
    given = checked(standard, addresses)
    rest = given.astype(np.int64) // standard.burst_bytes
    fields = {name: np.zeros(rest.shape, np.int64) for name in widths(standard)}
    have = dict.fromkeys(fields, 0)
    for name, bits in layout(standard, mapping):
        fields[name] |= (rest & ((1 << bits) - 1)) << have[name]
        have[name] += bits
        rest >>= bits
    if isinstance(mapping, str) and mapping == "MOP4CLXOR":
        _exclusive_or(standard, fields)
    return fields


def checked(standard: Standard, addresses: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
    """Return the addresses as an array of whole numbers within the channel, (requests,).

    Raises:
        WorkloadError: If they are none.
    """
    given = np.asarray(addresses)
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
        raise WorkloadError(
            "addresses must be whole numbers in one dimension, at least one; "
            f"got shape {given.shape} of {given.dtype}. Give byte addresses within the channel."
        )
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= standard.capacity_bytes:
        wrong = low if low < 0 else high
        raise WorkloadError(
            f"addresses must lie within the channel of {standard.name}, 0 to "
            f"{standard.capacity_bytes - 1} bytes, got {wrong}. Take them modulo the capacity."
        )
    return given


def encode(standard: Standard, fields: dict[str, Ints]) -> Ints:
    """Return the byte addresses whose RoBaRaCoCh fields these are; absent fields are 0."""
    size = max(np.size(values) for values in fields.values())
    address = np.zeros(size, np.int64)
    at = 0
    for name, bits in layout(standard, "RoBaRaCoCh"):
        if name in fields:
            address |= np.asarray(fields[name], np.int64) << at
        at += bits
    return address * standard.burst_bytes


def pack(
    standard: Standard, fields: dict[str, Ints], is_write: npt.NDArray[np.bool_] | None = None
) -> Ints:
    """Return the requests as the kernel takes them, one integer each.

    Raises:
        ConfigError: If the memory has more banks or columns than fit.
    """
    if standard.banks > _BANKS or standard.columns > _COLUMNS:
        rule = f"at most {_BANKS} banks and {_COLUMNS} columns per channel are covered"
        raise ConfigError.one(standard.name, "organisation", rule, standard.banks)
    bank = np.zeros(fields["row"].shape, np.int64)
    for name, size in zip(standard.levels, standard.sizes, strict=True):
        bank = bank * size + fields[name]
    packed: Ints = bank | (fields["column"] << COLUMN_AT) | (fields["row"] << ROW_AT)
    if is_write is not None:
        packed |= np.where(is_write, WRITE, 0)
    return packed


def widths(standard: Standard) -> dict[str, int]:
    """Return how many bits each field has; levels in their order, row, column."""
    sizes = dict(zip(standard.levels, standard.sizes, strict=True))
    sizes |= {"row": standard.rows, "column": standard.columns}
    return {name: size.bit_length() - 1 for name, size in sizes.items()}


def layout(standard: Standard, mapping: Mapping) -> list[tuple[str, int]]:
    """Return the fields from the lowest bit behind the burst, with their bits."""
    bits = widths(standard)
    order: Sequence[str]
    if not isinstance(mapping, str):
        if not isinstance(mapping, Sequence):
            raise lookup_error("address mapping", str(mapping), MAPPINGS, standard.name)
        order = mapping
    elif mapping == "RoBaRaCoCh":
        order = ("column", *standard.levels, "row")
    elif mapping == "ChRaBaRoCo":
        order = ("column", "row", *reversed(standard.levels))
    elif mapping == "MOP4CLXOR":
        if bits["column"] < 2:
            rule = "needs at least two bits of column"
            raise ConfigError.one(standard.name, "mapping", rule, bits["column"])
        order = ("column:2", *standard.levels, "column", "row")
    else:
        raise lookup_error("address mapping", mapping, MAPPINGS, standard.name)
    return _custom(standard.name, order, dict(bits))


def _custom(where: str, order: Sequence[Any], left: dict[str, int]) -> list[tuple[str, int]]:
    fields = []
    for entry in order:
        name, colon, count = (part.strip() for part in str(entry).partition(":"))
        if name not in left:
            raise lookup_error("field of an address", name, left, f"{where}: mapping")
        numeral = count.isascii() and count.isdigit()
        bits = int(count) if numeral else left[name]
        if bits > left[name] or (colon and not numeral):
            rule = f"field {name} has {left[name]} bits left"
            raise ConfigError.one(where, "mapping", rule, entry, "Write `name` or `name:bits`.")
        left[name] -= bits
        fields.append((name, bits))
    missing = [name for name, bits in left.items() if bits]
    if missing:
        rule = "every bit of an address must belong to a field"
        raise ConfigError.one(where, "mapping", rule, list(order), f"Add {', '.join(missing)}.")
    return fields


def _exclusive_or(standard: Standard, fields: dict[str, Ints]) -> None:
    at = 0
    for name, bits in widths(standard).items():
        if name == "column":
            continue
        fields[name] ^= (fields["column"] >> at) & ((1 << bits) - 1)
        at += bits
