"""Tables: published counts of adders, networks that have them, and products by table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.ternary import FORMATS, entries, pack
from opbyte.hw_models.compute.lut.build import (
    SCHEMES,
    adder_count,
    balanced,
    counts,
    depth,
    network,
    sherry_network,
)
from opbyte.hw_models.compute.lut.functional import (
    error_bound,
    keys,
    lut_matmul,
    rounded,
    sherry_keys,
    tables,
)
from opbyte.hw_models.cost.primitives import NUMBERS

#: ternary_lut_generator.yaml, adder_counts_per_LUT_build.
PUBLISHED = {
    "shared": {3: 16, 4: 50, 5: 152, 6: 458, 7: 1376},
    "pruned": {3: 14, 4: 44, 5: 146, 6: 452, 7: 1370},
    "minimal": {3: 10, 4: 36, 5: 116, 6: 358, 7: 1086},
}
BUILT = [s for s in SCHEMES if s != "naive"]


@pytest.mark.parametrize("scheme", ["shared", "pruned", "minimal"])
@pytest.mark.parametrize("mu", range(3, 8))
def test_adders_are_the_published_ones(scheme: str, mu: int) -> None:
    assert adder_count(mu, scheme) == PUBLISHED[scheme][mu]  # type: ignore[arg-type]


def test_naive() -> None:
    assert [adder_count(mu, "naive") for mu in (3, 4, 5)] == [54, 243, 972]


def test_reduction_of_mu_4_is_82_percent() -> None:
    assert round(100 * (1 - adder_count(4, "pruned") / adder_count(4, "naive"))) == 82


@pytest.mark.parametrize("scheme", BUILT)
@pytest.mark.parametrize("mu", range(1, 8))
def test_the_network_has_the_counted_adders_and_makes_every_entry(scheme: str, mu: int) -> None:
    net = network(mu, scheme)  # type: ignore[arg-type]
    assert len(net.adders) == adder_count(mu, scheme)  # type: ignore[arg-type]
    assert net.depth == depth(mu, scheme)  # type: ignore[arg-type]
    assert len(net.outputs) == entries(mu)
    # Activations of unit vectors give the weights of every entry.
    made = tables(np.eye(mu, dtype=np.int64), net, NUMBERS["int8"])
    np.testing.assert_array_equal(made[:, 0], 0)
    for entry in range(1, entries(mu) + 1):
        assert made[:, entry].tolist() == balanced(entry, mu)


def test_arrays_of_counts_equal_single_ones() -> None:
    mu = np.array([1, 7, 3, 12])
    for scheme in SCHEMES:
        assert counts("adders", mu, scheme).tolist() == [adder_count(int(x), scheme) for x in mu]
        assert counts("depth", mu, scheme).tolist() == [depth(int(x), scheme) for x in mu]


def test_what_is_no_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="naive, chains, shared, pruned, minimal"):
        adder_count(3, "smart")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="half the sums"):
        network(3, "naive")
    for mu in (0, 13):
        with pytest.raises(ConfigError, match="from 1 to 12"):
            adder_count(mu, "pruned")


def operands(name: str, m: int, n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    form = NUMBERS[name]
    weights = rng.integers(-1, 2, (n, k)).astype(np.int8)
    if form.is_float:
        return np.asarray(rounded(rng.standard_normal((m, k)), form), np.float64), weights
    most = 2 ** (form.bits - 1)
    return rng.integers(-most, most, (m, k)), weights


@pytest.mark.parametrize("mu", range(1, 8))
@pytest.mark.parametrize("name", ["int8", "int16"])
def test_integers_are_exact(mu: int, name: str) -> None:
    left, weights = operands(name, 3, 37, 101, mu)
    most = 2 ** (NUMBERS[name].bits - 1)
    extreme = np.stack([np.full(101, -most), np.full(101, most - 1), left[0]])
    # Weights that make the largest sums there are, and none.
    hard = np.stack([np.ones(101), -np.ones(101), np.zeros(101), np.where(left[0] < 0, -1, 1)])
    for a, w in ((left, weights), (extreme, weights), (extreme, hard.astype(np.int8))):
        for scheme in BUILT:
            got = lut_matmul(a, w, mu=mu, activation=name, tables_per_tile=5, scheme=scheme)  # type: ignore[arg-type]
            np.testing.assert_array_equal(got, a.astype(np.int64) @ w.T.astype(np.int64))


@pytest.mark.parametrize("stored", FORMATS)
def test_every_format_feeds_every_mu(stored: str) -> None:
    left, weights = operands("int8", 2, 16, 120, 5)
    if FORMATS[stored].zeros:
        weights[weights == 0] = 1
        weights[:, ::4] = 0
    packed = pack(weights, stored)
    for mu in range(1, 8):
        got = lut_matmul(left, packed, mu=mu, stored=stored)
        np.testing.assert_array_equal(got, left @ weights.T)


@pytest.mark.parametrize("mu", range(1, 8))
@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_floats_are_within_the_stated_error(mu: int, name: str) -> None:
    left, weights = operands(name, 4, 29, 173, mu)
    # Cancellation: large numbers that leave a small one, over five decades.
    hard = np.asarray(rounded(left * 10.0 ** np.linspace(-3, 2, 173), NUMBERS[name]), np.float64)
    hard[:, 1::2] = -hard[:, :-1:2]
    for a in (left, hard):
        got = lut_matmul(a, weights, mu=mu, activation=name)
        bound = error_bound(a, weights, mu=mu, activation=name)
        error = np.abs(got.astype(np.float64) - a @ weights.T)
        assert (error <= bound).all()
        assert bound.max() < math.inf
    # A rounding in each addition is no error that could be left out.
    if name != "fp32":
        assert error.max() > 0


def test_rounding_is_to_nearest_even() -> None:
    bf16 = NUMBERS["bf16"]
    assert rounded(1 + 2**-8, bf16) == 1.0
    assert rounded(1 + 3 * 2**-8, bf16) == 1 + 2**-6
    assert rounded(1 + 2**-8 + 2**-20, bf16) == 1 + 2**-7
    assert rounded(2048.0 + 1, NUMBERS["fp16"]) == 2048
    for name, value in (("fp16", 65520.0), ("bf16", 3.4e38), ("fp32", 1e39), ("int8", 128)):
        with pytest.raises(WorkloadError, match=f"{name} holds"):
            rounded(value, NUMBERS[name])


def test_keys_of_a_row() -> None:
    assert keys(np.array([[1, -1, 0, -1]], np.int8), 3).tolist() == [[6, -9]]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(WorkloadError, match=r"got \(1, 3\) and \(1, 2\)"):
        lut_matmul([[1, 2, 3]], [[0, 1]], mu=2)
    with pytest.raises(WorkloadError, match="-1, 0 or 1"):
        lut_matmul([[1]], [[2]], mu=2)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        lut_matmul([[1]], [[1]], mu=2, tables_per_tile=0)
    with pytest.raises(ConfigError, match="one of int8"):
        lut_matmul([[1]], [[1]], mu=2, activation="fp9")


def test_sherry_has_16_sums_of_20_adders() -> None:
    net = sherry_network()
    assert (len(net.outputs), len(net.adders), net.depth) == (16, 20, 2)
    made = tables(np.eye(4, dtype=np.int64), net, NUMBERS["int8"])[:, 1:].T
    assert ((made == 0).sum(axis=1) == 1).all()
    # With their negatives they are all 32 states, and entry numbers are those of the packed code.
    assert len({tuple(r) for r in made} | {tuple(-r) for r in made}) == 32
    assert sherry_keys(made.astype(np.int8)).ravel().tolist() == list(range(1, 17))
    assert sherry_keys(-made.astype(np.int8)).ravel().tolist() == [-e for e in range(1, 17)]


@pytest.mark.parametrize("name", ["int8", "int16", "fp16"])
def test_products_of_sherry_by_their_own_tables(name: str) -> None:
    left, weights = operands(name, 3, 25, 96, 9)
    weights[weights == 0] = 1
    weights[:, 1::4] = 0
    got = lut_matmul(left, weights, mu=4, activation=name, sherry=True)
    bound = error_bound(left, weights, mu=4, activation=name)
    assert (np.abs(got - left @ weights.T) <= bound).all()
    with pytest.raises(ConfigError, match="tables of mu = 4, got 3"):
        lut_matmul(left, weights, mu=3, activation=name, sherry=True)
    with pytest.raises(WorkloadError, match="1 zero in every 4"):
        lut_matmul(left, np.ones_like(weights), mu=4, activation=name, sherry=True)
