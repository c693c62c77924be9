"""Vector operators on a GPU: what reaches the kernel, alone and inside a model."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu import streams
from opbyte.hw_models.compute.gpu.parameters import GpuView, stacked
from opbyte.hw_models.compute.gpu.vectors import STREAM
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.price import price
from opbyte.sim.place import Placer
from opbyte.workloads.works import WORKS, work_from

A100 = load_machine("a100-sxm-80gb")
LAUNCH = A100.values["gpu.sm.launch.graph"]
KINDS = ("softmax", "norm", "activation", "gated_activation", "rotary", "add")
#: Kernel, elements read for each written one, and learned rows, of each kind.
FORMS = {
    "softmax": ("softmax", 1, 0),
    "norm": ("norm", 1, 1),
    "activation": ("activation", 1, 0),
    "gated_activation": ("activation", 2, 0),
    "rotary": ("rotary", 1, 0),
    "add": ("elementwise", 2, 0),
}


def kernel_seconds(kind: str, rows: int, width: int) -> float:
    """Return the launch and the interpreted kernel of the sizes that the kind should have."""
    name, inputs, learned = FORMS[kind]
    view = GpuView.of(UnitView(A100, "gpu.sm"))
    assert view is not None
    named = view.named("")
    written = 2.0 * rows * width
    by_row = rows if name in ("softmax", "norm") else 0
    read = inputs * written + learned * 2.0 * width
    sizes = np.array([by_row, read, written, written / 2], float)[:, None, None]
    seconds = np.empty((1, 1))
    rules = streams.STREAM_KERNELS.lookup(name).rules[None]
    streams.fill_seconds(seconds, sizes, stacked(*(named[n] for n in STREAM)), rules)
    return LAUNCH + float(seconds[0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (300, 128), (16384, 12288)])
def test_a_work_is_its_kernel(kind: str, rows: int, width: int) -> None:
    result = ob.simulate(A100, {"kind": kind, "rows": rows, "width": width})
    assert result.seconds == pytest.approx(kernel_seconds(kind, rows, width), rel=1e-12)


def test_rows_of_a_frame_are_what_each_is_alone() -> None:
    sizes = [(1, 64), (7, 4096), (4096, 4096), (100000, 33)]
    frame = pd.DataFrame(
        [{"kind": k, "rows": r, "width": w, "dtype": "fp16"} for k in KINDS for r, w in sizes]
    )
    together = ob.simulate_batch(A100, frame)["seconds"]
    alone = [ob.simulate(A100, row).seconds for row in frame.to_dict("records")]
    assert together.to_list() == pytest.approx(alone, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 10**6),
    width=st.integers(1, 10**4),
    machine=st.sampled_from(("a100-sxm-80gb", "h100-sxm-80gb", "rtx-4090", "t4", "mi210")),
)
def test_no_operator_beats_its_bound(kind: str, rows: int, width: int, machine: str) -> None:
    work = {"kind": kind, "rows": rows, "width": width, "dtype": "fp16"}
    bound = ob.simulate(machine, work, fidelity="bound").seconds
    assert 0 < bound <= ob.simulate(machine, work).seconds * (1 + 1e-12)


def test_arithmetic_slower_than_memory_is_what_takes_the_time() -> None:
    slow = A100.with_values({"gpu.sm.vector": 1e9})
    work = {"kind": "rotary", "rows": 1000, "width": 4096}
    assert ob.simulate(slow, work).seconds == pytest.approx(LAUNCH + 3 * 4096e3 / 1e9)


def test_the_norms_of_a_model_are_that_kernel() -> None:
    work = work_from({"kind": "decode", "model": "llama-3.1-8b", "batch": 16, "context": 100})
    (phase,) = work.lower(A100.mapping().degrees)
    demand = price(Placer(A100, A100.mapping()).place(phase.table), A100)
    alone = ob.simulate(A100, {"kind": "norm", "rows": 16, "width": 4096}).seconds
    norms = [i for i, name in enumerate(demand.placed.names) if name.endswith("norm")]
    assert len(norms) >= 3
    assert demand.duration[norms].ravel() == pytest.approx([alone] * len(norms), rel=1e-9)


@pytest.mark.parametrize("field", ["rows", "width"])
@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), 2**60])
def test_sizes_that_make_no_sense_are_refused(field: str, value: float) -> None:
    work = {"kind": "norm", "rows": 4, "width": 4, field: value}
    with pytest.raises(ob.OpbyteError):
        ob.simulate(A100, work)


def test_every_vector_work_is_here() -> None:
    assert {k for k in WORKS.names() if hasattr(WORKS.lookup(k), "row")} == set(KINDS)
