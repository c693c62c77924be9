"""What every kind of compute unit keeps: prices that are finite, positive and never below peak."""

import math
from typing import Any

import numpy as np
import pytest
from handmade import demand, device, gemm

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.compute.base import UNITS
from opbyte.hw_models.machine import CATALOG, Machine, load_machine

kinds = pytest.mark.parametrize("kind", UNITS.names())
#: Without those whose products follow from a block of their own: instructions, multipliers.
others = pytest.mark.parametrize(
    "kind", [k for k in UNITS.names() if k not in ("cpu", "csd_engine")]
)
SHAPES = [(1, 1, 1), (1, 4096, 4096), (7, 129, 33), (2048, 4096, 512), (1, 1, 100000)]


ARRAY = {"array": [16, 16], "clock": "1 GHz"}
#: What a kind can not do without.
CPU = {"threads": 1, "slots": 2, "instructions": {"bf16": 0.25}, "prepare": 1}
BLOCKS = {
    "bit_serial": {"serial": {"weights": "l2", "inputs": "l2"}},
    "csd_engine": {
        "csd": {"kernels": 2, "width": 8, "exponentials": 1, "filter": "8 B", "sort": 1}
    },
    "cpu": {"cpu": {**CPU, "stream": "20 GB/s", "handoff": "50 ns"}},
}


def unit(kind: str, **more: Any) -> Machine:
    return device(unit={"kind": kind, "tile": [16, 8, 16], **ARRAY, **BLOCKS.get(kind, {}), **more})


def stack(m: int, n: int, k: int, groups: int) -> Any:
    """Return a product of each of several groups, with weights of its own."""
    return gemm(m, n, k, groups=groups, weight=2.0 * n * k * groups)


@kinds
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product_takes_at_least_its_operations_at_the_peak(
    kind: str, m: int, n: int, k: int
) -> None:
    best = max(100e12, 5e12)
    real = demand(unit(kind), gemm(m, n, k)).compute[0, 0]
    ideal = demand(unit(kind), gemm(m, n, k), ideal=True).compute[0, 0]
    assert 0 < 2 * m * n * k / best <= ideal <= real < math.inf


@kinds
@pytest.mark.parametrize("path", ["peak.bf16", "vector"])
def test_a_faster_unit_is_never_slower(kind: str, path: str) -> None:
    rates = np.geomspace(1e11, 1e16, 7)
    machine = unit(kind).with_values({f"dev.core.{path}": rates})
    priced = demand(machine, gemm(100, 300, 500), ("norm", "norm", {"flops": 1e9}))
    assert (np.diff(priced.compute, axis=1) <= 0).all()
    for i, rate in enumerate(rates):
        alone = unit(kind).with_values({f"dev.core.{path}": float(rate)})
        one = demand(alone, gemm(100, 300, 500), ("norm", "norm", {"flops": 1e9}))
        np.testing.assert_allclose(priced.compute[:, i], one.compute[:, 0], rtol=1e-15)


@kinds
def test_more_work_never_takes_less_and_twice_the_groups_take_twice(kind: str) -> None:
    times = [
        demand(unit(kind), gemm(m, 256, 256)).compute[0, 0] for m in (1, 2, 15, 16, 17, 100, 5000)
    ]
    assert (np.diff(times) >= 0).all()
    one, two = (demand(unit(kind), stack(33, 65, 127, g)).compute[0, 0] for g in (1, 2))
    assert two == pytest.approx(2 * one, rel=1e-12)


@kinds
def test_whole_tiles_take_no_longer_than_their_operations(kind: str) -> None:
    plain = demand(unit(kind, tile=None), gemm(64, 64, 64)).compute[0, 0]
    assert demand(unit(kind), gemm(64, 64, 64)).compute[0, 0] == pytest.approx(plain, rel=1e-12)


@others
def test_rows_without_operations_take_no_time(kind: str) -> None:
    priced = demand(unit(kind), ("append", "kv_append", {"flops": 0.0, "kv_write": 100.0}))
    assert priced.compute[0, 0] == 0
    assert priced.duration[0, 0] > 0


@others
def test_without_any_rate_every_row_is_refused(kind: str) -> None:
    empty = unit(kind, peak={}, vector=None)
    for row in (gemm(8, 8, 8), ("norm", "norm", {"flops": 1.0})):
        with pytest.raises(UncoveredError, match=r"small: unit 'dev.core' has no"):
            demand(empty, row)


@kinds
def test_a_kernel_is_the_sum_of_its_rows(kind: str) -> None:
    rows = (gemm(64, 64, 64), ("act", "activation", {"flops": 1e6}))
    apart = demand(unit(kind), *rows).compute.sum()
    core = {"kind": kind, "tile": [16, 8, 16], **ARRAY, **BLOCKS.get(kind, {})}
    machine = device(unit=core, mapping={"fusion": "layer"})
    together = demand(machine, *rows)
    assert len(together.placed) == 1
    assert together.compute[0, 0] == pytest.approx(apart, rel=1e-12)


@pytest.mark.parametrize("name", CATALOG.names())
def test_units_of_the_catalog_have_a_model(name: str) -> None:
    for unit in load_machine(name).units.values():
        assert unit.config.kind in UNITS.names()
