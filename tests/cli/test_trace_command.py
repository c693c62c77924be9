"""`opbyte trace`: answers, files, exit codes, and the page that shows it."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from opbyte.sweeps.cli import main
from opbyte.workloads.traces import read_trace

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(
    f"{i}.5,{10 + i},{1 + i}\n" for i in range(20)
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.csv").write_text(VIDUR)
    return tmp_path


def opbyte(capsys, *arguments, code=0):
    assert main(["trace", *arguments]) == code
    done = capsys.readouterr()
    assert "Traceback" not in done.err
    return done


def test_convert(capsys):
    done = opbyte(capsys, "convert", "v.csv", "v.jsonl")
    assert "20 requests: v.jsonl" in done.out
    trace = read_trace("v.jsonl", "mooncake")
    assert trace.arrival_s.tolist() == [i + 0.5 for i in range(20)]
    opbyte(capsys, "convert", "v.jsonl", "again.jsonl.gz", "--quiet")
    with gzip.open("again.jsonl.gz") as packed, Path("v.jsonl").open("rb") as plain:
        assert packed.read() == plain.read()


def test_convert_a_definition(capsys, folder):
    (folder / "d.yaml").write_text(
        "kind: trace\nrequests: 7\narrivals: {kind: closed_loop, concurrency: 3}\n"
        "lengths: {trace: v.csv}\n"
    )
    done = opbyte(capsys, "convert", "d.yaml", "d.jsonl")
    assert "7 requests without arrivals" in done.out
    assert "does not hold the closed loop of 3 clients" in done.err
    assert not read_trace("d.jsonl").timed


def test_describe(capsys):
    found = json.loads(opbyte(capsys, "describe", "v.csv", "--json").out)
    assert found["requests"] == 20
    assert found["rate_requests_per_s"] == 1.0
    assert found["gap_cv"] == 0.0
    assert found["concurrency"] is None
    shown = opbyte(capsys, "describe", "sample-chat").out
    for word in ("300", "prefix_reuse_bound", "gap_cv", "input_tokens", "p99", "yes"):
        assert word in shown
    assert opbyte(capsys, "describe", "v.csv", "--quiet").out == ""


def test_what_is_not_defined_is_null_in_json(capsys, folder):
    (folder / "l.csv").write_text("input_tokens,output_tokens\n5,6\n")
    found = json.loads(opbyte(capsys, "describe", "l.csv", "--json").out)
    assert found["timed"] is False
    assert found["rate_requests_per_s"] is None


def test_sample(capsys):
    arguments = ("sample", "v.csv", "s.jsonl", "--requests", "5", "--window", "4", "15")
    found = json.loads(opbyte(capsys, *arguments, "--rate", "2", "--seed", "3", "--json").out)
    assert found == {
        "out": "s.jsonl",
        "requests": 5,
        "skipped_rows": 0,
        "failed_requests": 0,
        "timed": True,
    }
    trace = read_trace("s.jsonl")
    assert trace.rate == pytest.approx(2.0)
    assert set(trace.input_tokens.tolist()) <= set(range(14, 25))
    opbyte(capsys, *arguments, "--rate", "2", "--seed", "3", "--quiet")
    assert read_trace("s.jsonl").arrival_s.tolist() == trace.arrival_s.tolist()


def test_bad_rows(capsys, folder):
    (folder / "bad.csv").write_text(VIDUR + "30,x,5\n31,5,-1\n")
    done = opbyte(capsys, "convert", "bad.csv", "o.jsonl", code=2)
    assert "error: bad.csv:22: num_prefill_tokens: must be a number, got 'x'" in done.err
    assert "error: bad.csv:23: output_tokens: must be a whole number" in done.err
    assert "2 rows are bad. --skip-bad" in done.err
    assert not (folder / "o.jsonl").exists()
    done = opbyte(capsys, "convert", "bad.csv", "o.jsonl", "--skip-bad")
    assert "2 bad rows left out" in done.err
    found = json.loads(opbyte(capsys, "describe", "bad.csv", "--skip-bad", "--json").out)
    assert (found["requests"], found["skipped_rows"]) == (20, 2)


def test_order(capsys, folder):
    (folder / "turned.csv").write_text(VIDUR + "0,5,5\n")
    assert "--sort" in opbyte(capsys, "describe", "turned.csv", code=2).err
    found = json.loads(opbyte(capsys, "describe", "turned.csv", "--sort", "--json").out)
    assert found["requests"] == 21


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["describe", "w.csv"], "Did you mean 'v.csv'?"),
        (["describe", "sample-chta"], "Did you mean 'sample-chat'?"),
        (["describe", "v.csv", "--format", "vidor"], "Did you mean 'vidur'?"),
        (["describe", "v.csv", "--format", "burstgpt"], "needs the column 'Request tokens'"),
        (["sample", "v.csv", "o.jsonl"], "--requests"),
        (["sample", "v.csv", "o.jsonl", "--requests", "21"], "1 to 20 requests, got 21"),
        (["sample", "v.csv", "o.jsonl", "--requests", "2", "--window", "90", "99"], "no request"),
        (["sample", "v.csv", "o.jsonl", "--requests", "2", "--rate", "-1"], "above 0"),
        (["convert", "v.csv", "absent/o.jsonl"], "absent/o.jsonl"),
        (["convert", "v.csv"], "OUT"),
        (["explode"], "explode"),
    ],
)
def test_bad_input(capsys, folder, arguments, words):
    done = opbyte(capsys, *arguments, code=2)
    assert words in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["v.csv"]


def test_the_page_works_as_shown(capsys, folder, root):
    ran = 0
    for language, text in BLOCK.findall((root / "docs" / "traces.md").read_text()):
        named = re.match(r"# (\S+\.yaml)\n", text)
        if named:
            (folder / named[1]).write_text(text)
        elif language == "python":
            exec(compile(text, "traces.md", "exec"), {})  # noqa: S102  our own page
            ran += 1
        elif language == "console":
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                assert words[:2] == ["opbyte", "trace"]
                opbyte(capsys, *words[2:])
                ran += 1
    assert ran >= 4
