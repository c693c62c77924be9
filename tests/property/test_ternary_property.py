"""Any ternary matrix comes back from every format that can hold it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opbyte.core.ternary import FORMATS, pack, packed_bytes, unpack

shapes = st.tuples(st.integers(1, 9), st.integers(1, 70))
matrices = shapes.flatmap(lambda s: arrays(np.int8, s, elements=st.integers(-1, 1)))
ANY = [name for name, form in FORMATS.items() if form.zeros is None]


@given(matrices, st.sampled_from(ANY))
def test_pack_then_unpack_changes_nothing(weights: np.ndarray, name: str) -> None:
    stored = pack(weights, name)
    assert stored.shape == (len(weights), packed_bytes(1, weights.shape[1], name))
    np.testing.assert_array_equal(unpack(stored, weights.shape[1], name), weights)


@given(st.integers(1, 9), st.integers(1, 17), st.randoms(use_true_random=False))
def test_three_in_four_comes_back(rows: int, groups: int, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    weights = rng.choice(np.array([-1, 1], np.int8), (rows, groups, 4))
    np.put_along_axis(weights, rng.integers(0, 4, (rows, groups, 1)), 0, axis=2)
    weights = weights.reshape(rows, -1)
    np.testing.assert_array_equal(unpack(pack(weights, "t1.25"), 4 * groups, "t1.25"), weights)


@given(matrices, st.integers(1, 7))
def test_the_negative_of_a_key_is_the_same_entry(weights: np.ndarray, mu: int) -> None:
    """So a table needs half of the sums: sign bits differ, indices do not."""
    name, bits = f"key{mu}", FORMATS[f"key{mu}"].bits
    whole = np.zeros((len(weights), mu), np.int8)
    whole[:, : min(mu, weights.shape[1])] = weights[:, :mu]

    def codes(matrix: np.ndarray) -> np.ndarray:
        stored = pack(matrix, name).astype(np.int64)
        return stored @ (1 << (8 * np.arange(stored.shape[1])))

    plus, minus = codes(whole), codes(-whole)
    some = whole.any(axis=1)
    np.testing.assert_array_equal(plus[some] ^ minus[some], 1 << (bits - 1))
    assert (plus[~some] == 0).all()
