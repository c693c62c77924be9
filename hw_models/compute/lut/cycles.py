"""Cycles of a product on one core or several: refills, edge tiles, fill and drain.

For each row of activations, for each block of outputs that the accumulators hold, for each tile of
`tables * mu` activations the tables are filled, then read for `readers` outputs a cycle. Blocks
are as few as the accumulators allow and as equal as can be, so that more of them cost no time. With
one set of tables reads wait for the fill, S_b cycles; with two the next tables fill meanwhile. The
last sums leave the read pipeline after its S_r stages:

    one set    builds * S_b + reads + S_r - 1
    two sets   S_b + sum of max(reads of one, S_b), the last one's reads alone, + S_r - 1

Cores share the outputs of a product or its rows, whichever takes less; each fills its own tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.hw_models.compute.lut.core import Core
from opbyte.hw_models.compute.lut.structure import Structure


@dataclass(frozen=True)
class Cycles:
    """What a product takes on the busiest core; floats or (points,).

    Attributes:
        total: Cycles from the first activation to the last sum.
        builds: Fills of all tables of a core.
        reads: Cycles in which tables are read.
        everywhere: (builds, reads) of all cores together, for energy.
    """

    total: Any
    builds: Any
    reads: Any
    everywhere: tuple[Any, Any]


def product_cycles(made: Structure, m: Any, n: Any, k: Any) -> Cycles:
    """Return the cycles of (m, k) activations by (k, n) weights.

    Args:
        m: Rows; products of a group follow each other as further rows.
        n: Outputs.
        k: Depth.
    """
    cores = made.core.instances
    by_columns = _alone(made, m, np.ceil(n / cores), k)
    by_rows = _alone(made, np.ceil(m / cores), n, k)
    columns = by_columns.total <= by_rows.total
    used_columns = np.ceil(n / np.ceil(n / cores))
    used_rows = np.ceil(m / np.ceil(m / cores))
    used = np.where(columns, used_columns, used_rows)

    def pick(what: str) -> Any:
        return np.where(columns, getattr(by_columns, what), getattr(by_rows, what))

    builds, reads = pick("builds"), pick("reads")
    return Cycles(pick("total"), builds, reads, (builds * used, reads * used))


def _alone(made: Structure, m: Any, n: Any, k: Any) -> Cycles:
    """Return the cycles of one core."""
    core = made.core
    tiles = np.ceil(k / core.rows)
    turns = np.ceil(n / core.readers)
    blocks = np.ceil(turns / np.floor(core.held / core.readers))
    size = np.floor(turns / blocks)
    larger = turns - blocks * size
    fill, drain = made.build_stages, made.read_stages - 1.0
    short, long = core.serial * size, core.serial * (size + 1.0)
    builds, reads = m * blocks * tiles, m * tiles * core.serial * turns
    step_short, step_long = np.maximum(short, fill), np.maximum(long, fill)
    meanwhile = m * tiles * ((blocks - larger) * step_short + larger * step_long)
    # Nothing is filled beside the last reads.
    meanwhile = meanwhile - step_short + short
    total = np.where(core.buffers > 1, fill + meanwhile, builds * fill + reads) + drain
    return Cycles(total, builds, reads, (builds, reads))


def walk(core: Core, build_stages: int, read_stages: int, m: int, n: int, k: int) -> int:
    """Return the cycles of a product on one core, counted one by one: the twin of `_alone`.

    Args:
        core: Plain numbers, one design.
    """
    readers, held = int(core.readers), int(max(core.accumulators, core.readers))
    serial, double = int(core.serial), core.buffers > 1
    jobs = []
    turns, tiles = -(-n // readers), -(-k // int(core.rows))
    blocks = -(-turns // (held // readers))
    for _ in range(m):
        for block in range(blocks):
            jobs += tiles * [serial * (turns // blocks + (block < turns % blocks))]
    clock = 0
    filling, ready, reading, done = build_stages, 0, 0, 0
    started = 1
    while done < len(jobs):
        clock += 1
        if filling:
            filling -= 1
            ready += filling == 0
            if not double or not reading:
                continue
        if not reading and ready:
            ready -= 1
            reading = jobs[done]
            if double and started < len(jobs):
                # The other set is free from now on; this cycle fills it too.
                filling, started = build_stages, started + 1
                filling -= 1
                ready += filling == 0
        if reading:
            reading -= 1
            if not reading:
                done += 1
                if not double and started < len(jobs):
                    filling, started = build_stages, started + 1
    return clock + read_stages - 1
