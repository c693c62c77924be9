"""Real traces: rows and totals counted apart from our readers."""

import pytest

from opbyte.workloads.traces import read_trace, write_trace

#: File -> requests, input tokens, output tokens, seconds from first to last (None: lengths only).
KNOWN = {
    "azure_llm_2023_code.csv": (8_819, 18_059_974, 245_896, 3435.948056),
    "mooncake_synthetic.jsonl": (3_993, None, None, 1022.025),
    "sharegpt_8k_lengths.csv": (30_731, 71_911_571, 13_481_988, None),
}


@pytest.fixture(scope="module")
def folder(reference):
    found = reference / "traces"
    if not found.is_dir():
        pytest.skip(f"no real traces: {found} is not a folder (set OPBYTE_REFERENCE)")
    return found


@pytest.mark.parametrize("name", KNOWN)
def test_rows_and_totals(folder, name):
    requests, asked, answered, duration = KNOWN[name]
    trace = read_trace(folder / name)
    found = trace.describe()
    assert (len(trace), trace.skipped, trace.failed) == (requests, 0, 0)
    if asked is not None:
        assert found["input_tokens_total"] == asked
        assert found["output_tokens_total"] == answered
    assert trace.timed == (duration is not None)
    if duration is not None:
        assert trace.arrival_s[0] == 0.0
        assert trace.duration_s == pytest.approx(duration, abs=1e-6)


def test_mooncake_blocks_are_whole_prompts_and_chained(folder):
    trace = read_trace(folder / "mooncake_synthetic.jsonl")
    assert trace.prefix.block_tokens == 512
    assert (trace.prefix.counts == -(-trace.input_tokens // 512)).all()
    assert trace.prefix.offsets[-1] == 121_877
    found = trace.describe()
    assert found["prefix_blocks_distinct"] == 43_924
    # A block's id stands for all before it too, so whatever was seen before is reusable.
    assert found["prefix_reuse_bound"] == pytest.approx(1 - 43_924 / 121_877, rel=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_real_traces_survive_our_format(folder, tmp_path, name):
    trace = read_trace(folder / name)
    again = read_trace(write_trace(trace, tmp_path / "t.jsonl"))
    assert (again.arrival_s == trace.arrival_s).all()
    assert (again.input_tokens == trace.input_tokens).all()
    assert (again.output_tokens == trace.output_tokens).all()
    if trace.prefix is not None:
        assert (again.prefix.ids == trace.prefix.ids).all()
        assert (again.prefix.offsets == trace.prefix.offsets).all()
