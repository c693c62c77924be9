"""Published numbers of PIM machines: which agree, what they rest on, what would close the rest."""

import functools

import pytest

from opbyte.sweeps.validation import Verdict, validate_source


@functools.cache
def verdicts(source: str) -> dict[str, Verdict]:
    return {v.id: v for v in validate_source(source)}


def test_ratios_of_neupims_rest_on_what_its_artifact_says() -> None:
    rows = verdicts("neupims")
    for name in ("npupim.vs.npu", "thr.npu"):
        assert rows[name].evidence == "assumed", name
        assert abs(rows[name].error) < 0.10, name
        # No timing of the units is assumed: their rows open as the artifact's do.
        assert "pim.timing.faw" not in rows[name].reason
    used = rows["util.npupim"]
    assert used.low < 28.0 < used.high  # type: ignore[operator]
    blocked = rows["thr.npupim"].closing[0]
    assert (blocked.input, blocked.parameter) == ("blocked", "baseline.device.pim.launch.hardware")
    assert blocked.value.endswith("us")


def test_refresh_is_the_other_end_of_every_time_of_ianus() -> None:
    rows = verdicts("ianus")
    times = [v for v in rows.values() if v.unit == "ms"]
    assert len(times) == 10
    for verdict in times:
        assert verdict.low == pytest.approx(verdict.simulated, rel=1e-3), verdict.id
        assert verdict.high > 1.03 * verdict.simulated, verdict.id  # type: ignore[operator]
    # The bars of figure 10 with it: one fits better (215), the other not at all (890).
    assert rows["fc2.ianus"].high == pytest.approx(206, abs=2)
    assert rows["fc2.npumem"].high == pytest.approx(1072, abs=5)
    assert "alternatives.refresh" in rows["fc2.ianus"].reason


def test_a_host_that_streams_gains_what_was_measured_and_a_gpu_names_its_rate() -> None:
    rows = verdicts("hbm_pim")
    assert rows["hbmpim.gemv.u280"].evidence == "assumed"
    assert abs(rows["hbmpim.gemv.u280"].error) < 0.10
    for name in ("hbmpim.gemv", "hbmpim.gemv.isca"):
        (gap,) = rows[name].closing
        assert gap.value in ("29.3 %", "23.2 %")


def test_two_aim_chips_against_four_channels_of_a_xeon() -> None:
    row = verdicts("gddr6_aim")["aim.gpt3"]
    assert row.target == "simulated"
    assert row.low < 16.64 < row.high  # type: ignore[operator]
    assert row.closing[0].value == "62.4 %"
    assert verdicts("gddr6_aim")["aim.gemv"].simulated < 16
