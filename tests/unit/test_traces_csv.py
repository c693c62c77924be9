"""CSV traces: columns by header, exact times, bad rows by line."""

import gzip
import itertools

import numpy as np
import pytest

from opbyte.core.errors import ConfigError
from opbyte.workloads.traces import FORMATS, csv_formats, read_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n"
    "2023-11-16 18:17:04.0319600,3180,8\n"
    "2023-11-17 18:17:04.0319601,110,27\n"
)
BURST_OLD = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,Conversation log\n"
    "118,GPT-4,417,276,693,API log\n"
)
BURST_NEW = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.5,a,1.2,ChatGPT,472,18,490,Conversation log\n"
    "45.25,b,0,ChatGPT,1087,0,1087,Conversation log\n"
    "118,b,3.5,GPT-4,417,276,693,API log\n"
    "119,a,3.5,GPT-4,41,27,68,API log\n"
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,2\n0.75,20,3\n"
LENGTHS = (
    "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n5,6,11,1\n"
)

#: Format -> file, arrivals (s), input tokens, output tokens.
FILES = {
    "azure": (AZURE, [0.0, 0.052, 86400.0520001], [4808, 3180, 110], [10, 8, 27]),
    "burstgpt": (BURST_OLD, [0.0, 113.0], [472, 417], [18, 276]),
    "vidur": (VIDUR, [0.5, 0.75], [10, 20], [2, 3]),
    "lengths": (LENGTHS, [0.0, 0.0], [74, 5], [918, 6]),
}


def write(folder, text, name="t.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def columns(trace):
    return [trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist()]


def problems(path, **options):
    with pytest.raises(ConfigError) as caught:
        read_trace(path, **options)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_detected_and_read(tmp_path, name):
    text, *expected = FILES[name]
    path = write(tmp_path, text)
    assert columns(read_trace(path)) == expected
    assert columns(read_trace(path, name)) == expected
    assert read_trace(path).timed == (name != "lengths")


@pytest.mark.parametrize("name", FILES)
def test_columns_are_found_wherever_they_stand(tmp_path, name):
    text, *expected = FILES[name]
    rows = [line.split(",") for line in text.splitlines()]
    width = len(rows[0])
    orders = list(itertools.permutations(range(width)))
    for order in orders[:: max(1, len(orders) // 24)]:
        moved = "".join(",".join(row[i] for i in order) + "\n" for row in rows)
        assert columns(read_trace(write(tmp_path, moved))) == expected, order


@pytest.mark.parametrize("name", FILES)
def test_bytes_around_the_text_change_nothing(tmp_path, name):
    text, *expected = FILES[name]
    head, _, body = text.partition("\n")
    variants = {
        "byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "both": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "no newline at the end": text.rstrip("\n").encode(),
        "blank lines": text.replace("\n", "\n\n").encode() + b"\n  \n",
        "blank lines above": b"\n\r\n" + text.encode(),
        "quoted": "".join(
            ",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in text.splitlines()
        ).encode(),
        "spaces": text.replace(",", " , ").encode(),
        "another case": (head.swapcase() + "\n" + body).encode(),
        "lone carriage return": text.replace(",", "\r,").encode(),
        "gzip": gzip.compress(text.encode()),
    }
    for what, data in variants.items():
        assert columns(read_trace(write(tmp_path, data))) == expected, what


def test_gzip_is_known_by_its_bytes_and_leaves_the_name(tmp_path):
    path = write(tmp_path, gzip.compress(AZURE.encode()), "code.csv.gz")
    assert read_trace(path).name == "code"
    assert read_trace(path).source == str(path)


def test_times_with_an_offset_are_utc(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 02:00:00.009931+02:00,2399,6\n"
        "2024-05-10 00:00:01.009930+00:00,76,15\n"
    )
    assert read_trace(write(tmp_path, text)).arrival_s.tolist() == [0.0, 1e-6, 1.0]


def test_failed_requests_of_burstgpt_are_left_out_and_counted(tmp_path):
    for text, kept in ((BURST_OLD, 2), (BURST_NEW, 3)):
        trace = read_trace(write(tmp_path, text))
        assert (len(trace), trace.failed, trace.skipped) == (kept, 1, 0)


def test_sessions_of_burstgpt_are_numbered_by_appearance(tmp_path):
    trace = read_trace(write(tmp_path, BURST_NEW))
    assert trace.arrival_s.tolist() == [0.0, 112.5, 113.5]
    assert trace.session.tolist() == [0, 1, 0]
    assert read_trace(write(tmp_path, BURST_OLD)).session is None


def test_lengths_may_have_arrivals_of_our_own_name(tmp_path):
    text = "output_tokens,arrival_s,input_tokens\n3,1.5,7\n"
    trace = read_trace(write(tmp_path, text))
    assert columns(trace) == [[1.5], [7], [3]]
    assert trace.timed


def test_a_time_that_would_be_lost_is_refused(tmp_path):
    text = "arrival_time,input_tokens,output_tokens\n1.5,7,3\n"
    [problem] = problems(write(tmp_path, text))
    assert "t.csv:1: the columns fit the format 'lengths', but" in problem
    assert "'arrival_s'" in problem
    assert read_trace(write(tmp_path, text), "lengths").timed is False


BAD = {
    "x": "must be a number, got 'x'",
    "": "must be a number, got ''",
    "1_000": "must be a number",
    "0x10": "must be a number",
    "-5": "must be a whole number from 1 to 2,147,483,647, got -5",
    "0": "must be a whole number from 1",
    "1.5": "must be a whole number from 1",
    "nan": "must be a whole number from 1",
    "inf": "must be a whole number from 1",
    "2147483648": "must be a whole number from 1",
}


@pytest.mark.parametrize("bytes_at_once", [1, 40, 2**23])
@pytest.mark.parametrize("value", BAD)
def test_bad_numbers_are_told_with_their_line(tmp_path, monkeypatch, value, bytes_at_once):
    monkeypatch.setattr(csv_formats, "_PIECE_BYTES", bytes_at_once)
    lines = [*VIDUR.splitlines(), "", f"1,{value},4", "2,5,6", "", f"3,7,{value}"]
    path = write(tmp_path, "\r\n".join(lines) + "\r\n")
    found = problems(path)
    assert len(found) == 3
    assert found[0].startswith(f"{path}:5: ")
    assert found[1].startswith(f"{path}:8: ")
    assert all(BAD[value] in problem for problem in found[:2])
    assert found[2].startswith(f"{path}: 2 rows are bad")
    trace = read_trace(path, skip_bad=True)
    assert columns(trace) == [[0.5, 0.75, 2.0], [10, 20, 5], [2, 3, 6]]
    assert trace.skipped == 2


@pytest.mark.parametrize("bytes_at_once", [1, 70, 2**23])
def test_torn_rows_are_told_with_their_line(tmp_path, monkeypatch, bytes_at_once):
    monkeypatch.setattr(csv_formats, "_PIECE_BYTES", bytes_at_once)
    text = AZURE + "2023-11-18 00:00:00,5\n2023-11-18 00:00:01,5,6,7\n\n2023-11-18 00:00:02,5,\n"
    path = write(tmp_path, text)
    found = problems(path)
    assert [p.split(": ")[0] for p in found[:3]] == [f"{path}:{n}" for n in (5, 6, 8)]
    assert "a row must have 3 cells, got 2" in found[0]
    assert "a row must have 3 cells, got 4" in found[1]
    assert "GeneratedTokens: must be a number, got ''" in found[2]
    assert read_trace(path, skip_bad=True).skipped == 3


def test_bad_times_are_told(tmp_path):
    text = AZURE + "yesterday,5,6\n2023-11-18 25:00:00,5,6\n2023-11-18 23:00:00,5,6\n"
    path = write(tmp_path, text)
    found = problems(path)
    assert f"{path}:5: TIMESTAMP: must be a time such as" in found[0]
    assert f"{path}:6: TIMESTAMP" in found[1]
    trace = read_trace(path, skip_bad=True)
    assert trace.skipped == 2
    assert len(trace) == 4


def test_a_bad_first_row_does_not_move_the_origin(tmp_path):
    text = AZURE.replace("4808,10", "-1,10")
    assert read_trace(write(tmp_path, text), skip_bad=True).arrival_s[0] == 0.0


def test_a_row_that_breaks_two_rules_counts_once(tmp_path):
    path = write(tmp_path, VIDUR + "-1,-1,0\n")
    found = problems(path)
    assert len(found) == 4
    assert "1 row is bad" in found[-1]
    assert "--skip-bad" in found[-1]
    assert read_trace(path, skip_bad=True).skipped == 1


def test_the_first_20_problems_are_shown_and_all_are_counted(tmp_path):
    body = "".join(f"{i},{'x' if i % 2 else 5},6\n" for i in range(100))
    path = write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n" + body)
    found = problems(path)
    assert len(found) == 21
    assert [f":{2 + i}: " in p for i, p in zip(range(1, 41, 2), found, strict=False)] == [True] * 20
    assert "and 30 more; 50 rows are bad" in found[-1]
    assert read_trace(path, skip_bad=True).skipped == 50


def test_rows_out_of_order_are_told_or_sorted_and_never_skipped(tmp_path):
    path = write(tmp_path, VIDUR + "0.6,30,4\n0.75,40,5\n0.1,50,6\n")
    for options in ({}, {"skip_bad": True}):
        found = problems(path, **options)
        assert [p.split(": ")[0] for p in found[:2]] == [f"{path}:4", f"{path}:6"]
        assert "2 rows are bad" in found[2]
        assert "--sort" in found[2]
    trace = read_trace(path, sort=True)
    assert columns(trace) == [
        [0.1, 0.5, 0.6, 0.75, 0.75],
        [50, 10, 30, 20, 40],
        [6, 2, 4, 3, 5],
    ]


def test_sorting_keeps_the_order_of_equal_times(tmp_path):
    body = "".join(f"{i % 3},{i + 1},1\n" for i in range(3000))
    path = write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n" + body)
    found = read_trace(path, sort=True).input_tokens.reshape(3, 1000)
    assert (np.diff(found) > 0).all()


def test_clock_times_are_counted_from_the_first_after_sorting(tmp_path):
    head, *rows = AZURE.splitlines(keepends=True)
    path = write(tmp_path, head + "".join(reversed(rows)))
    assert columns(read_trace(path, sort=True)) == list(FILES["azure"][1:])


def test_what_is_no_utf_8_spoils_only_what_we_need(tmp_path):
    model = BURST_OLD.encode().replace(b"GPT-4", b"GPT-\xff")
    assert columns(read_trace(write(tmp_path, model))) == list(FILES["burstgpt"][1:])
    number = BURST_OLD.encode().replace(b",417,", b",4\xff17,")
    found = problems(write(tmp_path, number))
    assert "t.csv:4: Request tokens: must be a number" in found[0]


def test_an_open_quote_spoils_its_row(tmp_path):
    for middle in ('1,"5,6', '1,5",6', '"1,5,6', '1,"5\r,6'):
        path = write(tmp_path, VIDUR + middle + '\n2,7,8\n3,"9",10\n')
        found = problems(path)
        assert f"{path}:4" in found[0], middle
        trace = read_trace(path, skip_bad=True)
        assert trace.input_tokens.tolist()[:3] == [10, 20, 7], middle


def test_a_missing_column_is_named_with_what_may_be_it(tmp_path):
    path = write(tmp_path, AZURE.replace("GeneratedTokens", "GenerateTokens"))
    [problem] = problems(path)
    assert f"{path}:1" in problem
    assert "'azure' needs the column 'GeneratedTokens'" in problem
    assert "'GenerateTokens'" in problem
    found = problems(write(tmp_path, VIDUR), format="burstgpt")
    assert len(found) == 3


def test_a_header_with_a_column_twice_is_refused(tmp_path):
    path = write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens,Arrived_At\n1,2,3,4\n")
    assert "twice" in problems(path)[0]
    other = "arrived_at,num_prefill_tokens,num_decode_tokens,x,x\n1,2,3,4,5\n"
    assert len(read_trace(write(tmp_path, other))) == 1


def test_an_unknown_header_lists_the_formats(tmp_path):
    [problem] = problems(write(tmp_path, "time;prompt;answer\n1;2;3\n"))
    assert "no known trace begins so" in problem
    for name in FORMATS.names():
        assert name in problem


def test_an_unknown_format_is_answered_with_the_nearest(tmp_path):
    [problem] = problems(write(tmp_path, VIDUR), format="azur")
    assert "Did you mean 'azure'?" in problem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"\n \r\n", "the file is empty"),
        (
            b"TIMESTAMP,ContextTokens,GeneratedTokens",
            "the file has no request (0 bad rows, 0 failed)",
        ),
        (b"\xff\xfe" + "a,b\n".encode("utf-16-le"), "it is UTF-16"),
        (b"\x00\x01\x02\n", "UTF-8 text"),
        (b"\xff\xff\xff\n", "UTF-8 text"),
        (gzip.compress(AZURE.encode())[:-12], "the gzip file is damaged"),
        (b"\x1f\x8b\x08\x00 this is no gzip", "the gzip file is damaged"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
    ],
)
def test_files_that_are_no_traces(tmp_path, data, words):
    path = write(tmp_path, data)
    [problem] = problems(path)
    assert problem.startswith(str(path))
    assert words in problem


def test_only_bad_or_failed_rows_leave_no_trace(tmp_path):
    text = BURST_OLD.splitlines(keepends=True)[0] + "1,m,5,0,5,x\n2,m,x,1,5,x\n"
    [problem] = problems(write(tmp_path, text), skip_bad=True)
    assert "(1 bad rows, 1 failed)" in problem


def test_absent_files_and_folders(tmp_path):
    write(tmp_path, VIDUR, "vidur.csv")
    [problem] = problems(tmp_path / "vidr.csv")
    assert "vidur.csv" in problem
    assert "folder" in problems(tmp_path)[0]


def test_many_pieces_equal_one(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    times = np.sort(random.random(500)).tolist()
    tokens = random.integers(1, 9000, (500, 2)).tolist()
    body = "".join(f"{t!r},{a},{b}\n" for t, (a, b) in zip(times, tokens, strict=True))
    path = write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n" + body)
    whole = columns(read_trace(path))
    assert whole[0] == times
    for size in (3, 100, 1000):
        monkeypatch.setattr(csv_formats, "_PIECE_BYTES", size)
        assert columns(read_trace(path)) == whole
