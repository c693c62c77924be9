"""Mapping policies: which of several units runs an operator, or which experts run on each.

Candidates are priced on each unit by the models that price everything else, and the policy picks,
for every design point by itself (`opbyte.core.mapping_file.CoProcess`). With t(u, o) the seconds of
an operator o on unit u that it has to itself:

    fastest         u(o) = argmin t(u, o); the first of those that take the same
    op_per_byte     the same with peak rates, t = max(operations / peak, bytes / rate): of two
                    units at ports of rates W1 > W2 and peaks P1 < P2 the second from P1 / W2
                    operations per byte on; or from a given threshold on
    greedy_tokens   experts in the order of their tokens; the first j on the unit at the faster
                    port, the rest on the other: argmin over j of the longer of both. Where longer
                    lists take longer, which holds for every unit here, this is where moving one
                    expert after the other stops to help (Duplex, MICRO 2024, section V)

An expert is an operator of its own under every policy: `fastest` and `op_per_byte` look for the
number j of experts that makes the *sum* of both units shortest, because a unit that suits fewer
tokens suits fewer still. All products of one expert, and what stands between them, go together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping_file import CoProcess
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import price
from opbyte.sim.expert_split import divide, faster_port
from opbyte.sim.operators import Copies, Ints, Operators, Part, copied, cut

if TYPE_CHECKING:
    from opbyte.sim.place import Placer


def decided(placer: Placer, plain: Operators, policies: dict[int, CoProcess]) -> Operators:
    """Return operators with one copy for each unit that may run them, and which copies run.

    Args:
        policies: Of the operators that several units may run.
    Raises:
        UncoveredError: If `greedy_tokens` finds no experts, or experts have more than two units.
    """
    chains = _chains(plain, policies)
    candidates = {op: p.between for op, p in policies.items()}
    copies = copied(plain, candidates, chains)
    points = max(plain.table.points, placer.machine.points)
    runs = np.ones((len(copies.operators), points))
    parts: dict[int, Part] = {}
    alone = [op for op in policies if chains[op] < 0]
    for op in alone:
        if policies[op].by == "greedy_tokens":
            raise UncoveredError(
                f"{placer.machine.name}: '{plain.table.names[plain.rows(op)[0]]}' has no experts "
                "that greedy_tokens could divide. use by: fastest for it"
            )
    if alone:
        _choose_alone(placer, copies, policies, alone, runs)
    for chain in range(int(chains.max(initial=-1)) + 1):
        ops = np.flatnonzero(chains == chain)
        parts |= divide(placer, copies, policies[int(ops[0])], ops, points)
    operators = cut(copies.operators, parts) if parts else copies.operators
    for op, part in parts.items():
        runs[op] = part.picks > 0
    return replace(operators, runs=runs)


def _chains(plain: Operators, policies: dict[int, CoProcess]) -> Ints:
    """Return the chain of each operator, -1 for those in none, (ops,).

    Neighbours of one block under one policy are a chain where some of them have experts.
    """
    chains = np.full(len(plain), -1)
    blocks, spread = plain.blocks, set(plain.op_of[list(plain.table.spreads)].tolist())
    runs: list[list[int]] = []
    for op in sorted(policies):
        last = runs[-1][-1] if runs else -2
        if last == op - 1 and policies[last] is policies[op] and blocks[last] == blocks[op]:
            runs[-1].append(op)
        else:
            runs.append([op])
    for number, run in enumerate(run for run in runs if spread & set(run)):
        chains[run] = number
    return chains


def _choose_alone(
    placer: Placer,
    copies: Copies,
    policies: dict[int, CoProcess],
    alone: list[int],
    runs: Array,
) -> None:
    """Set which copy of each operator runs, (ops, points)."""
    placed, machine = placer.placed(copies.operators), placer.machine
    seconds = {
        ideal: price(placed, machine, ideal=ideal).duration
        for ideal in {policies[op].by == "op_per_byte" for op in alone}
    }
    for op in alone:
        policy, mine = policies[op], copies.of(op)
        if policy.threshold is None:
            took = seconds[policy.by == "op_per_byte"][mine]
        else:
            took = _beyond(machine, copies.operators, mine, policy)
        runs[mine] = np.argmin(took, axis=0) == np.arange(len(mine))[:, None]


def _beyond(machine: Machine, operators: Operators, mine: Ints, policy: CoProcess) -> Array:
    """Return 0 for the unit that a threshold of operations per byte picks and 1 for the other."""
    op = int(mine[0])
    flops = operators.table["flops"][operators.rows(op)].sum(axis=0)
    moved: Any = sum(v[op] for c, v in operators.moved.items() if c != "internal")
    high = flops >= (policy.threshold or 0.0) * moved
    fast = faster_port(machine, policy)
    return np.stack([np.where(fast == u, high, ~high).astype(np.float64) for u in range(2)])
