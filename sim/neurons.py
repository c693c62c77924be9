"""Networks of which a token uses a part: the table of what runs, and what is read for it.

LLM in a flash (Alizadeh et al., arXiv 2312.11514): a predictor names the inner neurons that a ReLU
leaves alive, those of the last tokens are kept in memory (a window), and the others are read. With
W the bytes of a layer's network, a token computes with used * W and reads fresh * W, in requests of
one row, or of a row and a column (of gated networks two rows) that are stored together. Where the
gate's own product names them (SmallThinker, arXiv 2507.20984), it runs in full.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.routes import Neurons
from opbyte.sim.neuron_cache import uses, window_shares
from opbyte.sim.place import Placer
from opbyte.workloads.ffn import DenseFfn, MoeFfn
from opbyte.workloads.model import Model

#: Columns of a product that follow the neurons in use.
_SCALED = ("weight", "expert", "flops")
_FIRST = {"up", "gate_up", "expert_up", "expert_gate_up"}


def sparse(table: OpTable, neurons: Neurons | None) -> OpTable:
    """Return the table of the neurons in use, with the predictors as a part of the first product.

    A predictor is a product over its own weights: two operations for each of them.

    Raises:
        UncoveredError: If a gate names the neurons of a network without one.
    """
    if neurons is None:
        return table
    total = (table["weight"] * table.repeats[:, None]).sum(axis=0)
    total = total + (table["expert"] * table.repeats[:, None]).sum(axis=0)
    changed = scaled(table, neurons.used.value, full_gate=neurons.known_by == "gate")
    columns = {name: np.array(column) for name, column in changed.columns.items()}
    first = [int(r) for r in np.flatnonzero(network(table)) if table.names[r] in _FIRST]
    if first and neurons.predicted:
        extra = neurons.predicted * total / table.repeats[first].sum()
        for row in first:
            dense = table["weight"][row] + table["expert"][row]
            columns["weight"][row] += extra
            columns["flops"][row] += extra * table["flops"][row] / dense
    if neurons.head is not None:
        head = [row for row, name in enumerate(table.names) if name == "lm_head"]
        for column in (*_SCALED, "n"):
            columns[column][head] *= neurons.head.value
    return replace(table, columns=columns)


def scaled(table: OpTable, share: float, *, full_gate: bool = False) -> OpTable:
    """Return the table whose networks have a share of their neurons.

    Args:
        full_gate: The gate's product keeps all of them.
    Raises:
        UncoveredError: If there is no gate.
    """
    columns = {name: np.array(column) for name, column in table.columns.items()}
    rows = network(table)
    for row in np.flatnonzero(rows):
        part, name = share, table.names[row]
        if full_gate and name in _FIRST:
            if not name.endswith("gate_up"):
                raise UncoveredError(
                    "no gate says which neurons of a network of two matrices are used. use "
                    "`known_by: predictor`"
                )
            part = 0.5 * (1.0 + share)
        inner = "n" if name in _FIRST else "k"
        for column in (*_SCALED, inner):
            columns[column][row] *= part
    return replace(table, columns=columns)


def check_resident(work: Any, placer: Placer) -> None:
    """Refuse what has no model where all neurons are there, or whole experts are copied.

    Raises:
        UncoveredError: If it is no decode step of one sequence, or neurons are to be read.
    """
    neurons, where = placer.mapping.neurons, f"mapping '{placer.mapping.name or 'unnamed'}'"
    if work.kind != "decode" or np.any(np.asarray(work.batch) != 1):
        raise UncoveredError(
            f"{where} of {placer.machine.name}: a token's own neurons run in decode works of one "
            f"sequence, got {work.kind}. use a mapping without `neurons`"
        )
    assert neurons is not None, "asked only of a mapping with neurons"
    wishes = {
        "fresh": neurons.fresh, "popularity": neurons.popularity, "bundle": neurons.bundle or None,
        "hot": neurons.hot, "align": neurons.align,
    }  # fmt: skip
    wished = [name for name, value in wishes.items() if value is not None]
    if neurons.overlap != "none":
        wished.append("overlap")
    if wished:
        raise UncoveredError(
            f"{where} of {placer.machine.name}: neurons.{wished[0]} is of neurons that are read "
            "from a slow memory one by one. leave it out, or give their weights a `cache`"
        )


def resolved(neurons: Neurons | None, model: Model) -> Neurons | None:
    """Return neurons with what their window keeps and reads, from their popularity.

    Raises:
        UncoveredError: If the popularity does not say what is kept.
    """
    if neurons is None or neurons.popularity is None:
        return neurons
    if neurons.window is None:
        raise UncoveredError(
            "under a zigzag pipeline neurons are kept for a `window` of tokens, got none. give it, "
            "or leave the pipeline out for a cache of those used last"
        )
    kept, read = window_shares(popularity(neurons, model), neurons.window)
    found = {"fresh": replace(neurons.used, value=read), "kept": replace(neurons.used, value=kept)}
    return neurons.model_copy(update=found)


def popularity(neurons: Neurons, model: Model) -> Array:
    """Return the probability that a token uses each neuron of a layer, (neurons,)."""
    assert neurons.popularity is not None, "asked only where it is given"
    ffn = one_network(model)
    total, share = ffn.width, neurons.used.value
    if isinstance(ffn, MoeFfn):
        total, share = ffn.experts * ffn.width, share * ffn.top_k / ffn.experts
    return uses(total, share, neurons.popularity.top.value, neurons.popularity.share.value)


def one_network(model: Model) -> DenseFfn | MoeFfn:
    """Return the network of all layers.

    Raises:
        UncoveredError: If they differ, or something runs beside the routed experts.
    """
    kinds = {layer.ffn for layer in model.layers}
    ffn = next(iter(kinds))
    beside = isinstance(ffn, MoeFfn) and (ffn.shared_width or ffn.dense_width or ffn.latent)
    if len(kinds) != 1 or ffn is None or beside:
        raise UncoveredError(
            f"{model.name}: neurons are read where all layers have one kind of network and nothing "
            "beside it. use a mapping without `neurons`"
        )
    return ffn


def neuron_bytes(model: Model, neurons: Neurons | None) -> float | None:
    """Return the bytes of one request for a neuron, None without neurons.

    A row of a matrix, the rows of a bundle, or half of them, up to whole multiples of `align`.

    Raises:
        UncoveredError: If the model's networks are not all alike.
    """
    if neurons is None:
        return None
    ffn = one_network(model)
    precision = model.precision
    one = precision.weight_bytes("expert" if isinstance(ffn, MoeFfn) else "ffn", model.hidden)
    one = one * (ffn.matrices if neurons.bundle else 1)
    if neurons.align is None:
        return one * (0.5 if neurons.second is not None else 1.0)
    whole = np.ceil(one / neurons.align.value) * neurons.align.value
    if neurons.second is None:
        return float(whole)
    return float(np.ceil(0.5 * whole / neurons.align.value) * neurons.align.value)


def fresh(table: OpTable, neurons: Neurons | None) -> Array:
    """Return the bytes of neurons that each block reads for a token, (blocks, 1 or points)."""
    size = np.zeros((len(table.blocks), table["weight"].shape[1]))
    if neurons is not None:
        assert neurons.fresh is not None, "published, or from the window"
        rows = network(table)
        np.add.at(size, table.block_of[rows], neurons.fresh.value * table["weight"][rows])
    return size


def ffn_bytes(table: OpTable) -> Array:
    """Return the bytes of all dense networks of a model, (1 or points,)."""
    rows = network(table)
    total: Array = (table["weight"][rows] * table.repeats[rows, None]).sum(axis=0)
    return total


def network(table: OpTable) -> npt.NDArray[np.bool_]:
    """Return which rows are products of dense networks or routed experts, (rows,)."""
    found = [
        ({"ffn", "dense"} <= x and "router" not in x) or {"ffn", "grouped_gemm"} <= x
        for x in table.labels
    ]
    return np.array(found)
