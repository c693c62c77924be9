"""Compute in memory: the closed forms against commands walked one by one, and their laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pim_devices import AIM, ATTACC, pim_device

from opbyte.hw_models.compute.pim.attention import (
    attention_clocks,
    head_program,
    pair_program,
)
from opbyte.hw_models.compute.pim.products import product
from opbyte.hw_models.compute.pim.stages import Stage, clocks, program_of
from opbyte.hw_models.compute.pim.walk import Walker, walked_clocks

DEVICES = {
    "bank": pim_device(ATTACC),
    "bank_group": pim_device(ATTACC, "bank_group"),
    "buffer": pim_device(ATTACC, "buffer"),
    "aim": pim_device(AIM),
    "aim_packed": pim_device(AIM, changes={"pack": True, "organisation.results": 1}),
    "aim_packed_three": pim_device(AIM, changes={"pack": True, "organisation.results": 3}),
    "aim_reuse": pim_device(AIM, changes={"reuse": "row", "organisation.buffer": "8 KiB"}),
}
each = pytest.mark.parametrize("name", DEVICES)
clock = st.integers(1, 40)


@st.composite
def timings(draw):
    """A device with all banks at once and any timing."""
    names = ("rcd", "rp", "rtp", "ras", "rc", "step", "load", "read", "mode")
    numbers = {name: float(draw(clock)) for name in names}
    overlap, late = draw(st.booleans()), draw(st.booleans())
    return replace(DEVICES["bank"], **numbers, overlap=overlap, late=late, refresh="none")


@st.composite
def programs(draw, device):
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        stages = [
            Stage(
                float(draw(st.integers(0, 70))),
                float(draw(st.integers(1, 32))),
                {
                    k: float(draw(st.integers(0, 20)))
                    for k in ("load", "read")
                    if draw(st.booleans())
                },
            )
            for _ in range(draw(st.integers(1, 3)))
        ]
        if stages[0].columns and draw(st.booleans()):
            hit = float(draw(st.integers(1, 20)))
            stages.insert(1, Stage(hit, hit, stages[0].moves, hit=True))
        parts.append((float(draw(st.integers(0, 4))), stages))
    return program_of(device, parts)


@settings(deadline=None)
@given(st.data())
def test_stages_once_take_what_their_commands_take(data):
    """Whatever the timing: activation long before, rows of one column, precharge that waits."""
    device = data.draw(timings())
    program = [(1.0, stages) for repeats, stages in data.draw(programs(device)) if repeats]
    assert clocks(device, program) == walked_clocks(device, program)


@pytest.mark.parametrize(("m", "n", "k"), [(4, 1, 113), (1, 257, 2560), (9, 300, 2000)])
def test_loads_may_hide_banks_for_several_chunks_only(m, n, k):
    """The slower of loads and banks shows after many repeats, where they are nearly equal."""
    device = replace(DEVICES["bank"], refresh="none")
    program, _ = product(device, float(m), float(n), float(k))
    assert clocks(device, program) == Walker(device).walk(program)


def test_short_stages_of_units_that_open_rows_ahead_come_out_too_short():
    """A known limit: the closed form does not know which banks the stages before left open."""
    device = replace(DEVICES["bank_group"], refresh="none")
    program, _ = product(device, 4.0, 1.0, 513.0)
    walked = Walker(device).walk(program)
    assert 0.97 * walked < clocks(device, program) < walked


@settings(deadline=None, max_examples=60)
@each
@given(m=st.integers(1, 4), n=st.integers(1, 5000), k=st.integers(1, 3000))
def test_a_product_takes_what_its_commands_take(name, m, n, k):
    device = replace(DEVICES[name], refresh="none")
    program, counts = product(device, float(m), float(n), float(k))
    walker = Walker(device)
    assert clocks(device, program) == walker.walk(program)
    issued = [kind for _, kind in walker.log]
    assert issued.count("mac") == counts.columns
    assert issued.count("activate") == counts.rows
    assert all(issued.count(kind) == number for kind, number in counts.moves.items())


@settings(deadline=None, max_examples=40)
@each
@given(
    tokens=st.integers(1, 3000),
    width=st.sampled_from([64, 80, 128, 256]),
    queries=st.integers(1, 8),
)
def test_attention_of_one_and_two_heads_takes_what_its_commands_take(name, tokens, width, queries):
    device = replace(DEVICES[name], refresh="none")
    sizes = (float(tokens), float(width), float(queries))
    one = walked_clocks(device, head_program(device, *sizes))
    assert attention_clocks(device, 1.0, *sizes) == one
    if device.interleave:
        two = walked_clocks(device, pair_program(device, *sizes))
        assert attention_clocks(device, 32.0, *sizes) == two


@pytest.mark.parametrize("tokens", [512, 1000, 4096])
@pytest.mark.parametrize("level", ["bank", "bank_group", "buffer"])
def test_two_heads_that_take_turns_hide_moves_and_softmax(level, tokens):
    device = replace(DEVICES[level], refresh="none")
    one, two = (attention_clocks(device, h, float(tokens), 128.0, 1.0) for h in (16.0, 32.0))
    assert two < 2 * one


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(2000, 12000), level=st.sampled_from(["bank", "bank_group", "buffer"]))
def test_refresh_costs_what_it_costs_between_commands(tokens, level):
    """The closed form counts whole refreshes; where one falls decides up to a row switch."""
    device = DEVICES[level]
    program = head_program(device, float(tokens), 128.0, 1.0)
    form, walked = clocks(device, program), walked_clocks(device, program)
    due = math.ceil(walked / device.refi)
    assert abs(form - walked) <= due * 2 * (device.rtp + device.rp + device.rcd) + device.rfc * (
        abs(walked % device.refi) < 600 or abs(form % device.refi) < 600
    )


@settings(deadline=None, max_examples=50)
@each
@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 16))
def test_more_never_takes_less(name, n, k, m):
    device = replace(DEVICES[name], refresh="none")

    def took(m, n, k):
        return clocks(device, product(device, float(m), float(n), float(k))[0])

    assert took(m, n, k) <= took(m, n + 100, k)
    assert took(m, n, k) <= took(m + 1, n, k)
    assert took(m, n, k) <= took(m, n, k + 300)


@each
def test_points_cost_what_they_cost_alone(name):
    device = DEVICES[name]
    n, k = np.array([1.0, 129.0, 4096.0, 5000.0]), np.array([77.0, 1024.0, 4096.0, 1025.0])
    together = clocks(device, product(device, 1.0, n, k)[0])
    alone = [clocks(device, product(device, 1.0, a, b)[0]) for a, b in zip(n, k, strict=True)]
    np.testing.assert_array_equal(together, alone)
    heads, tokens = np.array([1.0, 17.0, 40.0, 300.0]), np.array([1.0, 700.0, 4096.0, 33.0])
    together = attention_clocks(device, heads, tokens, 128.0, 1.0)
    alone = [attention_clocks(device, a, b, 128.0, 1.0) for a, b in zip(heads, tokens, strict=True)]
    np.testing.assert_array_equal(together, alone)
