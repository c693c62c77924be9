"""Compactions that are really killed, over and over, while rows come in between."""

import random
import signal
import subprocess
import sys
import time

import pytest
from stored import add_part, check_rows

from opbyte.sweeps.results import open_results

#: Says when it begins; groups of two parts, so that there are many moments to die at.
SCRIPT = """
import sys
from opbyte.sweeps.compact import compact
from opbyte.sweeps.results import open_results
open_results(sys.argv[1]).frame()
print("ready", flush=True)
compact(sys.argv[1], 8)
"""


def killed(folder, after_s):
    """Begin a compaction and kill it; return whether it had not ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(after_s)
    process.kill()
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.proof)])
def test_kills_in_the_middle_neither_lose_nor_double_a_point(tmp_path, kills):
    rng = random.Random(kills)
    points = 0
    hits = 0
    for _ in range(kills):
        for _ in range(30):
            add_part(tmp_path, range(points, points + 3))
            points += 3
        began = {p.name for p in open_results(tmp_path).parts}
        hits += killed(tmp_path, rng.uniform(0.0, 0.08))
        results = open_results(tmp_path)
        check_rows(results.frame(), range(points))
        asked = results.query("select count(*) n, count(distinct point) d from points")
        assert asked.to_numpy().tolist() == [[points, points]]
        assert {p.name for p in results.parts} <= began | {
            p.name for p in (tmp_path / "points").glob("part-*-m*")
        }
    assert hits >= kills // 2
