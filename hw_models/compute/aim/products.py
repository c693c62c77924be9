"""Products on AiM channels: weights by their outputs, keys by tokens, values by elements.

A matrix of (k, n) is spread over all banks of the stage: each holds ceil(n / banks) outputs. Its
program is that of `opbyte.hw_models.compute.pim.products`: for each buffer-full of the input all
outputs, as many at a time as a unit has accumulators, whose start values are written before and
whose results are read after. A fused activation function takes half of the accumulators.

Keys lie by tokens, one bank each, so that a row holds several heads of one token; a score reads
the same open row once for each head of it, and for each query head that shares the keys. Values
lie by elements of a head, one bank each, with the tokens along a row; a head is in one channel of
one device, however many devices share the matrices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from opbyte.hw_models.compute.aim.channels import Channels
from opbyte.hw_models.compute.aim.commands import Commands
from opbyte.hw_models.compute.pim.products import product, up
from opbyte.hw_models.compute.pim.stages import BANKS, Program, Stage, State, after


def matrix(c: Channels, n: Any, k: Any, *, function: bool = False) -> Commands:
    """Return the product of one input row with a stored (k, n) matrix, on all devices.

    Args:
        function: The activation function of its results is looked up as well.
    """
    d = replace(c.device, instances=c.span * c.parts)
    if function:
        d = replace(d, results=np.maximum(c.device.results // 2.0, 1.0))
    program, _ = product(d, 1.0, n, k)
    outputs = up(n / (c.banks * c.parts))
    channels = c.used(up(n / outputs))
    commands = of_program(c, program, channels)
    if function:
        groups = up(outputs / d.results)
        commands = commands + c.functions(outputs, groups, channels)
    return commands.beside(float(c.parts))


def score(c: Channels, heads: Any, shared: Any, width: Any, tokens: Any) -> Commands:
    """Return the scores of one query of one sequence.

    Args:
        heads: KV heads.
        shared: Query heads that share one.
        width: Elements of a head.
        tokens: Cached tokens.
    """
    together = np.maximum(c.row // width, 1.0)
    rows = up(heads * width / c.row)
    turns = up(tokens / (c.banks * c.parts))
    columns = up(width / c.elements)
    load, bias, read = (Stage(moves={kind: n}) for kind, n in _moves(c.row / c.elements))
    first = [bias, Stage(columns, columns), read]
    again = [bias, Stage(columns, columns, hit=True), read]
    each = [
        (1.0, [load]),
        (1.0, first),
        (together - 1.0, again),
        (shared - 1.0, [load]),
        ((shared - 1.0) * together, again),
    ]
    full = of_program(c, [(rows * (turns - 1.0) * n, stages) for n, stages in each], c.used(
        c.banks * c.parts
    ))  # fmt: skip
    rest = tokens - (turns - 1.0) * c.banks * c.parts
    last = of_program(c, [(rows * n, stages) for n, stages in each], c.used(rest))
    return full + last


def _moves(columns: Any) -> tuple[tuple[str, Any], ...]:
    return ("load", columns), ("bias", 1.0), ("read", 1.0)


def context(c: Channels, heads: Any, shared: Any, width: Any, tokens: Any) -> Commands:
    """Return the weighted sum of values of one query of one sequence, see `score`."""
    each = up(heads / c.span)
    turns = up(width / c.device.all_banks)
    chunks = up(tokens / c.row)
    total: list[tuple[Any, list[Stage]]] = []
    for many, size in ((chunks - 1.0, c.row), (1.0, tokens - (chunks - 1.0) * c.row)):
        columns = up(size / c.elements)
        load, bias, read = (Stage(moves={kind: n}) for kind, n in _moves(columns))
        repeats = each * shared * many
        total.append((repeats, [load]))
        total.append((repeats * turns, [bias, Stage(columns, columns), read]))
    return of_program(c, total, c.span)


def of_program(c: Channels, program: Program, channels: Any) -> Commands:
    """Return the commands of a program that starts and ends with access to banks.

    Args:
        channels: Channels of one device that follow it.
    """
    d = c.device
    clocks = after(d, State(at=BANKS), program).time + d.mode
    rows: Any = 0.0
    counts = dict.fromkeys(("MAC16", "ACT16", "WRGB", "WRMAC16", "RDMAC16", "TMOD"), 0.0)
    names = {"load": "WRGB", "bias": "WRMAC16", "read": "RDMAC16"}
    instructions: Any = 0.0
    for repeats, stages in program:
        for stage in stages:
            opened = 0.0 if stage.hit else stage.rows
            rows = rows + repeats * opened
            counts["MAC16"] = counts["MAC16"] + repeats * stage.columns
            if np.any(np.asarray(stage.columns) > 0):
                counts["TMOD"] = counts["TMOD"] + 2.0 * repeats
                instructions = instructions + repeats * stage.rows
            for kind, count in stage.moves.items():
                counts[names[kind]] = counts[names[kind]] + repeats * count
                instructions = instructions + repeats * (1.0 if kind == "load" else count)
    counts["ACT16"] = counts["PREA"] = rows
    counts["TMOD"] = counts["TMOD"] + 2.0
    every = {name: count * channels for name, count in counts.items()}
    return Commands(clocks, rows * d.rp, every, instructions)
