"""Products with a matrix in the banks: where it lies, and the commands of a channel.

The (n, k) matrix is spread over all outputs that units compute at a time, `outputs` in a channel;
`depth` units share an output's k. A channel's buffer holds a chunk of the input vector, with which
all rows of the matrix are multiplied before the next chunk is loaded; a unit keeps `results` sums.

    chunks  = ceil(k / elements of the buffer)
    tiles   = ceil(n / (outputs * channels * instances))
    columns = tiles * ceil(chunk / (depth * lanes))          for each chunk
    rows    = tiles, or with `pack` ceil(columns / columns of a row)

With `pack` a row stays open while the results of its tiles are read one after the other.

Edges are padded: the slowest channel counts. Where loads have a path of their own half of the
buffer takes the next chunk meanwhile, and results leave beside the MACs that follow. Several input
rows (m) repeat all of it, or, with `reuse: row`, each open row serves as many of them as the buffer
and the results hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opbyte.core.errors import CapacityError, WorkloadError
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.compute.pim.stages import Program, Stage, biggest, program_of


def up(number: Any) -> Any:
    """Return a number rounded up to a whole one, safe from roundings of floats."""
    return -(-(number - 1e-9) // 1.0)


@dataclass(frozen=True)
class Counts:
    """Commands and bytes of one kernel.

    Attributes:
        rows: Rows opened in each unit of the slowest channel.
        columns: MAC commands of the slowest channel.
        moves: Its other commands, by kind.
        channels: Channels that work like it; a fraction where the last ones have less to do.
    """

    rows: Any
    columns: Any
    moves: dict[str, Any]
    channels: Any

    @classmethod
    def of(cls, program: Program, channels: Any) -> Counts:
        """Return the counts of a program."""
        rows: Any = 0.0
        columns: Any = 0.0
        moves: dict[str, Any] = {}
        for repeats, stages in program:
            for stage in stages:
                rows = rows + (0.0 if stage.hit else repeats * stage.rows)
                columns = columns + repeats * stage.columns
                for kind, count in stage.moves.items():
                    moves[kind] = moves.get(kind, 0.0) + repeats * count
        return cls(rows, columns, moves, channels)


def product(device: PimDevice, m: Any, n: Any, k: Any, groups: Any = 1.0) -> tuple[Program, Counts]:
    """Return the program and counts of `groups` products of (m, k) by a stored (k, n).

    Args:
        device: The unit.
        m: Input rows; all sizes are floats or arrays over points.
        n: Outputs.
        k: Depth.
        groups: Products with matrices of their own, one after the other.
    Raises:
        CapacityError: If the padded matrices do not fit in the device.
        WorkloadError: If a size is below 1.
    """
    d = device
    for name, size in (("m", m), ("n", n), ("k", k), ("groups", groups)):
        if np.any(np.asarray(size) < 1):
            raise WorkloadError(f"{d.name}: a product needs {name} >= 1, got {np.min(size):g}")
    # Half of it takes the next chunk, where that can be loaded meanwhile.
    held = _whole(d.buffer / d.size / (2.0 if d.overlap else 1.0))
    # Without packing a tile of the matrix starts a row, which holds no more than itself.
    chunk = least(k, held) if d.pack else least(k, least(held, d.per_bank * d.depth * d.lanes))
    at_once = 1.0
    if d.reuse:
        at_once = least(least(m, _whole(held / chunk)), d.results)
    tiles = up(n / (d.outputs * d.channels * d.instances))
    parts: list[tuple[Any, list[Stage]]] = []
    _check_fits(d, groups * stored_bytes(d, tiles, k, chunk))
    passes = up(m / at_once)
    full = _whole(k / chunk)
    rest = k - full * chunk
    steps = passes * groups * full, passes * groups * (up(k / chunk) - full)
    if d.by_tile and np.any(k > chunk):
        parts = _by_tile(d, passes * groups * tiles, tiles, full, (chunk, rest))
    elif d.overlap:
        parts = _overlapped(d, steps, (chunk, rest), tiles, at_once)
    else:
        for many, size in zip(steps, (chunk, rest), strict=True):
            if np.any(many > 0):
                parts += _chunk(d, many, biggest(size)(size, 1.0), tiles, at_once)
    program = program_of(d, parts)
    return program, Counts.of(program, d.channels * d.instances)


def _overlapped(
    d: PimDevice, steps: tuple[Any, Any], sizes: tuple[Any, Any], tiles: Any, at_once: Any
) -> list[tuple[Any, list[Stage]]]:
    """Return the stages of whole chunks and of the rest, the next load beside each.

    Args:
        d: The unit.
        steps: How many chunks of each size there are; at least one of the first.
        sizes: Elements of each, 0 where there are none.
        tiles: Outputs of each unit.
        at_once: Input rows that share open rows.
    """
    loads = [at_once * up(size * d.size / d.column) for size in sizes]
    across = [up(size / (d.depth * d.lanes)) for size in sizes]
    results = results_of(d, tiles * at_once)
    most = biggest(*steps, *sizes, tiles, at_once, d.results, d.units)

    def step(i: int, then: int | None) -> Stage:
        per_row = most(d.per_bank if d.pack else across[i], 1.0)
        load = {} if then is None else {"load": loads[then]}
        return Stage(across[i] * tiles * at_once, per_row * at_once, {**load, **results})

    more = most(steps[1], 0.0)
    parts: list[tuple[Any, list[Stage]]] = [
        (1.0, [Stage(moves={"load": loads[0]})]),
        (steps[0] - 1.0, [step(0, 0)]),
    ]
    last = most(d.results, at_once)
    final = result_moves(d, least(last, tiles * at_once))
    some = np.asarray(more) > 0
    if some.any():
        one = np.where(some, 1.0, 0.0) if np.ndim(more) else 1.0
        parts += [(one, [step(0, 1)]), (most(more - 1.0, 0.0), [step(1, 1)])]
    ends = step(1, None) if some.all() else step(0, None)
    if some.any() and not some.all():
        rest = step(1, None)
        ends = replace(
            ends,
            columns=np.where(some, rest.columns, ends.columns),
            per_row=np.where(some, rest.per_row, ends.per_row),
        )
    ends = replace(ends, moves={**ends.moves, "read": ends.moves["read"] - final})
    return [*parts, (1.0, [ends, Stage(moves={"read": final})])]


def results_of(d: PimDevice, held: Any) -> dict[str, Any]:
    """Return the reads of so many results of every unit, and the start values where it has any."""
    moved = result_moves(d, held)
    some = np.asarray(d.bias) > 0
    if not some.any():
        return {"read": moved}
    return {"bias": moved if some.all() else np.where(some, moved, 0.0), "read": moved}


def _chunk(
    d: PimDevice, repeats: Any, size: Any, tiles: Any, at_once: Any
) -> list[tuple[Any, list[Stage]]]:
    """Return the stages of one chunk of the input against all rows of the matrix.

    Results are read once for every `kept` tiles. With `pack` several of these groups lie in one
    row, which stays open meanwhile.
    """
    columns = up(size / (d.depth * d.lanes))
    kept = least(tiles, biggest(d.results, at_once)(_whole(d.results / at_once), 1.0))
    groups = _whole(tiles / kept)
    in_row = biggest(columns, kept)(_whole(d.per_bank / (columns * kept)), 1.0) if d.pack else 1.0
    rows = _whole(groups / in_row)
    left, rest = groups - rows * in_row, tiles - groups * kept
    load = Stage(moves={"load": at_once * up(size * d.size / d.column)})
    parts: list[tuple[Any, list[Stage]]] = [(repeats, [load])]
    slots = range(int(np.max(in_row)))
    if np.any(rows > 0):
        held = [_where(i < np.asarray(in_row), kept, 0.0) for i in slots]
        parts.append((repeats * rows, _row(d, columns, held, at_once)))
    if np.any(left + rest > 0):
        after = [_where(i == np.asarray(left), rest, 0.0) for i in slots]
        held = [_where(i < np.asarray(left), kept, a) for i, a in zip(slots, after, strict=True)]
        parts.append((repeats, _row(d, columns, held, at_once)))
    return parts


def _where(test: Any, some: Any, none: Any) -> Any:
    """Return `np.where`, a float for floats."""
    if np.ndim(test) == 0 and np.ndim(some) == 0 and np.ndim(none) == 0:
        return some if test else none
    return np.where(test, some, none)


def _row(d: PimDevice, columns: Any, held: list[Any], at_once: Any) -> list[Stage]:
    """Return the stages of groups of so many tiles in one row, or in several for one group."""
    first, *others = (_group(d, columns, h, at_once) for h in held if np.any(np.asarray(h) > 0))
    open_row = (replace(s, hit=True) if np.any(s.columns > 0) else s for g in others for s in g)
    return [*first, *open_row]


def _by_tile(
    d: PimDevice, repeats: Any, tiles: Any, full: Any, sizes: tuple[Any, Any]
) -> list[tuple[Any, list[Stage]]]:
    """Return the stages of tiles of outputs, for each of which every chunk is loaded again.

    Args:
        d: The unit.
        repeats: Tiles of all passes and groups.
        tiles: Tiles of one of them; at points with one chunk it stays in the buffer for them.
        full: Chunks as large as the first size.
        sizes: Elements of a whole chunk and of the rest, 0 where there is none.
    """
    some = np.where(np.asarray(sizes[1]) > 0, 1.0, 0.0) if np.ndim(sizes[1]) else sizes[1] > 0
    stays = np.asarray(full + some) <= 1
    again = np.where(stays, 1.0 / tiles, 1.0) if stays.any() else 1.0
    results = results_of(d, 1.0)
    parts: list[tuple[Any, list[Stage]]] = []
    if "bias" in results:
        parts.append((repeats, [Stage(moves={"bias": results["bias"]})]))
    for many, size in ((full, sizes[0]), (some, biggest(sizes[1])(sizes[1], 1.0))):
        if np.any(many > 0):
            columns = up(size / (d.depth * d.lanes))
            load = Stage(moves={"load": again * up(size * d.size / d.column)})
            macs = Stage(columns, d.per_bank if d.pack else columns)
            parts.append((repeats * many, [load, macs]))
    return [*parts, (repeats, [Stage(moves={"read": results["read"]})])]


def _group(d: PimDevice, columns: Any, held: Any, at_once: Any) -> list[Stage]:
    """Return the stages of the tiles whose results units keep."""
    results = results_of(d, held * at_once)
    per_row = d.per_bank if d.pack else columns
    stages = [
        Stage(columns * held * at_once, per_row * at_once), Stage(moves={"read": results["read"]})
    ]  # fmt: skip
    if "bias" in results:
        stages.insert(0, Stage(moves={"bias": results["bias"]}))
    return stages


def result_moves(d: PimDevice, held: Any) -> Any:
    """Return the moves that so many results of every unit take.

    Results of a depth are added on the way, and pseudo-channels have paths of their own.
    """
    return up(held * d.outputs * d.size / (d.pseudo_channels * d.column))


def stored_bytes(d: PimDevice, tiles: Any, k: Any, chunk: Any) -> Any:
    """Return the bytes that a matrix takes in the banks, padding included.

    Args:
        d: The unit.
        tiles: Outputs of each unit.
        k: Depth.
        chunk: Depth of a tile's piece, which starts a row without packing.
    """
    columns = tiles * up(k / (d.depth * d.lanes))
    rows = up(columns / d.per_bank) if d.pack else tiles * up(k / chunk)
    return rows * d.row_bytes * d.units * d.channels * d.instances


def _check_fits(d: PimDevice, needed: Any) -> None:
    over = np.broadcast_arrays(needed, d.capacity)
    worst = int(np.argmax(np.ravel(over[0] - over[1])))
    most, there = (float(np.ravel(x)[worst]) for x in over)
    if most > there:
        raise CapacityError("weight", d.home.rpartition(".")[0], most, there)


def _whole(number: Any) -> Any:
    return (number + 1e-9) // 1.0


def least(*values: Any) -> Any:
    """Return the smallest of values of which any may be an array over points."""
    if any(isinstance(x, np.ndarray) for x in values):
        return np.minimum.reduce(np.broadcast_arrays(*values))
    return min(values)
