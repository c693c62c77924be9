"""Ternary formats: sizes by hand, round trips, bounds, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opbyte.core.dtypes import bytes_of, lookup
from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.ternary import (
    FORMATS,
    KEY_BITS,
    check_mu,
    entries,
    entropy_bits,
    key_format,
    pack,
    packed_bytes,
    unpack,
)

#: (3^mu - 1) / 2 entries; bits of a key; bits of a weight (ternary_lut_generator.yaml).
ENTRIES = {1: 1, 2: 4, 3: 13, 4: 40, 5: 121, 6: 364, 7: 1093}
KEYS = {1: 2, 2: 4, 3: 5, 4: 7, 5: 8, 6: 10, 7: 12}
PER_WEIGHT = {1: 2.0, 2: 2.0, 3: 1.6667, 4: 1.75, 5: 1.6, 6: 1.6667, 7: 1.7143}


def trits(rows: int, columns: int, seed: int = 0, zeros: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if zeros is None:
        return rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    signs = rng.choice(np.array([-1, 1], np.int8), (rows, columns // 4, 4))
    np.put_along_axis(signs, rng.integers(0, 4, (rows, columns // 4, 1)), 0, axis=2)
    return signs.reshape(rows, columns)


@pytest.mark.parametrize("mu", ENTRIES)
def test_entries_and_keys_are_the_published_ones(mu: int) -> None:
    assert entries(mu) == ENTRIES[mu]
    assert KEY_BITS[mu] == key_format(mu).bits == KEYS[mu]
    assert round(key_format(mu).bits_per_weight, 4) == PER_WEIGHT[mu]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_and_its_dtype_have_the_same_bits_above_the_bound(name: str) -> None:
    form = FORMATS[name]
    assert lookup(form.dtype).bits_per_element == form.bits_per_weight
    assert form.bits_per_weight >= form.bound
    assert form.bound == (1.25 if name == "t1.25" else pytest.approx(math.log2(3)))


def test_sherry_takes_a_quarter_less_than_three_in_five_bits() -> None:
    saved = 1 - FORMATS["t1.25"].bits_per_weight / FORMATS["t1.67"].bits_per_weight
    assert saved == pytest.approx(0.25, rel=1e-12)


#: Matrices of BitNet 2B4T and 0.7B, (outputs, inputs).
SHAPES = [(2560, 6912), (640, 2560), (1536, 4096)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_of_models_come_back_and_take_the_bytes_of_their_dtype(
    name: str, shape: tuple[int, int]
) -> None:
    weights = trits(*shape, zeros=FORMATS[name].zeros)
    stored = pack(weights, name)
    np.testing.assert_array_equal(unpack(stored, shape[1], name), weights)
    assert stored.nbytes == packed_bytes(*shape, name)
    # Without padding they are what a model counts; a row's padding is below a group and a byte.
    counted = bytes_of(FORMATS[name].dtype, float(weights.size))
    assert counted <= stored.nbytes <= counted + shape[0] * 2.5
    if name != "t1.25":
        assert 8 * stored.nbytes / weights.size >= entropy_bits(weights)


def test_codes_by_hand() -> None:
    assert pack([[-1, 0, 1, 1]], "t2").tolist() == [[0b10_10_01_00]]
    assert pack([[1, 1, 1, 1, 1]], "t1.6").tolist() == [[242]]
    assert pack([[0, -1, 0]], "t1.67").tolist() == [[9 + 0 + 1]]
    # + - 0 is 9 - 3 = entry 6; its negative is the same entry with the sign.
    assert pack([[1, -1, 0]], "key3").tolist() == [[6]]
    assert pack([[-1, 1, 0]], "key3").tolist() == [[6 + 16]]
    # The zero at place 1, then + (first), - (against it), + : no sign.
    assert pack([[1, 0, -1, 1]], "t1.25").tolist() == [[0b0_01_01]]
    assert pack([[-1, 0, 1, -1]], "t1.25").tolist() == [[0b1_01_01]]


def test_entropy() -> None:
    assert entropy_bits(np.array([[-1, 0, 1]])) == pytest.approx(math.log2(3))
    assert entropy_bits(np.zeros((3, 3))) == 0.0
    assert entropy_bits(np.array([[0, 0, 1, -1]])) == pytest.approx(1.5)


@pytest.mark.parametrize("mu", [0, 13, -1, 2.5, "four", True, None])
def test_a_wrong_mu_names_the_range(mu: object) -> None:
    with pytest.raises(ConfigError, match="must be a whole number from 1 to 12"):
        check_mu(mu)


def test_wrong_weights_are_refused_with_their_place() -> None:
    with pytest.raises(WorkloadError, match=r"got 2 at \[1, 0\]"):
        pack([[0, 1], [2, 0]], "t2")
    with pytest.raises(WorkloadError, match=r"got nan at \[0, 1\]"):
        pack([[0.0, math.nan]], "t2")
    with pytest.raises(WorkloadError, match="a matrix of"):
        pack([0, 1], "t2")
    with pytest.raises(WorkloadError, match="1 zero in every 4 weights, got 2 in row 0"):
        pack([[0, 0, 1, 1]], "t1.25")
    with pytest.raises(WorkloadError, match="whole groups of 4 weights, got 5 columns"):
        pack([[0, 1, 1, 1, 1]], "t1.25")
    with pytest.raises(ConfigError, match=r"'t1.66'.*Did you mean 't1.6'"):
        pack([[0]], "t1.66")
    with pytest.raises(ConfigError, match="mu from 1 to 7"):
        key_format(8)


def test_wrong_bytes_are_refused() -> None:
    with pytest.raises(WorkloadError, match="5 weights of a row take 1 bytes"):
        unpack(np.zeros((1, 2), np.uint8), 5, "t1.6")
    with pytest.raises(WorkloadError, match="code 255 of row 0, group 0 has no weights"):
        unpack(np.full((1, 1), 255, np.uint8), 5, "t1.6")
    with pytest.raises(WorkloadError, match="code 3 of row 0, group 1"):
        unpack(np.full((1, 1), 0b1100, np.uint8), 2, "t2")
