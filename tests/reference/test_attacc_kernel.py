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


def device(row, artifact="attacc"):
    changes = {"power_limited": row["power_constraint"] == "True", "artifact": artifact}
    return pim_device(ATTACC, {"bg": "bank_group"}.get(row["pim_type"], row["pim_type"]),
                      changes=changes)  # fmt: skip


def sizes(row):
    return tuple(float(row[x]) for x in ("nhead_per_hbm", "L", "dhead"))


def errors(rows, artifact="attacc"):
    """Return the relative difference of each row by level, heads, tokens, width and limit."""
    return {
        (r["pim_type"], *sizes(r), r["power_constraint"]): attention_clocks(
            device(r, artifact), *sizes(r), 1.0
        )
        / float(r["cycles"])
        - 1.0
        for r in rows
    }


def test_clocks_are_within_a_percent_and_a_half(rows):
    found = np.abs(list(errors(rows).values()))
    assert found.mean() < 0.004
    assert found.max() < 0.0135


def test_without_its_defects_only_two_short_heads_differ_by_more_than_a_percent(rows):
    """There the values of the second head fill a row of their own, which that tool never opens."""
    found = errors(rows, "none")
    short = {k: e for k, e in found.items() if k[1:3] == (32.0, 256.0)}
    assert sorted(short.values()) == pytest.approx([0.0472, 0.0655], abs=1e-3)
    assert max(abs(e) for k, e in found.items() if k not in short) < 0.01
    assert np.abs(list(found.values())).mean() < 0.007


@pytest.mark.parametrize("limited", [True, False])
def test_the_row_that_is_still_open_is_a_row_switch_less(limited):
    """The second head's context begins a step after the first's: moves and loads are done."""
    shared, own = (
        attention_clocks(pim_device(ATTACC, changes={"power_limited": limited, "artifact": x}),
                         32.0, 256.0, 128.0, 1.0)
        for x in ("attacc", "none")
    )  # fmt: skip
    step = 6 if limited else 4
    assert own - shared == 8 + 19 + 19 - step


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
