"""Named address streams: the ones that memories are usually measured with."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.core.registry import lookup_error
from opbyte.hw_models.memory.addresses import encode, widths
from opbyte.hw_models.memory.standards import Standard, is_whole

__all__ = ["PATTERNS", "addresses_of", "streams_of", "writes_of"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
#: `stride` takes a number of bytes, such as `stride4096`; `rand` takes the block, `rand_1KB`.
PATTERNS = (
    "seq", "bankint", "bgint", "rand_tx", "rand_64B", "rand_1KB", "stride4096", "rowconflict",
)  # fmt: skip
_ALIASES = {"random": "rand_tx", "stream": "seq"}
_STRIDE = re.compile(r"stride(\d+)")
_BLOCK = re.compile(r"rand_(\d+)(K?)B")


def addresses_of(
    standard: Standard, pattern: str, count: int, seed: int = 1, start: int = 0
) -> Ints:
    """Return `count` byte addresses of a pattern.

    Args:
        standard: The memory.
        pattern: `seq`; `bankint` (pseudo-channel, then the other levels, then column, then row);
            `bgint` (pseudo-channel and bank group, then column, then the other levels); `rand_tx`
            (single bursts), `rand_64B`, `rand_1KB` (blocks of whole bursts, one at least);
            `stride` and bytes; `rowconflict` (a new row of one bank each time).
        count: Requests, one burst each.
        seed: Of the random patterns.
        start: Requests to leave out before; random patterns draw anew from each start.

    Raises:
        ConfigError: For an unknown pattern, with the nearest; for a block that does not fit.
    """
    name = _ALIASES.get(pattern, pattern)
    burst, capacity = standard.burst_bytes, standard.capacity_bytes
    if not is_whole(seed) or seed < 0:
        raise ConfigError.one(standard.name, "seed", "must be a whole number from 0 on", seed)
    index = np.arange(start, start + count, dtype=np.int64)
    draw = [seed, start] if start else seed
    simple: dict[str, Callable[[], Ints]] = {
        "seq": lambda: index * burst % capacity,
        "bankint": lambda: _rotated(standard, index, (*standard.levels, "column", "row")),
        "bgint": lambda: _rotated(standard, index, _by_group(standard)),
        "rand_tx": lambda: _blocks(standard, count, burst, draw),
        "rowconflict": lambda: encode(standard, {"row": index % standard.rows}),
    }
    if name in simple:
        return simple[name]()
    stride, block = _STRIDE.fullmatch(name), _BLOCK.fullmatch(name)
    if stride and int(stride[1]):
        return index * (int(stride[1]) % capacity) % capacity
    if block and int(block[1]):
        size = int(block[1]) * (1024 if block[2] else 1)
        whole = size % burst == 0 if size > burst else size & (size - 1) == 0
        if not whole or size > capacity:
            rule = (
                f"must take blocks of whole bursts of {burst} bytes, or of a power of two below, "
                f"at most {capacity} bytes"
            )
            raise ConfigError.one(standard.name, "pattern", rule, pattern)
        return _blocks(standard, count, max(size, burst), draw)
    raise lookup_error("pattern", pattern, (*PATTERNS, *_ALIASES))


def streams_of(standard: Standard, streams: int, count: int) -> Ints:
    """Return byte addresses of sequential streams that take turns, (count,).

    Each stream has a part of the channel to itself and starts one row further than the last one,
    so that they do not march through the same bank.
    """
    row = standard.columns * standard.burst_bytes
    part = standard.capacity_bytes // streams // row * row
    index = np.arange(count, dtype=np.int64)
    own = index % streams
    runs = own * (part + row) + index // streams * standard.burst_bytes % max(part, row)
    return runs % standard.capacity_bytes


def writes_of(count: int, read_pct: int, start: int = 0) -> Bools | None:
    """Return which requests write; None where all read.

    Writes are spread evenly: request i writes where the count of writes up to it grows. 67 % reads
    are every third request.
    """
    if read_pct >= 100:
        return None
    if read_pct == 67:
        third: Bools = np.arange(start, start + count) % 3 == 2
        return third
    share = (100 - read_pct) / 100
    grown = np.floor(np.arange(start, start + count + 1) * share + 1e-9)
    writes: Bools = np.diff(grown) > 0
    return writes


def _rotated(standard: Standard, index: Ints, order: tuple[str, ...]) -> Ints:
    """Count through the fields of `order`, the first one fastest."""
    bits = widths(standard)
    fields, rest = {}, index
    for name in order:
        fields[name] = rest & ((1 << bits[name]) - 1)
        rest = rest >> bits[name]
    return encode(standard, fields)


def _by_group(standard: Standard) -> tuple[str, ...]:
    fast = tuple(n for n in standard.levels if n in ("pseudochannel", "bankgroup"))
    slow = tuple(n for n in standard.levels if n not in fast)
    return (*fast, "column", *slow, "row")


def _blocks(standard: Standard, count: int, block: int, seed: int | list[int]) -> Ints:
    """Return random aligned blocks, each as consecutive bursts."""
    burst = standard.burst_bytes
    each = block // burst
    blocks = -(-count * burst // block)
    starts = np.random.default_rng(seed).integers(0, standard.capacity_bytes // block, blocks)
    inside = np.arange(each, dtype=np.int64) * burst
    return (starts[:, None] * block + inside).reshape(-1)[:count]
