"""Mistakes in a machine that computes in memory: place, rule, value, remedy; exit code 2."""

from pathlib import Path

import pytest

import opbyte
from tests.cli.test_commands import opbyte as run
from tests.cli.test_commands import refused

MACHINES = Path(opbyte.__file__).parent / "hw_models/catalog/machines"
WORK = "{kind: decode, model: gpt-3-175b, batch: 8, context: 512}"
LLAMA = "{kind: decode, model: llama-2-7b, batch: 32, context: 512}"
GEMV = "parts.attacc.units.gemv"
TIMING = "attacc.gemv.pim.timing"


def outcome(folder, machine, old, new, work):
    text = (MACHINES / f"{machine}.yaml").read_text()
    assert old in text
    (folder / "m.yaml").write_text(text.replace(old, new, 1))
    (folder / "e.yaml").write_text(f"kind: experiment\nmachine: m.yaml\nworkload: {work}\n")
    return run(folder, "run", "e.yaml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("            banks: 4\n", "            banks: 0\n",
         (f"m.yaml:60:13: {GEMV}.pim.organisation.banks", "at least 1, got 0")),
        ("            ranks: 2\n", "            rancs: 2\n",
         (f"{GEMV}.pim.organisation: no key is called 'rancs'", "Did you mean 'ranks'?")),
        ("cell: 0.44 pJ/bit", "cell: 0.44 ns",
         (f"{GEMV}.pim.energy.cell: an energy per bit is due here, ns is a time",
          "got '0.44 ns'", "Write for example 3.5 pJ/bit")),
        ("            mac: 4\n", "", (f"{GEMV}.pim.timing: the key 'mac' is missing", "Add")),
        ("fp16: &peak", "fp17: &peak",
         (GEMV, "'fp17', which is no number format", "Did you mean 'fp16'?")),
        ("refi: 5070", "refi: 500",
         (f"m.yaml: {TIMING}.refi: must be longer than a refresh", "got 500", "raise it")),
    ],
)  # fmt: skip
def test_a_wrong_block_is_one_clear_error(tmp_path, old, new, words):
    text = refused(outcome(tmp_path, "dgx-attacc-bank", old, new, WORK), *words)
    assert text.count("error: ") == 1


def test_a_flit_that_carries_more_than_its_size_is_refused(tmp_path):
    done = outcome(tmp_path, "cent-32", "payload: 192 B", "payload: 512 B", LLAMA)
    refused(done, "m.yaml:", "links.cxl.flit: a flit of 256 B can not carry 512 B. lower `payload`")


def test_a_dtype_without_arithmetic_in_the_banks_is_refused(tmp_path):
    work = LLAMA.replace("}", ", precision: {weight: fp8, activation: fp8, kv: fp8}}")
    done = outcome(tmp_path, "cent-32", "count: 32", "count: 32", work)
    refused(done, "unit 'device.channel.mac' has no arithmetic for fp8. It has: bf16", "precision")
