"""Do number formats occupy what their specifications say?"""

import numpy as np
import pytest

from opbyte.core.dtypes import DTYPES, bytes_of, lookup
from opbyte.core.errors import ConfigError

# Bytes of one block, counted from the block's layout: (elements, bits each, shared bits).
BLOCKS = {
    "mxfp4": (32, 4, 8),
    "mxfp6": (32, 6, 8),
    "mxfp8": (32, 8, 8),
    "mxint8": (32, 8, 8),
    "nvfp4": (16, 4, 8),
    "bfp16": (8, 8, 8),
    "bfp8": (16, 8, 8),
}


@pytest.mark.parametrize(("name", "block"), BLOCKS.items())
def test_a_block_has_its_elements_and_what_they_share(
    name: str, block: tuple[int, int, int]
) -> None:
    elements, bits, shared = block
    assert bytes_of(name, elements) == (elements * bits + shared) / 8


@pytest.mark.parametrize(
    ("name", "weights", "bits"), [("t2", 4, 8), ("t1.67", 3, 5), ("t1.6", 5, 8), ("t1.25", 4, 5)]
)
def test_ternary_packings(name: str, weights: int, bits: int) -> None:
    assert bytes_of(name, weights) == pytest.approx(bits / 8, rel=1e-15)
    assert bits >= weights * np.log2(3) or name == "t1.25"  # Sherry drops one of four weights
    assert lookup(name).compute == "int8"


@pytest.mark.parametrize(
    ("name", "size"),
    [("fp64", 8), ("fp32", 4), ("tf32", 4), ("bf16", 2), ("fp16", 2), ("fp8", 1), ("int32", 4),
     ("int16", 2), ("int8", 1), ("int4", 0.5), ("int2", 0.25)],
)  # fmt: skip
def test_plain_formats(name: str, size: float) -> None:
    assert bytes_of(name, 1) == size
    assert lookup(name).block_overhead == 0
    assert lookup(name).compute == name or name == "int2"


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "mxfp8", "mxfp6", "bfp16"])
def test_blocks_compute_in_bf16_where_a_unit_has_no_peak_for_them(name: str) -> None:
    assert lookup(name).compute == "bf16"
    assert lookup(name).fallbacks[:2] == (name, "bf16")


def test_bytes_of_takes_arrays() -> None:
    elements = np.array([[32.0, 64.0], [0.0, 96.0]])
    assert np.array_equal(bytes_of("mxfp8", elements), [[33.0, 66.0], [0.0, 99.0]])


def test_every_format_falls_back_on_known_formats_and_names_its_source() -> None:
    for name, dtype in DTYPES.items():
        assert dtype.name == name
        assert dtype.fallbacks[0] == name
        assert len(set(dtype.fallbacks)) == len(dtype.fallbacks)
        assert set(dtype.fallbacks) <= set(DTYPES)
        assert dtype.compute in dtype.fallbacks
        assert dtype.source


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("float16", "fp16"),
        ("half", "fp16"),
        ("float32", "fp32"),
        ("float", "fp32"),
        ("e4m3", "fp8"),
        ("float8_e4m3fn", "fp8"),
        ("NVFP4", "nvfp4"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert lookup(alias) is DTYPES[name]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("fp4", ["mxfp4", "nvfp4"]), ("e2m1", ["mxfp4", "nvfp4"]), ("ternary", ["t2", "t1.25"])],
)
def test_ambiguous_words_are_refused_with_all_that_they_may_mean(
    word: str, meant: list[str]
) -> None:
    with pytest.raises(ConfigError, match="several number formats") as caught:
        lookup(word)
    for name in meant:
        assert f"{name} (" in str(caught.value)


def test_an_unknown_format_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'nvfp4'"):
        lookup("nvpf4")
