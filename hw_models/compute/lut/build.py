"""The adders that fill a table: exact counts by scheme, and the network itself.

A table of mu activations holds E = (3^mu - 1) / 2 sums, those whose first non-zero weight is +1;
the others are their negatives. Entry e is the sum whose weights are the digits of e in balanced
ternary, the first activation the highest. Schemes, from Geens et al. (ISPASS 2026) and their
generator:

    naive     every one of 3^mu sums on its own: 3^mu (mu - 1) adders
    chains    the E sums, each on its own: sum over z of C(mu, z) 2^(z - 1) (z - 1)
    shared    the generator's tree: sums of the first two activations added to all sums of the
              others, which grow one activation at a time, each level but the last in three copies:
              2 + 4 * 3^(mu-2) + sum_i r_i (2/3) 3^(mu-2) / 3^(i-1), r_1 = 1, r_i = 3
    pruned    shared, without the first level's adders, one input of which is a constant zero
    minimal   one adder for each entry of two activations or more: E - mu

Sherry's weights, of four of which one is zero, need 16 sums and no other scheme: four sums of two
neighbours, and each of them with one activation of the other pair: 20 adders. An entry's number is
the low four bits of its code (`opbyte.core.ternary`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.core.ternary import MOST_MU, check_mu, entries

Scheme = Literal["naive", "chains", "shared", "pruned", "minimal"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

#: Entries, adders and depth of a table for Sherry's weights, four of which share it.
SHERRY_MU, SHERRY_ENTRIES, SHERRY_ADDERS, SHERRY_DEPTH = 4, 16, 20, 2

#: A sum with its sign: a node of the network, or none (zero).
_Signed = tuple[int, int]
_ZERO: _Signed = (-1, 1)


@dataclass(frozen=True)
class Network:
    """Adders that make a table.

    Attributes:
        mu: Activations; nodes 0 to mu - 1 are these, each adder makes the next node.
        adders: (adders, 4): node and sign of the first input, node and sign of the second; node
            -1 is a constant zero.
        outputs: (E, 2): node and sign of entries 1 to E.
        depth: Adders on the longest way.
    """

    mu: int
    adders: npt.NDArray[np.int64]
    outputs: npt.NDArray[np.int64]
    depth: int


def check_scheme(scheme: object) -> Scheme:
    """Return a scheme.

    Raises:
        ConfigError: If there is none of that name.
    """
    if scheme not in SCHEMES:
        rule = f"a build scheme is one of {', '.join(SCHEMES)}"
        raise ConfigError.one("", "scheme", rule, scheme)
    return scheme


def adder_count(mu: int, scheme: Scheme) -> int:
    """Return the adders that fill one table.

    Raises:
        ConfigError: If mu is not from 1 to 12, or the scheme is unknown.
    """
    mu, scheme = check_mu(mu), check_scheme(scheme)
    if scheme == "naive":
        return int(3**mu) * (mu - 1)
    if scheme == "chains":
        return sum(math.comb(mu, z) * 2 ** (z - 1) * (z - 1) for z in range(1, mu + 1))
    if scheme == "minimal" or mu <= 2:
        return entries(mu) - mu
    tree = 2 + 4 * 3 ** (mu - 2)
    for i in range(1, mu - 1):
        tree += (1 if i == 1 else 3) * 2 * 3 ** (mu - 2 - i)
    if scheme == "pruned":
        tree -= 2 * (1 if mu == 3 else 3)
    return int(tree)


def depth(mu: int, scheme: Scheme) -> int:
    """Return the adders on the longest way through a table's network.

    Raises:
        ConfigError: As `adder_count`.
    """
    mu, scheme = check_mu(mu), check_scheme(scheme)
    if scheme == "pruned" and mu > 3:
        return max(1, mu - 3) + 1
    return mu - 1


@lru_cache(maxsize=16)
def _by_mu(what: str, scheme: Scheme) -> npt.NDArray[np.float64]:
    count = {"adders": adder_count, "depth": depth}[what]
    return np.array([math.nan, *(count(mu, scheme) for mu in range(1, MOST_MU + 1))])


def counts(
    what: Literal["adders", "depth"], mu: npt.NDArray[np.int64], scheme: Scheme
) -> npt.NDArray[np.float64]:
    """Return adders or depth of many tables at once, (points,)."""
    return _by_mu(what, scheme)[mu]


@lru_cache(maxsize=32)
def network(mu: int, scheme: Scheme) -> Network:
    """Return the adders of a table.

    Raises:
        ConfigError: As `adder_count`, and for `naive`, which builds what a table does not hold.
    """
    mu, scheme = check_mu(mu), check_scheme(scheme)
    if scheme == "naive":
        rule = "a table of half the sums is built by another scheme"
        raise ConfigError.one("", "scheme", rule, scheme, "Take chains, shared, pruned or minimal.")
    made = _Made(mu)
    if scheme in ("shared", "pruned") and mu >= 3:
        _tree(made, prune=scheme == "pruned")
    else:
        _stripped(made, share=scheme != "chains")
    return made.network()


@lru_cache(maxsize=1)
def sherry_network() -> Network:
    """Return the adders of a table for weights of which one in four is zero."""
    made = _Made(SHERRY_MU)
    pairs = {(i, sign): made.add((i, 1), (i + 1, sign)) for i in (0, 2) for sign in (1, -1)}
    for zero in range(4):
        for code in range(4):
            first, second = 1 - 2 * (code & 1), 1 - 2 * (code >> 1)
            if zero >= 2:
                # The first two and one of the others.
                total = made.add(pairs[0, first], (5 - zero, second))
            else:
                # One of the first two and the others, together with the sign of the third.
                node, _ = pairs[2, first * second]
                total = made.add((1 - zero, 1), (node, first))
            made.outputs[zero | code << 2] = total
    order = [made.outputs[code] for code in range(SHERRY_ENTRIES)]
    return Network(
        SHERRY_MU, np.array(made.adders, np.int64), np.array(order, np.int64), SHERRY_DEPTH
    )


class _Made:
    """A network in the making."""

    def __init__(self, mu: int) -> None:
        self.mu = mu
        self.adders: list[tuple[int, int, int, int]] = []
        self.depths = dict.fromkeys(range(-1, mu), 0)
        self.outputs: dict[int, _Signed] = {}

    def add(self, a: _Signed, b: _Signed) -> _Signed:
        node = self.mu + len(self.adders)
        self.adders.append((*a, *b))
        self.depths[node] = 1 + max(self.depths[a[0]], self.depths[b[0]])
        return node, 1

    def network(self) -> Network:
        order = [self.outputs[e] for e in range(1, entries(self.mu) + 1)]
        return Network(
            self.mu,
            np.array(self.adders, np.int64).reshape(-1, 4),
            np.array(order, np.int64),
            max(self.depths.values()),
        )


def _stripped(made: _Made, *, share: bool) -> None:
    """Each entry is another one and its last activation; without sharing a chain of its own."""
    order = range(1, entries(made.mu) + 1)
    every = {entry: balanced(entry, made.mu) for entry in order}
    for entry in sorted(order, key=lambda e: sum(map(abs, every[e]))):
        digits = every[entry]
        used = [i for i, digit in enumerate(digits) if digit]
        if share and len(used) > 1:
            last = used[-1]
            before = made.outputs[entry - digits[last] * 3 ** (made.mu - 1 - last)]
            made.outputs[entry] = made.add(before, (last, digits[last]))
            continue
        total: _Signed = (used[0], digits[used[0]])
        for i in used[1:]:
            total = made.add(total, (i, digits[i]))
        made.outputs[entry] = total


def _tree(made: _Made, *, prune: bool) -> None:
    """The generator's tree, see the module's text."""
    mu = made.mu

    def grown(below: _Signed, activation: int, sign: int) -> _Signed:
        if prune and activation == mu - 1:
            return activation, sign
        return made.add(below, (activation, sign))

    level = [_ZERO] * 3
    for i in range(mu - 2, 0, -1):
        width = 3 ** (mu - 1 - i)
        level = [
            level[j] if j // (width // 3) == 1 else grown(level[j], 1 + i, 1 - j // (width // 3))
            for _ in range(1 if i == 1 else 3)
            for j in range(width)
        ]
    width = 3 ** (mu - 2)
    first: list[tuple[int, _Signed]] = [
        (4, made.add((0, 1), (1, 1))),
        (3, (0, 1)),
        (2, made.add((0, 1), (1, -1))),
        (1, (1, 1)),
    ]
    half = (width - 1) // 2
    for high, value in first:
        for j in range(width):
            made.outputs[high * width + half - j] = made.add(value, level[j])
    for j in range(half):
        made.outputs[half - j] = level[j]


def balanced(entry: int, mu: int) -> list[int]:
    """Return the weights of an entry: digits of a number in balanced ternary, highest first."""
    digits = []
    for _ in range(mu):
        digit = (entry + 1) % 3 - 1
        digits.append(digit)
        entry = (entry - digit) // 3
    return digits[::-1]
