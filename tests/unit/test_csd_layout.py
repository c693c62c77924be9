"""Pages of a KV cache in flash: closed forms against counting and drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.hw_models.compute.csd.layout import Layout, sparse_pages, touched

LAYOUT = Layout(4096, 128, 2)


def test_a_page_holds_16_tokens_or_2048_of_one_channel():
    assert (LAYOUT.tokens, LAYOUT.column, LAYOUT.group_bytes) == (16, 2048, 4096)
    # Wider heads: a token takes several pages.
    assert (Layout(4096, 4096, 2).tokens, Layout(4096, 4096, 2).group_bytes) == (1, 8192)


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (16, 1), (17, 2), (1024, 64), (1537, 97)])
def test_tokens_take_whole_pages(tokens, pages):
    assert LAYOUT.by_token(tokens) == pages * 4096
    assert LAYOUT.stored(tokens) == 2 * pages * 4096


def test_channels_take_a_page_for_2048_tokens_and_short_ones_share():
    assert LAYOUT.by_channel(1024, 16) == 16 * 4096
    assert LAYOUT.by_channel(2049, 16) == 32 * 4096
    assert LAYOUT.stored(2048, twice=True) == 1.5 * LAYOUT.stored(2048)
    assert LAYOUT.stored(1024, twice=True) == 1.5 * LAYOUT.stored(1024)


def test_appended_keys_are_programmed_again_until_their_page_is_full():
    assert LAYOUT.rewritten(128) == 16
    assert LAYOUT.rewritten(2048) == 1
    assert LAYOUT.rewritten(10_000) == 1


# -- what kept tokens touch ----------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "keep"), [(2048, 0.125), (1000, 0.05), (100, 0.5)])
def test_independent_tokens_touch_what_draws_without_replacement_do(tokens, keep):
    rng = np.random.default_rng(7)
    kept = round(keep * tokens)
    drawn = [len(np.unique(rng.choice(tokens, kept, replace=False) // 16)) for _ in range(1000)]
    expected = touched(tokens, kept / tokens, 16)
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected) < 4 * error + 1e-9


def chain(rng, tokens, keep, run):
    """Return which tokens a stationary chain of two states keeps."""
    start = keep / (run * (1 - keep))
    state = rng.random() < keep
    kept = np.zeros(tokens, bool)
    for i, u in enumerate(rng.random(tokens)):
        kept[i] = state
        state = u >= 1 / run if state else u < start
    return kept


@pytest.mark.parametrize("run", [1.0, 2.0, 8.0, 40.0])
def test_runs_touch_what_a_drawn_chain_does(run):
    rng = np.random.default_rng(11)
    drawn, kept = [], []
    for _ in range(150):
        tokens = chain(rng, 2000, 0.125, run)
        drawn.append(tokens.reshape(-1, 16).any(axis=1).sum())
        kept.append(tokens.mean())
    expected = touched(2000, 0.125, 16, run)
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected) < 4 * error
    assert np.mean(kept) == pytest.approx(0.125, abs=0.02)


shares = st.floats(0.01, 0.49)


@given(st.integers(1, 5000), shares, st.floats(1.0, 500.0), st.floats(1.0, 500.0))
def test_longer_runs_touch_less_and_never_less_than_the_ideal(tokens, keep, one, two):
    short, long = sorted((one, two))
    few, many = (float(touched(tokens, keep, 16, r)) for r in (long, short))
    assert few <= many * (1 + 1e-12)
    assert keep * tokens / 16 <= few * (1 + 1e-12)
    assert many <= np.ceil(tokens / 16)


@given(st.integers(1, 5000), st.floats(0.01, 1.0))
def test_independent_tokens_lie_between_the_ideal_and_all(tokens, keep):
    found = float(touched(tokens, keep, 16))
    assert keep * tokens / 16 * (1 - 1e-9) <= found <= np.ceil(tokens / 16)


def test_limits_of_locality():
    assert touched(4096, 0.125, 16, 1e9) == pytest.approx(0.125 * 256, rel=1e-6)
    # Runs of 1 / (1 - s) are those of independent tokens; many tokens have no memory of draws.
    assert touched(1e6, 0.125, 16, 1 / 0.875) == pytest.approx(touched(1e6, 0.125, 16), rel=1e-4)
    assert touched(4096, 1.0, 16) == touched(4096, 1.0, 16, 5.0) == 256


# -- sparse attention ----------------------------------------------------------------------


def test_an_eighth_saves_16_thirds_and_pages_take_it_back():
    apart = ob.sparse_pages(2048)
    assert apart.ideal_gain == pytest.approx(16 / 3)
    assert apart.dense_bytes == 2 * 2048 * 256
    assert apart.channel_bytes == 16 * 4096
    assert apart.gain == pytest.approx(1.058, abs=0.001)
    assert ob.sparse_pages(2048, run=1e9).gain == pytest.approx(16 / 3, rel=1e-6)
    pages = 128 * (1 - 0.875 * (1 - 0.125 / (16 * 0.875)) ** 15)
    assert ob.sparse_pages(2048, run=16).gain == pytest.approx(256 / (16 + 2 * pages))


def test_half_a_column_reads_a_whole_page():
    short = sparse_pages(1024, run=1e9)
    assert short.channel_bytes == 2 * 0.125 * 1024 * 256


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"channels": 0.0}, "channels"),
        ({"run": 0.5}, "run"),
        ({"keep": 0.9, "run": 2.0}, "run"),
    ],
)
def test_bad_shares_are_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        sparse_pages(2048, **wrong)


def test_a_page_larger_than_the_cache_is_one_page_and_takes_no_longer_to_count():
    # Looping over the tokens of a page of 1 EiB took for ever.
    assert float(touched(1000.0, 0.125, 10**16)) == pytest.approx(1.0, rel=1e-9)
    assert float(touched(1000.0, 0.125, 10**16, 16.0)) == pytest.approx(1.0, rel=1e-3)
    assert float(touched(1000.0, 0.125, 1000)) == pytest.approx(1.0, rel=1e-9)
