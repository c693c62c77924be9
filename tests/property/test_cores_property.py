"""Laws of the cores: order of fidelities, designs at once, more and faster parts, at any values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.hw_models.compute.lut import Core, product_cycles, structure
from opbyte.hw_models.cost.primitives import primitives
from opbyte.sim.simulate import evaluate

#: Machine and mapping -> its part, and parameters that are raised and lowered.
_SPATIAL = (
    "dram.phy.bandwidth",
    "buffer.capacity",
    "pe.clock",
    "pe.vector",
    "pe.spatial.lanes.exp",
)
_SERIAL = ("dram.phy.bandwidth", "wbuf.capacity", "ibuf.capacity", "array.clock", "array.vector")
_LUT = ("lpddr.phy.bandwidth", "core.clock", "core.lut.tables", "core.lut.gates.mux2.delay")
DESIGNS = {
    ("flat-cloud", "default"): _SPATIAL, ("flat-cloud", "unfused"): _SPATIAL,
    ("fusemax-cloud", "default"): _SPATIAL, ("fusemax-cloud", "serial"): _SPATIAL,
    ("fusemax-cascade-cloud", "default"): _SPATIAL, ("bitmod", "default"): _SERIAL,
    ("bitmod-fp16", "default"): _SERIAL, ("lut-generator", "default"): _LUT,
}  # fmt: skip
designs = st.sampled_from(sorted(DESIGNS))
#: Integers are raised, all else goes up or down.
factors = st.lists(st.floats(0.4, 2.5), min_size=5, max_size=5)
tokens = st.integers(1, 700)


def changed(design, factors):
    machine = ob.load_machine(design[0])
    values = {}
    for name, factor in zip(DESIGNS[design], factors, strict=False):
        path = f"chip.{name}"
        now = machine.values[path]
        whole = path.endswith(("tables", "exp"))
        values[path] = float(np.ceil(now * max(1.0, factor))) if whole else float(now * factor)
    return machine, values


def work(design, tokens, *, decode):
    name = "bitnet-b1.58-0.7b" if design[0].startswith("lut") else "qwen2.5-0.5b"
    model = ob.load_model(name)
    if name.startswith("qwen"):
        model = model.with_precision(weight="fp16", activation="fp16", kv="fp16")
    if decode:
        return ob.Decode(model, batch=3, context=tokens)
    return ob.Prefill(model, 2, tokens)


@settings(max_examples=40)
@given(designs, factors, tokens, st.booleans())
def test_no_bound_is_above_an_answer_and_every_fidelity_has_an_energy(
    design, factors, tokens, decode
):
    machine, values = changed(design, factors)
    results = [
        ob.simulate(
            machine.with_values(values), work(design, tokens, decode=decode), design[1], fidelity
        )
        for fidelity in ("bound", "analytic", "event")
    ]
    bound, analytic, event = (r.seconds for r in results)
    assert 0 < bound <= analytic * (1 + 1e-9)
    assert analytic <= event * (1 + 1e-9)
    assert 0 < results[0].joules <= results[1].joules * (1 + 1e-9)


@settings(max_examples=25)
@given(designs, factors, factors, tokens, st.booleans())
def test_designs_at_once_are_designs_one_by_one(design, first, second, tokens, decode):
    machine, a = changed(design, first)
    _, b = changed(design, second)
    both = machine.with_values({path: np.array([a[path], b[path]]) for path in a})
    one = work(design, tokens, decode=decode)
    mapping = machine.mapping(design[1])
    many = evaluate(both, one, mapping).metrics
    for i, values in enumerate((a, b)):
        single = evaluate(machine.with_values(values), one, mapping).metrics
        for metric in ("seconds", "joules"):
            assert many[metric][i] == pytest.approx(single[metric][0], rel=1e-12)


@given(
    st.integers(1, 12), st.integers(1, 200), st.integers(0, 300), st.integers(1, 2),
    st.integers(1, 40), st.tuples(*[st.integers(1, 400)] * 3), st.sampled_from(["int8", "fp16"]),
)  # fmt: skip
def test_more_sums_on_a_core_never_cost_time(readers, held, more, buffers, tables, sizes, number):
    m, n, k = (float(s) for s in sizes)
    totals = []
    for accumulators in (held, held + more):
        core = Core(
            activation=number, mu=3, tables=tables, readers=readers, buffers=buffers,
            accumulators=accumulators, clock=2e9,
        )  # fmt: skip
        made = structure(core, primitives("gates-45nm", 16))
        cycles = product_cycles(made, m, n, k)
        assert cycles.reads == m * np.ceil(k / core.rows) * np.ceil(n / readers)
        totals.append(cycles.total)
    assert totals[1] <= totals[0]
