"""JSONL traces: Mooncake's and Bailian's rows, exact round trips, bad rows by line."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opbyte.core.errors import ConfigError
from opbyte.workloads.traces import PrefixBlocks, RequestTrace, read_trace, write_trace

ROWS = [
    {"timestamp": 0, "input_length": 1000, "output_length": 6, "hash_ids": [0, 1]},
    {"timestamp": 27, "input_length": 500, "output_length": 4, "hash_ids": [0]},
    {"timestamp": 3000.5, "input_length": 1536, "output_length": 2, "hash_ids": [0, 1, 7]},
]
CHATS = [
    {
        "chat_id": chat, "parent_chat_id": parent, "timestamp": time, "input_length": 20,
        "output_length": 3, "type": "text", "turn": 1, "hash_ids": [chat, chat + 1],
    }
    for chat, parent, time in ((10, -1, 0.25), (11, -1, 61.114), (12, 10, 62.0), (13, 12, 63))
]  # fmt: skip


def write(folder, rows, name="t.jsonl"):
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def problems(path, **options):
    with pytest.raises(ConfigError) as caught:
        read_trace(path, **options)
    return [str(problem) for problem in caught.value.problems]


def assert_same(one, other):
    for name in ("arrival_s", "input_tokens", "output_tokens", "session", "tenant", "priority"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            assert a.tolist() == b.tolist(), name
    assert one.timed == other.timed
    assert (one.prefix is None) == (other.prefix is None)
    if one.prefix is not None:
        assert one.prefix.ids.tolist() == other.prefix.ids.tolist()
        assert one.prefix.offsets.tolist() == other.prefix.offsets.tolist()
        assert one.prefix.block_tokens == other.prefix.block_tokens


def test_mooncake_rows(tmp_path):
    trace = read_trace(write(tmp_path, ROWS))
    assert trace.arrival_s.tolist() == [0.0, 0.027, 3.0005]
    assert trace.input_tokens.tolist() == [1000, 500, 1536]
    assert trace.output_tokens.tolist() == [6, 4, 2]
    assert trace.prefix.block_tokens == 512
    assert [trace.prefix.of(i).tolist() for i in range(3)] == [[0, 1], [0], [0, 1, 7]]
    assert trace.session is None


def test_bailian_rows_are_seconds_and_turns_make_sessions(tmp_path):
    trace = read_trace(write(tmp_path, CHATS))
    assert trace.arrival_s.tolist() == [0.25, 61.114, 62.0, 63.0]
    assert trace.prefix.block_tokens == 16
    assert trace.session.tolist() == [0, 1, 0, 0]


def test_keys_may_stand_in_any_order_and_others_are_ignored(tmp_path):
    turned = [{"model": [{}], **dict(reversed(row.items()))} for row in ROWS]
    assert_same(read_trace(write(tmp_path, turned)), read_trace(write(tmp_path, ROWS, "o.jsonl")))


def test_block_tokens_come_from_the_caller_the_file_or_the_format(tmp_path):
    stated = [row | {"block_size": 64} for row in ROWS]
    for rows, given_tokens, due in ((ROWS, None, 512), (stated, None, 64), (stated, 32, 32)):
        path = write(tmp_path, rows)
        assert read_trace(path, block_tokens=given_tokens).prefix.block_tokens == due
    path = write(tmp_path, [*stated[:2], ROWS[2] | {"block_size": 65}])
    assert f"{path}:3: block_size: must be at least 1 and the same" in problems(path)[0]
    path = write(tmp_path, [stated[0], stated[1] | {"block_size": 0}])
    assert f"{path}:2: block_size" in problems(path)[0]


def test_gzip_byte_order_mark_crlf_and_blank_lines(tmp_path):
    expected = read_trace(write(tmp_path, ROWS))
    text = (tmp_path / "t.jsonl").read_bytes()
    for data in (
        b"\xef\xbb\xbf" + text,
        text.replace(b"\n", b"\r\n"),
        text.replace(b"\n", b"\n\n \n"),
        b"\n\n" + text,
        text.rstrip(b"\n"),
        gzip.compress(text),
    ):
        path = tmp_path / "v.jsonl"
        path.write_bytes(data)
        assert_same(read_trace(path), expected)


BAD = {
    '{"timestamp": 1, "input_length": 5': "must be a JSON object",
    "[1, 2]": "must be a JSON object, got a list of 2 items",
    "7": "must be a JSON object, got 7",
    "nonsense": "must be a JSON object",
    "[" * 20000: "must be a JSON object",
    '{"timestamp": 1, "input_length": 5}': "output_length: the key is missing",
    '{"timestamp": 1, "input_length": 5.5, "output_length": 1}': "input_length: must be a whole",
    '{"timestamp": 1, "input_length": "5", "output_length": 1}': "input_length: must be a whole",
    '{"timestamp": 1, "input_length": true, "output_length": 1}': "input_length: must be a whole",
    '{"timestamp": 1, "input_length": -5, "output_length": 1}': "input_tokens: must be a whole",
    '{"timestamp": 1, "input_length": 5, "output_length": 0}': "output_tokens: must be a whole",
    '{"timestamp": 1, "input_length": 5, "output_length": 1' + "0" * 400 + "}": "output_tokens",
    '{"timestamp": "1", "input_length": 5, "output_length": 1}': "timestamp: must be a number",
    '{"timestamp": null, "input_length": 5, "output_length": 1}': "timestamp: the key is missing",
    '{"timestamp": NaN, "input_length": 5, "output_length": 1}': "NaN is no number",
    '{"timestamp": -1, "input_length": 5, "output_length": 1}': "arrival_s: must be finite",
    '{"timestamp": 1e999, "input_length": 5, "output_length": 1}': "arrival_s: must be finite",
    '{"timestamp": 1' + "0" * 400 + ', "input_length": 5, "output_length": 1}': "arrival_s",
    '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": 5}': "hash_ids: must be",
    '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [-1]}': "hash_ids",
    '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [true]}': "hash_ids",
    '{"timestamp": 1, "input_length": 5, "output_length": 1, "priority": "high"}': "priority",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_bad_rows_are_told_with_their_line(tmp_path, line):
    plain = [{key: row[key] for key in list(row)[:3]} for row in ROWS]
    path = write(tmp_path, [plain[0], "", line, *plain[1:]])
    found = problems(path)
    assert found[0].startswith(f"{path}:3: ")
    assert any(BAD[line] in problem for problem in found[:-1])
    assert "1 row is bad" in found[-1]
    trace = read_trace(path, skip_bad=True)
    assert trace.skipped == 1
    assert_same(trace, read_trace(write(tmp_path, plain, "good.jsonl")))


def test_a_bad_row_keeps_the_blocks_of_the_others_apart(tmp_path):
    rows = [ROWS[0], ROWS[1] | {"output_length": -1}, ROWS[2]]
    trace = read_trace(write(tmp_path, rows), skip_bad=True)
    assert trace.prefix.offsets.tolist() == [0, 2, 5]
    assert trace.prefix.of(1).tolist() == [0, 1, 7]


def test_a_damaged_first_row_is_a_row(tmp_path):
    path = write(tmp_path, ['{"timestamp": 1, "inp', *ROWS])
    assert f"{path}:1: must be a JSON object" in problems(path)[0]
    assert len(read_trace(path, skip_bad=True)) == 3


@pytest.mark.parametrize("key", ["timestamp", "hash_ids", "session_id"])
def test_a_row_without_what_the_others_have_is_bad(tmp_path, key):
    rows = [row | {"session_id": 4} for row in ROWS]
    lacking = {k: v for k, v in rows[1].items() if k != key}
    for other in (lacking, lacking | {key: None}):
        path = write(tmp_path, [rows[0], other, rows[2]])
        found = problems(path)
        assert f"{path}:2: {key}: the key is missing, rows above have it" in found[0]
        assert "1 row is bad" in found[1]
        assert len(read_trace(path, skip_bad=True)) == 2
    path = write(tmp_path, [lacking, rows[1], lacking])
    assert f"{path}:2: {key}: no row above has this key" in problems(path)[0]


def test_rows_without_timestamps_are_lengths(tmp_path):
    bare = [{k: v for k, v in row.items() if k.endswith("length")} for row in ROWS]
    trace = read_trace(write(tmp_path, bare))
    assert not trace.timed
    assert trace.prefix is None


def test_order(tmp_path):
    path = write(tmp_path, [ROWS[2], *ROWS[:2]])
    assert [p.split(": ")[0] for p in problems(path)[:2]] == [f"{path}:2", f"{path}:3"]
    assert_same(read_trace(path, sort=True), read_trace(write(tmp_path, ROWS, "o.jsonl")))


def test_an_object_of_something_else_is_no_trace(tmp_path):
    assert "no known trace begins so" in problems(write(tmp_path, [{"a": 1}]))[0]


def test_long_first_rows_are_read(tmp_path):
    row = ROWS[0] | {"hash_ids": list(range(200_000))}
    assert len(read_trace(write(tmp_path, [row])).prefix.ids) == 200_000


def test_session_ids_of_other_tools_are_numbered(tmp_path):
    rows = [row | {"session_id": name} for row, name in zip(ROWS, "bab", strict=True)]
    assert read_trace(write(tmp_path, rows)).session.tolist() == [0, 1, 0]


tokens = st.integers(1, 2**31 - 1)
ids = st.integers(0, 2**62 - 1)
seconds = st.floats(0, 1e300, allow_subnormal=True) | st.floats(0, 1e6)


@st.composite
def traces(draw):
    n = draw(st.integers(1, 12))
    timed = draw(st.booleans())

    def column(elements, optional=False):
        if optional and draw(st.booleans()):
            return None
        return draw(arrays.arrays(np.int64, n, elements=elements))

    arrivals = sorted(draw(st.lists(seconds, min_size=n, max_size=n))) if timed else np.zeros(n)
    prefix = None
    if draw(st.booleans()):
        blocks = draw(st.lists(st.lists(ids, max_size=4), min_size=n, max_size=n))
        prefix = PrefixBlocks(
            np.array([i for block in blocks for i in block], np.int64),
            np.cumsum([0, *map(len, blocks)]),
            draw(st.sampled_from([1, 16, 512])),
        )
    return RequestTrace(
        arrivals,
        column(tokens),
        column(tokens),
        prefix=prefix,
        session=column(ids, optional=True),
        tenant=column(ids, optional=True),
        priority=column(st.integers(-(2**61), 2**61), optional=True),
        timed=timed,
    )


@given(trace=traces(), name=st.sampled_from(["r.jsonl", "r.jsonl.gz"]))
def test_what_is_written_is_read_back_exactly(tmp_path_factory, trace, name):
    path = tmp_path_factory.mktemp("trip") / name
    write_trace(trace, path)
    assert_same(read_trace(path), trace)
    first = path.read_bytes()
    write_trace(read_trace(path), path)
    assert path.read_bytes() == first


def test_written_rows_are_json_that_others_read(tmp_path):
    prefix = PrefixBlocks(np.array([3, 4, 5]), np.array([0, 2, 3]), 16)
    trace = RequestTrace([0.1, 1234.5], [20, 7], [1, 2], prefix=prefix, priority=[0, 5])
    path = write_trace(trace, tmp_path / "t.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "timestamp": 100, "input_length": 20, "output_length": 1, "hash_ids": [3, 4],
            "block_size": 16, "priority": 0,
        },
        {
            "timestamp": 1234500, "input_length": 7, "output_length": 2, "hash_ids": [5],
            "block_size": 16, "priority": 5,
        },
    ]  # fmt: skip


def test_blocks_of_512_are_not_stated(tmp_path):
    prefix = PrefixBlocks(np.array([3]), np.array([0, 1]), 512)
    path = write_trace(RequestTrace([0.0], [20], [1], prefix=prefix), tmp_path / "t.jsonl")
    row = '{"timestamp": 0, "input_length": 20, "output_length": 1, "hash_ids": [3]}\n'
    assert path.read_text() == row


def test_writing_nowhere_is_an_error_and_leaves_nothing(tmp_path):
    trace = RequestTrace([0.0], [20], [1])
    for path in (tmp_path / "absent" / "t.jsonl", tmp_path):
        with pytest.raises(ConfigError, match="can not be written"):
            write_trace(trace, path)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_may_be_written_over_itself(tmp_path):
    path = write(tmp_path, ROWS)
    before = read_trace(path)
    write_trace(before, path)
    assert_same(read_trace(path), before)
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]
