"""How far are training steps from Megatron-LM's, measured on A100? No row was fitted."""

import numpy as np
import pytest

from opbyte.sweeps.validation import training_rows


@pytest.fixture(scope="module")
def rows(reference):
    folder = reference / "reference" / "training"
    if not (folder / training_rows.FILE).is_file():
        pytest.skip("no reference rows")
    return list(training_rows.compared(folder))


def test_mean_error(rows):
    errors = np.array([one.error for one in rows])
    assert len(rows) == 8
    assert np.abs(errors).mean() <= 4.0 < training_rows.BAR
    assert np.abs(errors).max() <= 6.0


def test_recomputation_saves_what_was_measured(rows):
    seconds = {(r.row["model"], r.row["recompute"]): r for r in rows}
    for model in {r.row["model"] for r in rows}:
        full, some = seconds[model, "full"], seconds[model, "seqsel"]
        ours = full.result.seconds / some.result.seconds
        assert ours == pytest.approx(full.measured / some.measured, rel=0.06)


def test_states_fit(rows):
    assert all(one.result.peak_bytes < 80e9 for one in rows)
