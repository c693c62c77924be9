"""Readers of trace files keep their contract, and one of a user's own works like the others."""

import numpy as np
import pytest

from opbyte.core.errors import SimulationError
from opbyte.spi import FORMATS, Columns, check_trace_format
from opbyte.workloads.traces import read_trace

SAMPLES = {
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
    b"2023-11-16 18:17:03.97,4808,10\n2023-11-16 18:17:04.03,3180,8\n",
    "burstgpt": b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n",
    "vidur": b"arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,3\n1.5,20,4\n",
    "lengths": b"input_tokens,output_tokens\n10,3\n20,4\n",
    "mooncake": b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    b'{"timestamp": 7, "input_length": 100, "output_length": 9, "hash_ids": [2]}\n',
    "bailian": b'{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, '
    b'"output_length": 5, "type": "text", "turn": 1, "hash_ids": [0, 1]}\n'
    b'{"chat_id": 2, "parent_chat_id": 1, "timestamp": 1.5, "input_length": 10, '
    b'"output_length": 5, "type": "text", "turn": 2, "hash_ids": [0]}\n',
}


@pytest.mark.parametrize("name", FORMATS.names())
def test_formats_that_ship(name):
    check_trace_format(FORMATS.lookup(name), SAMPLES[name])


class Words:
    """Requests as lines of words: `arrival input output`."""

    about = "a log of our own"
    needs = ("at", "in", "out")

    def matches(self, head):
        """Return whether the first line names the columns."""
        return head.line.split() == list(self.needs)

    def read(self, file, head, bad, block_tokens):
        """Return the rows."""
        del block_tokens
        rows = []
        for number, line in enumerate(file, 1):
            if number <= head.number or not line.strip():
                continue
            try:
                at, given, produced = map(float, line.split())
            except ValueError:
                bad.add(number, "", "must be three numbers", line)
                continue
            rows.append((number, at, given, produced))
        lines, *columns = np.array(rows).T
        return Columns(lines.astype(int), *columns)


def test_a_format_of_ones_own(tmp_path):
    check_trace_format(Words(), b"at in out\n0.5 10 3\n1.5 20 4\n")
    FORMATS.register("test-words")(Words())
    try:
        (tmp_path / "t.txt").write_text("at in out\n0.5 10 3\n1.5 20 4\n")
        trace = read_trace(tmp_path / "t.txt")
    finally:
        FORMATS._entries.pop("test-words")
    assert trace.arrival_s.tolist() == [0.5, 1.5]
    assert trace.output_tokens.tolist() == [3, 4]


class Greedy(Words):
    """Takes any file for its own."""

    def matches(self, head):
        """Return that it is."""
        del head
        return True


class Silent(Words):
    """Says nothing of rows that it can not read."""

    def read(self, file, head, bad, block_tokens):
        """Return the rows."""
        found = super().read(file, head, bad, block_tokens)
        bad.lines.clear()
        return found


@pytest.mark.parametrize(
    ("cls", "rule"), [(Greedy, "knows no other files"), (Silent, "is told by its line")]
)
def test_broken_contracts_are_named(cls, rule):
    with pytest.raises(SimulationError, match=rule):
        check_trace_format(cls(), b"at in out\n0.5 10 3\n1.5 20 4\n")
