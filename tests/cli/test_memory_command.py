"""`opbyte memory`: answers, curve, errors."""

import json
import os
import signal

import pytest

from opbyte.sweeps.cli import main


def test_answer_as_json(capsys):
    assert main(["memory", "hbm2-2000", "--pattern", "random", "--requests", "3000", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["memory"] == "hbm2-2000"
    assert 0 < answer["efficiency"] < 1
    assert answer["row_hits"] + answer["row_misses"] + answer["row_conflicts"] >= 2900
    assert answer["joules"] > 0
    assert answer["commands"]["RD"] == answer["reads_served"]


def test_curve_is_drawn(tmp_path, capsys):
    arguments = ["memory", "ddr4-3200", "--requests", "1000", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["joules"] is None
    loads = [point["offered_bytes_per_s"] for point in answer["curve"]]
    assert loads == sorted(loads)
    assert {p.name for p in tmp_path.iterdir()} == {
        "load_latency.png",
        "load_latency.pdf",
        "load_latency.csv",
    }


def test_a_table_for_people(capsys):
    assert main(["memory", "lpddr5-6400", "--requests", "500", "--reads", "67"]) == 0
    text = capsys.readouterr().out
    assert "bandwidth_bytes_per_s" in text
    assert "not covered" in text


def test_sizes_clocks_and_the_end(capsys):
    arguments = ["memory", "ddr4-3200", "--pattern", "random", "--requests", "900", "--json"]
    more = ["--set", "rank=2", "--set", "nRCD=30", "--drain", "--seed", "7"]
    assert (
        main([*arguments, *more, "--mapping", "column:2, rank, bankgroup, bank, column, row"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["drained"] is True
    assert answer["reads_served"] == 900


def test_memories_are_listed(capsys):
    assert main(["list", "memories", "--json"]) == 0
    names = {entry["name"] for entry in json.loads(capsys.readouterr().out)["memories"]}
    assert {"ddr5-4800", "gddr6-14000", "hbm2e-3600", "hbm3e-9200", "hbm4-8000"} <= names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hbm3-640"], "hbm3-6400"),
        (["ddr4-3200", "--pattern", "sequ"], "seq"),
        (["ddr4-3200", "--refresh", "PerBank"], "not covered"),
        (["ddr5-4800", "--refresh", "SameBank"], "same-bank refresh"),
        (["ddr4-3200", "--set", "rank"], "setting must be path=value"),
        (["ddr4-3200", "--set", "rank=3"], "power of two"),
    ],
)
def test_bad_input(arguments, words, capsys):
    assert main(["memory", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "must be at most 100,000,000,000: all are simulated, some millions a second"),
        (["--sample"], "must be at most 9,007,199,254,740,992: a count holds no more"),
    ],
)
def test_requests_that_would_take_days_are_refused(capsys, more, words):
    count = 10**16 if more else 10**14
    assert main(["memory", "hbm3-6400", "--requests", str(count), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: hbm3-6400: requests: ")
    assert error.count("error:") == 1
    assert f"{words}, got {count:,}. Send fewer" in error


def test_many_requests_are_taken_where_they_settle(capsys):
    arguments = ["memory", "hbm3-6400", "--requests", str(10**14), "--sample", "--json"]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["requests"] == 10**14
    assert answer["simulated"] < 10**7


def test_a_bar_shows_how_many_requests_were_simulated(capsys, monkeypatch):
    from opbyte.sweeps.console import RunProgress

    told = []
    monkeypatch.setattr(RunProgress, "start", lambda _, total, stored: told.append(total - stored))
    monkeypatch.setattr(RunProgress, "advance", lambda _, requests: told.append(requests))
    count = (1 << 20) + 5
    assert main(["memory", "ddr4-3200", "--requests", str(count), "--json"]) == 0
    assert told == [count, 1 << 20, 5]


def test_ctrl_c_ends_a_stream(capsys, monkeypatch):
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    def pressed(*_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            # As the dispatcher of a compiled kernel may answer it.
            raise SystemError("returned a result with an exception set") from None

    monkeypatch.setattr(Replay, "take", pressed)
    assert main(["memory", "ddr4-3200", "--requests", "9"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
