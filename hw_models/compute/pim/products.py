"""Products with a matrix in the banks: where it lies, and the commands of a channel.

The (n, k) matrix is spread over all outputs that units compute at a time, `outputs` in a channel;
`depth` units share an output's k. A channel's buffer holds a chunk of the input vector, with which
all rows of the matrix are multiplied before the next chunk is loaded; a unit keeps `results` sums.

    chunks  = ceil(k / elements of the buffer)
    tiles   = ceil(n / (outputs * channels * instances))
    columns = tiles * ceil(chunk / (depth * lanes))          for each chunk
    rows    = tiles, or with `pack` ceil(columns / columns of a row)

Edges are padded: the slowest channel counts. Several input rows (m) repeat all of it, or, with
`reuse: row`, each open row serves as many of them as the buffer and the results hold.
"""

from __future__ import annotations

from dataclasses import dataclass
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
                rows = rows + repeats * stage.rows
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
    least = _least(d.buffer, d.results, m, n, k)
    held = _whole(d.buffer / d.size)
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
    for many, size in ((full, chunk), (up(k / chunk) - full, k - full * chunk)):
        if np.any(many > 0):
            parts += _chunk(d, passes * groups * many, biggest(size)(size, 1.0), tiles, at_once)
    program = program_of(d, parts)
    return program, Counts.of(program, d.channels * d.instances)


def _chunk(
    d: PimDevice, repeats: Any, size: Any, tiles: Any, at_once: Any
) -> list[tuple[Any, list[Stage]]]:
    """Return the stages of one chunk of the input against all rows of the matrix."""
    columns = up(size / (d.depth * d.lanes))
    least = _least(d.results, tiles, at_once)
    kept = least(tiles, biggest(d.results, at_once)(_whole(d.results / at_once), 1.0))
    full = _whole(tiles / kept)
    load = Stage(moves={"load": at_once * up(size * d.size / d.column)})
    parts: list[tuple[Any, list[Stage]]] = [(repeats, [load])]
    for many, held in ((full, kept), (up(tiles / kept) - full, tiles - full * kept)):
        if np.any(many > 0):
            parts.append((repeats * many, _group(d, columns, held, at_once)))
    return parts


def _group(d: PimDevice, columns: Any, held: Any, at_once: Any) -> list[Stage]:
    """Return the stages of the tiles whose results units keep."""
    moved = result_moves(d, held * at_once)
    per_row = d.per_bank if d.pack else columns
    macs = Stage(columns * held * at_once, per_row * at_once)
    stages = [macs, Stage(moves={"read": moved})]
    if np.any(np.asarray(d.bias) > 0):
        stages.insert(0, Stage(moves={"bias": moved}))
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


def _least(*like: Any) -> Any:
    return np.minimum if any(isinstance(x, np.ndarray) for x in like) else min
