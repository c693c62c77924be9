"""What `simulate_batch` and single operators refuse: one clear error, never a number."""

import numpy as np
import pandas as pd
import pytest

import opbyte as ob

GEMM = {"kind": "gemm", "m": 16, "n": 64, "k": 64}
DECODE = {"kind": "attention_decode", "batch": 4, "kv_tokens": 100, "heads": 32, "kv_heads": 8}
MLA = {"kind": "mla_decode", "batch": 4, "kv_tokens": 100, "heads": 16}
MOE = {"kind": "moe", "tokens": 64, "hidden": 512, "ffn": 256, "experts": 8, "top_k": 2}
REDUCE = {"kind": "all_reduce", "bytes": 2**20, "participants": 4}


def batch(*rows, machine="dgx-a100"):
    return ob.simulate_batch(machine, pd.DataFrame(list(rows)))


def test_the_rows_that_are_spoilt_below_are_fine():
    assert (batch(GEMM, DECODE, MLA, MOE, REDUCE)["seconds"] > 0).all()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**GEMM, "m": 1.5}, "m must be a whole number"),
        ({**GEMM, "m": 0}, "m must be a whole number of at least 1"),
        ({**GEMM, "k": -1}, "k must be"),
        ({**GEMM, "m": 1 + 2j}, "needs numbers"),
        ({**GEMM, "m": 2.0**60}, "bytes|elements|fit|GB|TB|EB"),
        ({**GEMM, "dtype": 5}, "dtype must be a word"),
        ({**GEMM, "dtype": "fp7"}, "fp7"),
        ({**DECODE, "heads": 33}, "multiple of kv_heads"),
        ({**DECODE, "kv_tokens": 10.5}, "kv_tokens must be a whole number"),
        ({**DECODE, "window": "a"}, "window must be a whole number"),
        ({**DECODE, "window": 1.5}, "window must be a whole number"),
        ({**DECODE, "window": -1}, "window must be at least 0"),
        ({**DECODE, "kind": "attention_prefill"}, "q_tokens"),
        ({**MLA, "nope": "x"}, "nope must be a whole number"),
        ({**MLA, "latent": -5}, "latent must be at least 1"),
        ({**MOE, "experts": "abc"}, "experts must be a whole number"),
        ({**MOE, "seed": -1}, "seed must be at least 0"),
        ({**MOE, "seed": 1.5}, "seed must be a whole number"),
        ({**MOE, "gated": "no"}, "gated must be true or false"),
        ({**MOE, "gated": 2}, "gated must be true or false"),
        ({**MOE, "routing": 5}, "routing must be a word"),
        ({**MOE, "top_k": 9}, "8 experts"),
        ({**REDUCE, "participants": 9}, "has 8 of 'gpu'"),
        ({**REDUCE, "participants": 2.5}, "participants must be a whole number"),
        ({**REDUCE, "bytes": 1.5}, "bytes must be a whole number"),
        ({"kind": None, "m": 1}, "every row needs a kind"),
        ({"kind": "gem", "m": 1}, "gemm"),
        ({"kind": "decode", "model": "llama-3.1-8b"}, "single operator"),
        ({"m": 1, "n": 1, "k": 1}, "column `kind` is due"),
    ],
    ids=str,
)
def test_a_spoilt_row_is_refused(row, says):
    with pytest.raises(ob.OpbyteError, match=says):
        batch(row)


def test_a_row_without_a_kind_does_not_hide_among_others():
    with pytest.raises(ob.ConfigError, match=r"row 1.*needs a kind"):
        batch(GEMM, {**GEMM, "kind": np.nan})


def test_no_frame_and_double_columns_are_refused():
    with pytest.raises(ob.ConfigError, match="DataFrame is due"):
        ob.simulate_batch("a100-sxm-80gb", [GEMM])
    frame = pd.DataFrame([["gemm", 1, 2, 3, 4]], columns=["kind", "m", "n", "k", "m"])
    with pytest.raises(ob.ConfigError, match="may be there once"):
        ob.simulate_batch("a100-sxm-80gb", frame)


@pytest.mark.parametrize("empty", [None, np.nan, pd.NA])
def test_an_empty_cell_takes_the_default(empty):
    full = batch(GEMM, DECODE, MOE)["seconds"].to_list()
    rows = [{**GEMM, "dtype": empty}, {**DECODE, "kv_dtype": empty}, {**MOE, "routing": empty}]
    assert [batch(row)["seconds"][0] for row in rows] == full


def test_a_lone_gpu_stands_for_as_many_as_take_part():
    alone = batch(REDUCE, machine="a100-sxm-80gb")["seconds"][0]
    assert alone > 0


@pytest.mark.parametrize("machine", ["a100-sxm-80gb", "h100-sxm-80gb", "dgx-h100"])
def test_a_latent_call_takes_what_the_device_takes(machine):
    """The host of a benchmark is no property of the operator: sizes matter."""
    small = batch({**MLA, "batch": 1}, machine=machine)["seconds"][0]
    large = batch({**MLA, "batch": 64, "kv_tokens": 4096, "heads": 128}, machine=machine)
    assert small < 100e-6
    assert large["seconds"][0] > 3 * small
