"""Rows that stay open for several results, and channels that are not evenly full."""

from dataclasses import replace

import pytest
from pim_devices import AIM, pim_device

from opbyte.core.errors import ConfigError
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.attention import attention_clocks, head_program
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.compute.pim.products import Counts, product
from opbyte.hw_models.compute.pim.stages import clocks
from opbyte.hw_models.machine import load_machine


def test_a_packed_row_is_opened_once_for_the_results_of_its_tiles():
    """16 of 64 columns make a tile: four lie in a row, and only the first waits for it."""
    d = replace(pim_device(AIM, changes={"pack": True, "organisation.results": 1}), bias=0.0)
    tiles = 9.0
    program, counts = product(d, 1.0, 16.0 * 2 * tiles, 256.0)
    assert counts.rows == 3
    assert counts.columns == tiles * 16
    apart = product(replace(d, pack=False), 1.0, 16.0 * 2 * tiles, 256.0)
    assert apart[1].rows == tiles
    # Six rows more: each is shut while results leave, and opened after the mode switch.
    more = clocks(d, apart[0]) - clocks(d, program)
    assert more == pytest.approx(6 * d.rcd, rel=0.02)


def test_values_of_another_element_do_not_share_a_row():
    d = replace(pim_device(AIM, changes={"pack": True, "organisation.results": 1}), bias=0.0)
    score, context = (
        product(replace(d, channels=1.0, pack=p), 1.0, n, k)[1]
        for p, n, k in ((True, 512.0, 128.0), (False, 128.0, 512.0))
    )
    both = Counts.of(head_program(d, 512.0, 128.0, 1.0), 1.0)
    assert both.rows == score.rows + context.rows == 4 + 8


@pytest.mark.parametrize("tokens", [512, 1024, 2048])
def test_a_sequence_of_neupims_takes_what_its_artifact_estimates(tokens):
    """Its scheduler says 100 clocks for a load of the buffer and 184 for a row in 32 banks.

    Two ranks open rows side by side, four banks in each tFAW: tRP + 3 tFAW + tRCD + 33 tCCD_L.
    """
    unit = UnitView(load_machine("neupims"), "device.pim")
    d = PimDevice.of(unit, "fp16")
    assert d.rp + d.rcd + 33 * d.step == 184
    heads = 8
    chunks, tiles = heads * 128 / 512, tokens / 32
    estimate = chunks * (100 + tiles * 184) + tokens / 512 * heads * (100 + 128 / 32 * 184)
    channel = replace(d, channels=1.0, refresh="none")
    assert attention_clocks(channel, heads, tokens, 128.0, 1.0) == pytest.approx(estimate, rel=0.02)


def test_the_fullest_channel_decides():
    even = pim_device(AIM)
    full = pim_device(AIM, changes={"fullest": 1.5})
    times = [attention_clocks(d, 40.0, 700.0, 128.0, 1.0) for d in (even, full)]
    assert times[1] == pytest.approx(1.5 * times[0], rel=0.01)
    with pytest.raises(ConfigError, match="at least 1"):
        pim_device(AIM, changes={"fullest": 0.5})
