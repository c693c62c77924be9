"""Attention calls as kernels: score, softmax and context that are one operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps, reduced
from opbyte.hw_models.compute.base import Rows, arithmetic
from opbyte.hw_models.compute.gpu.attention_libraries import ATTENTION_LIBRARIES, AttentionLibrary
from opbyte.hw_models.compute.gpu.parameters import GpuView, stacked

CALL = ("score", "softmax", "context")
#: Parameters of the block `kernel.latent`, in the order of the compiled loop's columns.
LATENT = ("trip", "start", "single")
#: Facts, and parameters of `kernel` and of `kernel.attention`, in the order of its columns.
FACTS = (
    "sms", "peak", "lanes", "clock", "port", "shared", "shared_bytes", "threads", "l2_rate",
    "l2_bytes", "pins", "stream",
)  # fmt: skip
SHARED = ("matrix", "latency", "l2_share", "overlap")
ATTENTION = (
    "softmax", "pairing", "start", "turn", "empty", "tail", "small", "copying", "combine", "write",
)  # fmt: skip

#: Seconds of calls of one arithmetic dtype, given the rows of their scores.
_Seconds = Callable[[OpTable, Rows, str], Array]


def attention_facts(view: GpuView, dtype: str, launch: str) -> Array | None:
    """Return the columns of `attention`, (1 or points, FACTS), None without its parameters.

    Args:
        launch: Launch mode, which gives the gap between kernels.
    """
    block = view.block("attention", ATTENTION)
    if block is None:
        return None
    named = view.named(dtype)
    gap = view.unit.get(f"launch.{launch}", 0.0)
    return stacked(*(named[n] for n in FACTS), gap, *(named[n] for n in SHARED), *block)


@dataclass(frozen=True)
class AttentionCall:
    """What `attention.call_seconds` reads of one operator.

    Attributes:
        sizes: Rows of the call, (rows, 1 or points, COLUMNS).
        facts: Of each point or of all, (1 or points, FACTS).
        rules: Of the library, (RULES,).
        tiles: Of the library, (tiles, columns of a tile).
    """

    sizes: Array
    facts: Array
    rules: Array
    tiles: Array


def attention_call(placed: PlacedOps, op: int, view: GpuView) -> AttentionCall | None:
    """Return the attention call that an operator is, None where it is priced in another way.

    Raises:
        UncoveredError: If the unit lacks the dtype, or its generation has no such kernel.
    """
    table = placed.table
    rows, _ = _calls(placed, np.array([op]))
    dtypes = {table.dtypes[row] for row in rows}
    if len(dtypes) != 1 or _is_latent(table, rows).any():
        return None
    dtype = dtypes.pop()
    facts = attention_facts(view, dtype, placed.launch)
    if facts is None:
        return None
    library = ATTENTION_LIBRARIES.lookup(view.generation.name)
    sizes = _attention_sizes(table, rows, lookup(dtype).bytes_per_element)
    return AttentionCall(sizes, facts, library.rules, library.tiles)


def attention_kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that attend to keys and values of heads, and their seconds.

    Rows of one operator are one call.

    Raises:
        ConfigError: If the generation has no library of such kernels.
        UncoveredError: If the unit lacks the dtype, or the library the dtype or the head_dim.
    """
    from opbyte.hw_models.compute.gpu.attention import compiled, new_memo

    scores, owner = _calls(placed, ops)
    plain = ~_is_latent(placed.table, scores)
    scores, owner = scores[plain], owner[plain]
    if not scores.size or view.block("attention", ()) is None:
        return owner[:0], np.zeros((0, 1))
    library = ATTENTION_LIBRARIES.lookup(view.generation.name)

    def seconds(table: OpTable, rows: Rows, dtype: str) -> Array:
        facts = attention_facts(view, dtype, placed.launch)
        assert facts is not None
        sizes = _attention_sizes(table, rows, lookup(dtype).bytes_per_element)
        _refuse(view, library, dtype, sizes[:, :, 6:8].max())
        result = np.empty((len(rows), max(sizes.shape[1], facts.shape[0])))
        calls = placed.op_of[rows]
        tiles = library.tiles
        compiled()(result, sizes, calls, facts, library.rules, tiles, new_memo(tiles))
        return result

    return _summed(placed.table, scores, owner, seconds)


def _refuse(view: GpuView, library: AttentionLibrary, dtype: str, width: float) -> None:
    """Refuse what the library has no kernel for.

    Args:
        dtype: Arithmetic dtype of the rows, which the unit may widen.
        width: Most head_dim of scores or values.
    Raises:
        UncoveredError: If it does not multiply in such a dtype, or has no tile so wide.
    """
    unit = view.unit
    computed = next(n for n in arithmetic(dtype) if unit.get(f"peak.{n}") is not None)
    lacks = ""
    if computed not in library.arithmetic:
        lacks = f"multiplies in {', '.join(library.arithmetic)}, not in {computed}"
    elif width > library.widest:
        lacks = f"serves a head_dim of {library.widest} at most, not of {width:g}"
    if lacks:
        raise UncoveredError(
            f"{unit.machine.name}: {library.name} ({view.generation.name}) {lacks}. choose another "
            "`precision` or model, or a mapping with `fusion: none`, which runs scores, softmax "
            "and context as kernels of their own"
        )


def _attention_sizes(table: OpTable, rows: Rows, size: float) -> Array:
    """Return the columns of `attention` for score rows, (rows, 1 or points, COLUMNS).

    Args:
        size: Bytes of an element of the queries.
    """
    values = rows + 2
    groups, heads, reads = table["groups"][rows], table["heads"][rows], table["n"][rows]
    sequences, dim = table["sequences"][rows], table["k"][rows]
    elements = groups * reads * dim
    cached = table["kv_read"][rows] / np.maximum(elements, 1.0)
    window = np.array([[float("window" in table.labels[row])] for row in rows])
    columns = (
        sequences,
        groups / sequences,
        heads,
        table["m"][rows] / heads,
        reads,
        table["flops"][rows] / (2.0 * dim * groups * heads),
        dim,
        table["n"][values],
        np.full_like(window, size),
        # Without a cache keys and values are activations.
        np.where(cached > 0, cached, size),
        window,
    )
    sizes = np.empty((len(rows), max(c.shape[1] for c in columns), len(columns)))
    for i, column in enumerate(columns):
        sizes[:, :, i] = column
    return sizes


def append_kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that only write new keys and values, and their seconds."""
    from opbyte.hw_models.compute.gpu.appends import compiled

    table = placed.table
    rows = np.array([r for r in placed.single(ops) if table.kinds[r] == "kv_append"], np.int64)
    mine = placed.op_of[rows]
    if not rows.size or view.block("attention", ()) is None:
        return mine[:0], np.zeros((0, 1))
    dtype = table.dtypes[rows[0]]
    facts = attention_facts(view, dtype, placed.launch)
    assert facts is not None
    tokens, written = table["groups"][rows], table["kv_write"][rows]
    # Keys are half of what a token writes, in elements of its own type at most.
    width = written / np.maximum(2.0 * tokens * lookup(dtype).bytes_per_element, 1.0)
    sizes = _stacked(tokens, width, written + placed.moved["activation"][mine])
    result = np.empty((len(rows), max(sizes.shape[2], facts.shape[0])))
    compiled()(result, sizes, facts)
    return mine, result


def latent_kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that attend to a latent cache, and their seconds.

    Raises:
        UncoveredError: If the unit lacks the dtype, or its generation has no such kernel.
    """
    from opbyte.hw_models.compute.gpu.latent import LATENT_KERNELS, compiled

    block = view.block("latent", LATENT)
    scores, owner = _calls(placed, ops)
    scores, owner = (x[_is_latent(placed.table, scores)] for x in (scores, owner))
    if block is None or not scores.size:
        return owner[:0], np.zeros((0, 1))
    rules = LATENT_KERNELS.lookup(view.generation.name).rules
    gap = view.unit.get(f"launch.{placed.launch}", 0.0)

    def seconds(table: OpTable, rows: Rows, dtype: str) -> Array:
        heads, kv, width = table["heads"][rows], table["n"][rows], table["k"][rows]
        groups, latent = table["groups"][rows], table["n"][rows + 2]
        sizes = _stacked(groups, heads, table["m"][rows] / heads, kv, latent, width - latent)
        cached = table["kv_read"][rows] / np.maximum(groups * kv * width, 1.0)
        facts = view.facts(dtype, view.unit.get("clock"), gap, *block)
        result = np.empty((len(rows), max(sizes.shape[2], facts.shape[0])))
        size = lookup(dtype).bytes_per_element
        compiled()(result, sizes, size, float(cached.max()), facts, rules)
        return result

    return _summed(placed.table, scores, owner, seconds)


def _calls(placed: PlacedOps, ops: Rows) -> tuple[Rows, Rows]:
    """Return the score rows of operators that consist of calls, and each one's operator."""
    kinds = placed.table.kinds
    starts = np.searchsorted(placed.op_of, np.arange(len(placed) + 1))
    scores: list[int] = []
    owner: list[int] = []
    for op in ops:
        rows = range(starts[op], starts[op + 1])
        if len(rows) % 3 == 0 and all(kinds[r] == CALL[i % 3] for i, r in enumerate(rows)):
            scores += rows[::3]
            owner += [op] * (len(rows) // 3)
    return np.array(scores, np.int64), np.array(owner, np.int64)


def _is_latent(table: OpTable, scores: Rows) -> npt.NDArray[np.bool_]:
    """Return where values are a part of the cached keys: only the score row reads the cache."""
    if not scores.size:
        return np.zeros(0, bool)
    reads, again = (np.any(table["kv_read"][r] > 0, axis=1) for r in (scores, scores + 2))
    return np.asarray(reads & ~again, np.bool_)


def _stacked(*columns: Array) -> Array:
    """Return columns of (rows, 1 or points) as one array, (columns, rows, points)."""
    sizes = np.empty((len(columns), len(columns[0]), max(c.shape[1] for c in columns)))
    for i, column in enumerate(columns):
        sizes[i] = column
    return sizes


def _summed(table: OpTable, scores: Rows, owner: Rows, seconds: _Seconds) -> tuple[Rows, Array]:
    """Return each operator and the sum of its calls' seconds, (operators, 1 or points)."""
    dtypes = np.array([table.dtypes[row] for row in scores])
    parts: list[tuple[Any, Array]] = [
        (dtypes == dtype, seconds(table, scores[dtypes == dtype], str(dtype)))
        for dtype in dict.fromkeys(dtypes)
    ]
    calls = np.empty((len(scores), max(part.shape[1] for _, part in parts)))
    for mine, part in parts:
        calls[mine] = part
    ops, first = np.unique(owner, return_index=True)
    return ops, reduced(calls, first)
