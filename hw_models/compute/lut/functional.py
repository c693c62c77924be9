"""What a look-up-table core computes, addition by addition, and how far from exact it may be.

Tables are filled by the adders of `build`, read by key, negated, added over the tables of a tile
and accumulated over tiles, in the arithmetic of the activations: integers exactly (64 bits here; a
core whose `out_bits` suffice computes the same), floating-point numbers with one rounding to
nearest for each addition. The product of ternary weights adds k numbers in some order, at most
d = (depth of the network) + (tables - 1) + (tiles) of them one after the other, so that

    |computed - exact| <= ((1 + u)^d - 1) * sum |w_i a_i|

with u half a unit in the last place (Higham, Accuracy and Stability, section 4.2), as long as
nothing overflows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.ternary import check_mu, pack, unpack
from opbyte.hw_models.compute.lut.build import (
    SHERRY_ENTRIES,
    SHERRY_MU,
    Network,
    Scheme,
    network,
    sherry_network,
)
from opbyte.hw_models.cost.primitives import Number, number

_Floats = npt.NDArray[np.float64]
#: Largest finite values.
_MOST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp32": 3.4028234663852886e38}


def rounded(values: Any, form: Number) -> Any:
    """Return values to the nearest of a number format, ties to even; integers as int64.

    Raises:
        WorkloadError: If a value is no integer of the format's range, or too large for it.
    """
    given = np.asarray(values)
    if not form.is_float:
        low, high = -(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1
        whole = np.asarray(given, np.float64)
        if not np.all((whole == np.floor(whole)) & (whole >= low) & (whole <= high)):
            raise WorkloadError(f"{form.name} holds whole numbers from {low} to {high}")
        return whole.astype(np.int64)
    near = _to(np.asarray(given, np.float64), form.name)
    if not np.all(np.isfinite(near)):
        raise WorkloadError(f"{form.name} holds numbers up to {_MOST[form.name]:g}")
    return near


def _to(values: Any, name: str) -> Any:
    """Return floats rounded to a format, as float32."""
    with np.errstate(over="ignore"):
        if name == "fp16":
            return values.astype(np.float16).astype(np.float32)
        single = values.astype(np.float32)
    if name == "fp32":
        return single
    bits = single.view(np.uint32)
    kept = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (kept & np.uint32(0xFFFF0000)).view(np.float32)


def _add(a: Any, b: Any, form: Number) -> Any:
    """Return a sum rounded once.

    The sum of two numbers in float32 and its rounding to 16 bits are one rounding, as 24 bits are
    at least twice 11 and two more (Figueroa 1995).
    """
    if not form.is_float:
        return a + b
    with np.errstate(over="ignore", invalid="ignore"):
        return _to(a + b, form.name) if form.name != "fp32" else a + b


def tables(activations: Any, net: Network, form: Number) -> Any:
    """Return tables of activations, (..., outputs + 1): a zero, then the network's outputs.

    Args:
        activations: (..., mu), in the format's arithmetic.
    """
    nodes = np.zeros((*activations.shape[:-1], net.mu + len(net.adders) + 1), activations.dtype)
    nodes[..., : net.mu] = activations
    # The last node is the constant zero, which is called -1.
    for at, (a, sign_a, b, sign_b) in enumerate(net.adders):
        nodes[..., net.mu + at] = _add(_signed(nodes, a, sign_a), _signed(nodes, b, sign_b), form)
    return _outputs(nodes, net)


def _signed(nodes: Any, node: int, sign: int) -> Any:
    return nodes[..., node] if sign > 0 else -nodes[..., node]


def _outputs(nodes: Any, net: Network) -> Any:
    found = np.zeros((*nodes.shape[:-1], len(net.outputs) + 1), nodes.dtype)
    found[..., 1:] = nodes[..., net.outputs[:, 0]] * net.outputs[:, 1].astype(nodes.dtype)
    return found


def keys(weights: npt.NDArray[np.int8], mu: int) -> npt.NDArray[np.int64]:
    """Return signed entries of each row's groups, (rows, groups); the last group is filled up."""
    rows, columns = weights.shape
    groups = -(-columns // mu)
    padded = np.zeros((rows, groups * mu), np.int64)
    padded[:, :columns] = weights
    return padded.reshape(rows, groups, mu) @ 3 ** np.arange(mu - 1, -1, -1)


def sherry_keys(weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Return signed entries from 1 on of rows with one zero in every four, (rows, groups)."""
    stored = pack(weights, "t1.25")
    groups = weights.shape[1] // SHERRY_MU
    bits = np.unpackbits(stored, axis=1, count=5 * groups, bitorder="little")
    codes = bits.reshape(len(weights), groups, 5) @ (1 << np.arange(5))
    return np.asarray((1 + codes % SHERRY_ENTRIES) * (1 - 2 * (codes // SHERRY_ENTRIES)))


def lut_matmul(
    activations: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    mu: int,
    activation: str = "int8",
    tables_per_tile: int = 8,
    scheme: Scheme = "pruned",
    stored: str | None = None,
    sherry: bool = False,
) -> Any:
    """Return activations times transposed ternary weights as a core computes it, (m, n).

    Args:
        activations: (m, k) numbers of the format.
        weights: (n, k) of -1, 0 and 1; or their packed rows, with the name of their format.
        activation: Number format: int8, int16, fp16, bf16 or fp32.
        tables_per_tile: Tables that are read in a cycle and added before they are accumulated.
        stored: Format of packed weights (`opbyte.core.ternary`), None for plain ones.
        sherry: Tables hold the 16 sums of four weights of which one is zero; `mu` is 4.
    Raises:
        ConfigError: If mu, the number format, the tables or the packing are none.
        WorkloadError: If sizes do not match, or values do not fit their formats.
    """
    mu, form = check_mu(mu), number(activation)
    if tables_per_tile < 1 or tables_per_tile != int(tables_per_tile):
        rule = "a core has a whole number of tables, at least 1"
        raise ConfigError.one("", "tables", rule, tables_per_tile)
    left = rounded(activations, form)
    matrix = np.asarray(weights)
    if stored is not None:
        matrix = unpack(matrix.astype(np.uint8), left.shape[-1], stored)
    if left.ndim != 2 or matrix.ndim != 2 or left.shape[1] != matrix.shape[1]:
        raise WorkloadError(
            f"activations are (m, k) and weights (n, k), got {left.shape} and {matrix.shape}"
        )
    if not np.isin(matrix, (-1, 0, 1)).all():
        raise WorkloadError("ternary weights are -1, 0 or 1")
    matrix = matrix.astype(np.int8)
    if sherry:
        _four(mu)
    number_of = (sherry_keys(matrix) if sherry else keys(matrix, mu)).astype(np.int64)
    m, n, groups = left.shape[0], matrix.shape[0], number_of.shape[1]
    padded = np.zeros((m, groups * mu), left.dtype)
    padded[:, : left.shape[1]] = left
    net = sherry_network() if sherry else network(mu, scheme)
    held = tables(padded.reshape(m, groups, mu), net, form)
    total = np.zeros((m, n), left.dtype)
    for start in range(0, groups, tables_per_tile):
        tile = None
        for group in range(start, min(start + tables_per_tile, groups)):
            key = number_of[:, group]
            read = held[:, group, np.abs(key)] * np.sign(key).astype(left.dtype)
            tile = read if tile is None else _add(tile, read, form)
        total = _add(total, tile, form)
    return total


def _four(mu: int) -> None:
    if mu != SHERRY_MU:
        rule = f"Sherry's weights share tables of mu = {SHERRY_MU}"
        raise ConfigError.one("", "mu", rule, mu)


def error_bound(
    activations: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    mu: int,
    activation: str,
    tables_per_tile: int = 8,
    scheme: Scheme = "pruned",
) -> _Floats:
    """Return how far `lut_matmul` may be from the exact product, (m, n); zero for integers."""
    form = number(activation)
    left = np.abs(np.asarray(rounded(activations, form), np.float64))
    right = np.abs(np.asarray(weights, np.float64))
    groups = -(-left.shape[1] // check_mu(mu))
    tiles = -(-groups // tables_per_tile)
    steps = network(mu, scheme).depth + min(tables_per_tile, groups) - 1 + tiles
    return np.asarray(((1.0 + form.unit_roundoff) ** steps - 1.0) * (left @ right.T))
