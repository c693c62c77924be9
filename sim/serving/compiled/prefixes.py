"""Prefixes that prompts share, as the compiled serving loop sees them: contents are numbered.

A content is what a block of one request holds. Those that several requests may have come first,
each prefix block's KV blocks one after the other; behind them are the others of each request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import overload, register_jitable

from opbyte.sim.serving.requests import kv_blocks_inside
from opbyte.workloads.traces import RequestTrace

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Prefixes(NamedTuple):
    """Contents, and where the cache holds them.

    Attributes:
        ids: Numbers of the prefix blocks of all requests, one request after the other, (blocks,).
        first: Where those of each request are, (requests,).
        shared: Leading KV blocks of each prompt whose contents others may have, (requests,).
        own: Content of the first block behind those, (requests,).
        inside: KV blocks of a prefix block.
        row: Which of those requests each request of the engine is, (requests of the engine,).
            This and what follows have another axis in front for several engines.
        known: One more than the block that holds a content, 0 for none, (contents,).
        tables: Blocks of who runs, (max_sequences, most blocks of a request).
        slots: Rows of the tables that nobody uses, at the front, (max_sequences,).
    """

    ids: Longs
    first: Longs
    shared: Ints
    own: Longs
    inside: int
    row: Ints
    known: Ints
    tables: Ints
    slots: Ints


class Unshared(Prefixes):
    """Where prompts share nothing; a type of its own, so that the loop is compiled without them."""


def sharing(p: Prefixes) -> bool:
    """Return whether prompts share prefixes, so that several requests may hold a block."""
    return not isinstance(p, Unshared)


@overload(sharing, strict=False)
def _sharing(p: Any) -> Any:
    """Return what says so: the same for all of a type."""
    shares = p.instance_class is Prefixes

    def of_type(p: Any) -> bool:  # noqa: ARG001
        return shares

    return of_type


def no_prefixes() -> Unshared:
    """Return what the loop works on where prompts share nothing."""
    ints, longs = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return Unshared(longs, longs, ints, longs, 1, ints, ints, np.zeros((0, 0), np.int32), ints)


def prefixes_of(
    trace: RequestTrace, rows: Longs, block_tokens: int, sequences: int, ahead: int = 0
) -> Prefixes:
    """Number the contents of a trace's requests; none is in the cache.

    Args:
        rows: Those that are served, (requests,).
        sequences: Requests that run at once.
        ahead: Tokens of a request that are computed at once beyond its next one.
    Raises:
        UncoveredError: If prefix blocks do not consist of KV blocks.
    """
    assert trace.prefix is not None
    prefix = trace.prefix.take(rows)
    inside = kv_blocks_inside(prefix, block_tokens)
    given, whole = trace.input_tokens[rows], (trace.input_tokens + trace.output_tokens)[rows]
    different, ids = np.unique(prefix.ids, return_inverse=True)
    for column in (trace.adapter, trace.model):
        if column is not None:
            # Another adapter or model computes other keys and values of the same text.
            of = np.unique(np.repeat(column[rows], prefix.counts), return_inverse=True)[1]
            different, ids = np.unique(ids * (len(ids) + 1) + of, return_inverse=True)
    shared = np.minimum(prefix.counts * inside, given // block_tokens)
    held = -(-(whole + ahead) // block_tokens)
    ends = len(different) * inside + np.cumsum(held - shared)
    return Prefixes(
        ids.astype(np.int64),
        prefix.offsets[:-1],
        shared.astype(np.int32),
        ends - (held - shared),
        inside,
        np.arange(len(rows), dtype=np.int32),
        np.zeros(int(ends.max(initial=0)), np.int32),
        np.zeros((sequences, int(held.max(initial=0))), np.int32),
        np.arange(sequences, dtype=np.int32),
    )


def for_engines(p: Prefixes, engines: int, room: int) -> Prefixes:
    """Return the same for several engines, with room for so many requests each."""
    if isinstance(p, Unshared):
        return p
    return p._replace(
        row=np.zeros((engines, room), np.int32),
        known=np.zeros((engines, *p.known.shape), np.int32),
        tables=np.zeros((engines, *p.tables.shape), np.int32),
        slots=np.stack([p.slots] * engines),
    )


@register_jitable
def _of_engine(p: Prefixes, i: int) -> Prefixes:
    return Prefixes(
        p.ids, p.first, p.shared, p.own, p.inside, p.row[i], p.known[i], p.tables[i], p.slots[i]
    )


def at_engine(p: Prefixes, i: int) -> Prefixes:
    """Return what one of several engines sees."""
    return _of_engine(p, i) if sharing(p) else p


@overload(at_engine, strict=False)
def _at_engine(p: Any, i: Any) -> Any:
    """Return what does so for a type."""
    del i

    def shared(p: Any, i: Any) -> Any:
        return _of_engine(p, i)

    def unshared(p: Any, i: Any) -> Any:  # noqa: ARG001
        return p

    return shared if p.instance_class is Prefixes else unshared


@register_jitable
def content(p: Prefixes, r: int, number: int) -> int:
    """Return what a block of a request of the engine holds, by its number."""
    return content_of(p, p.row[r], number)


@register_jitable
def content_of(p: Prefixes, row: int, number: int) -> int:
    """Return what a block of a request of the trace holds, by its number."""
    if number < p.shared[row]:
        block = number // p.inside
        return int(p.ids[p.first[row] + block] * p.inside + number - block * p.inside)
    return int(p.own[row] + number - p.shared[row])


@register_jitable
def leading(p: Prefixes, r: int, most: int) -> int:
    """Return how many leading contents of a request the cache holds, at most so many."""
    row = p.row[r]
    shared, at, number = min(p.shared[row], most), p.first[row], 0
    while number < shared:
        begin = p.ids[at] * p.inside
        for i in range(min(p.inside, shared - number)):
            if p.known[begin + i] == 0:
                return int(number + i)
        number += p.inside
        at += 1
    number = shared
    while number < most and p.known[p.own[row] + number - p.shared[row]] > 0:
        number += 1
    return int(number)
