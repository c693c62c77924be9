"""AttAcc's kernels: clocks of attention at the banks against its cycle-accurate rows."""

import csv

import numpy as np
import pytest
from pim_devices import ATTACC, pim_device

from opbyte.hw_models.compute.pim.attention import attention_clocks, head_counts


@pytest.fixture(scope="module")
def rows(reference):
    path = reference / "reference" / "pim" / "attacc_kernel_reference.csv"
    if not path.is_file():
        pytest.skip(f"no reference rows: {path} is not a file")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    return rows


def device(row):
    changes = {"power_limited": row["power_constraint"] == "True"}
    return pim_device(ATTACC, {"bg": "bank_group"}.get(row["pim_type"], row["pim_type"]),
                      changes=changes)  # fmt: skip


def sizes(row):
    return tuple(float(row[x]) for x in ("nhead_per_hbm", "L", "dhead"))


def errors(rows):
    return {
        (r["pim_type"], *sizes(r), r["power_constraint"]): attention_clocks(
            device(r), *sizes(r), 1.0
        )
        / float(r["cycles"])
        - 1.0
        for r in rows
    }


def test_clocks_are_within_a_percent_and_a_half_on_average(rows):
    found = np.abs(list(errors(rows).values()))
    assert found.mean() < 0.0085
    # Two heads of 256 tokens alone are further off: there that tool takes 42 clocks less, the
    # time from precharge to column, for reasons that its trace does not show.
    found = {k: e for k, e in errors(rows).items() if k[1:3] != (32.0, 256.0)}
    assert len(found) == 38
    assert max(map(abs, found.values())) < 0.012


def test_two_short_heads_are_the_known_exception(rows):
    odd = [e for k, e in errors(rows).items() if k[1:3] == (32.0, 256.0)]
    assert sorted(odd) == pytest.approx([0.0472, 0.0655], abs=1e-3)


def test_commands_are_counted_alike(rows):
    for row in rows:
        heads, tokens, width = sizes(row)
        counts = head_counts(device(row), heads, tokens, width, 1.0)
        # Where heads take turns that tool opens the first row with one MAC more in each channel.
        extra = 16 if heads > 16 else 0
        assert counts.columns * heads + extra == int(row["n_mac"]), row
        named = {"load": "n_wrgb", "read": "n_mvsb", "refill": "n_mvgb", "softmax": "n_softmax"}
        for ours, theirs in named.items():
            assert counts.moves[ours] * heads == int(row[theirs]), (ours, row)
