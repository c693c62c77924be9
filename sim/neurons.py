"""Networks of which a token uses a part: the table of what runs, and what is read for it.

LLM in a flash (Alizadeh et al., arXiv 2312.11514): a predictor names the inner neurons that a ReLU
leaves alive, those of the last tokens are kept in memory (a window), and the others are read. With
W the bytes of a layer's network, a token computes with used * W and reads fresh * W, in requests of
one row, or of a row and a column (of gated networks two rows) that are stored together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.routes import Neurons
from opbyte.workloads.ffn import DenseFfn
from opbyte.workloads.model import Model


def sparse(table: OpTable, neurons: Neurons | None) -> OpTable:
    """Return the table of the neurons in use, with the predictors as a part of the first product.

    A predictor is a product over its own weights: two operations for each of them.
    """
    if neurons is None:
        return table
    rows = _network(table)
    columns = {name: np.array(column) for name, column in table.columns.items()}
    total = (table["weight"] * table.repeats[:, None]).sum(axis=0)
    dense = columns["weight"].copy()
    for name in ("weight", "flops"):
        columns[name][rows] *= neurons.used.value
    inner = np.where(columns["n"] > columns["k"], "n", "k")[:, 0]
    for row in np.flatnonzero(rows):
        columns[inner[row]][row] *= neurons.used.value
    first = [r for r in np.flatnonzero(rows) if table.labels[r] & {"up", "gate_up"}]
    extra = neurons.predictor.value * total / table.repeats[first].sum()
    for row in first:
        per_byte = table["flops"][row] / dense[row]
        columns["weight"][row] += extra
        columns["flops"][row] += extra * per_byte
    return replace(table, columns=columns)


def neuron_bytes(model: Model, neurons: Neurons | None) -> float | None:
    """Return the bytes of one neuron that lie together, None without neurons.

    Raises:
        UncoveredError: If the model's networks are not dense, or not all alike.
    """
    if neurons is None:
        return None
    kinds = {layer.ffn for layer in model.layers}
    matrices = {ffn.matrices for ffn in kinds if isinstance(ffn, DenseFfn)}
    if len(kinds) != 1 or len(matrices) != 1:
        raise UncoveredError(
            f"{model.name}: neurons are read where all layers have one kind of dense network. use "
            "a mapping without `neurons`"
        )
    one = model.precision.weight_bytes("ffn", model.hidden)
    return one * (matrices.pop() if neurons.bundle else 1)


def fresh(table: OpTable, neurons: Neurons | None) -> Array:
    """Return the bytes of neurons that each block reads for a token, (blocks, 1 or points)."""
    size = np.zeros((len(table.blocks), table["weight"].shape[1]))
    if neurons is not None:
        rows = _network(table)
        np.add.at(size, table.block_of[rows], neurons.fresh.value * table["weight"][rows])
    return size


def ffn_bytes(table: OpTable) -> Array:
    """Return the bytes of all dense networks of a model, (1 or points,)."""
    rows = _network(table)
    total: Array = (table["weight"][rows] * table.repeats[rows, None]).sum(axis=0)
    return total


def _network(table: OpTable) -> npt.NDArray[np.bool_]:
    """Return which rows are products of dense networks, (rows,)."""
    return np.array(["ffn" in x and "dense" in x for x in table.labels])
