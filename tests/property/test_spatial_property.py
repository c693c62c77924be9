"""Laws of attention on spatial arrays: traffic over memory, bounds, more of anything helps."""

import dataclasses
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opbyte.core.errors import CapacityError
from opbyte.core.mapping_file import Einsums
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.spatial.arrays import ARRAY, LANES, Shape
from opbyte.hw_models.compute.spatial.bounds import lower_bound, tiled_traffic
from opbyte.hw_models.compute.spatial.unit import arrays_of, plan
from opbyte.hw_models.machine import load_machine

FUSEMAX = arrays_of(UnitView(load_machine("fusemax-cloud"), "chip.pe"))
widths = st.sampled_from([32, 64, 128, 256])
cascades = st.sampled_from(["three-pass", "two-pass", "one-pass"])
MIB = 2**20


@given(widths, st.floats(0.0, 1.0), st.integers(18, 22))
def test_from_d_squared_up_traffic_times_memory_is_constant(width, at, log_tokens):
    """Up to where a 16th of a head fits, beyond which inputs and result alone are felt."""
    tokens = 2**log_tokens
    memory = width**2 * (tokens / (16 * width)) ** at
    scaled = tiled_traffic(tokens, width, memory) * memory / (tokens * width) ** 2
    assert 4.0 <= scaled <= 4.0 * 1.25


@given(widths, st.floats(0.0, 1.0))
def test_below_d_squared_the_other_law_holds(width, at):
    tokens = 2**20
    memory = 64.0 * (width**2 / 128.0) ** at if width > 32 else 64.0 * 8.0**at
    scaled = tiled_traffic(tokens, width, memory) * math.sqrt(memory) / (tokens**2 * width)
    assert 5.5 * 0.75 <= scaled <= 5.5 * 1.25
    # It is the other law: in the first one this would grow without end.
    assert tiled_traffic(tokens, width, memory) > 1.5 * tiled_traffic(tokens, width, width**2)


@given(widths, st.floats(8.0, 1e9), st.integers(10, 22))
def test_nothing_beats_the_bound(width, memory, log_tokens):
    tokens = 2**log_tokens
    moved = tiled_traffic(tokens, width, memory)
    assert moved >= 4.0 * tokens * width
    if moved > 4.0 * tokens * width:
        assert moved >= lower_bound(tokens, width, memory)


@pytest.mark.parametrize("sizes", [(0, 64, 1e3), (1024, -1, 1e3), (1024, 64, 0), (1024, 64, 2)])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ValueError, match="must"):
        tiled_traffic(*sizes)


shapes = st.builds(
    Shape, st.integers(1, 64).map(float), st.integers(1, 2**17).map(float),
    st.integers(1, 2**17).map(float), widths.map(float), widths.map(float),
    st.floats(0.5, 1.0),
)  # fmt: skip


@given(cascades, shapes, st.floats(1.0, 256.0), st.sampled_from(["overlapped", "serial"]))
@example("three-pass", Shape(1.0, 1024.0, 2049.0, 128.0, 128.0, 0.5), 1.25, "overlapped")
def test_plans_move_inputs_and_result_at_least_and_keep_both_arrays_busy_no_longer_than_they_run(
    name, shape, mib, schedule
):
    arrays = dataclasses.replace(FUSEMAX, buffer=mib * MIB)
    try:
        one = plan(Einsums(cascade=name, schedule=schedule), arrays, shape, "buffer")
    except CapacityError:
        return
    for tensor, least in shape.compulsory.items():
        assert one.traffic[tensor] >= least * (1 - 1e-12)
    assert one.seconds >= max(one.memory, one.taken(ARRAY), one.taken(LANES)) * (1 - 1e-12)
    # All of it where the tiles of inputs and results fill the buffer.
    assert 0.0 <= one.spilled <= 1.0
    assert one.spilled > 0.0 or one.footprint <= one.capacity
    for array in (ARRAY, LANES):
        assert 0.0 < one.utilisation(array) <= 1.0 + 1e-9
    products = shape.groups * shape.queries * shape.keys * shape.share
    products *= shape.width + shape.value_width
    assert one.seconds * arrays.rows * arrays.columns * arrays.clock >= products * (1 - 1e-9)


@given(shapes, st.floats(1.0, 64.0), st.floats(1.0, 8.0), st.sampled_from(["divide", "uneven"]))
def test_one_pass_moves_no_more_with_more_buffer(shape, mib, more, tiles):
    moved = []
    for size in (mib, mib * more):
        arrays = dataclasses.replace(FUSEMAX, buffer=size * MIB)
        moved.append(plan(Einsums(cascade="one-pass", tiles=tiles), arrays, shape, "b").bytes)
    assert moved[1] <= moved[0] * (1 + 1e-12)


@given(shapes, st.sampled_from(["bandwidth", "clock", "lane_rate"]), st.floats(1.0, 8.0))
def test_one_pass_is_no_slower_with_a_faster_part(shape, part, more):
    one = Einsums(cascade="one-pass")
    faster = dataclasses.replace(FUSEMAX, **{part: getattr(FUSEMAX, part) * more})
    if part == "clock":
        faster = dataclasses.replace(faster, lane_rate=FUSEMAX.lane_rate * more)
    before, after = (plan(one, a, shape, "b").seconds for a in (FUSEMAX, faster))
    assert after <= before * (1 + 1e-12)
