"""Machines with compute in memory: a finite price above zero, or a refusal that names the thing."""

import math

import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, OpbyteError, UncoveredError
from opbyte.hw_models.machine import load_machine

MACHINES = ["neupims", "ianus", "hbm-pim", "gddr6-aim", "pim-gpt", "upmem-2556", "cent-8"]
MAPPINGS = [(n, m) for n in MACHINES for m in load_machine(n).config.mappings]
#: Mappings whose products with weights are the units' in memory.
IN_MEMORY = [
    ("ianus", "pim", "bf16"), ("hbm-pim", "default", "fp16"), ("gddr6-aim", "default", "bf16"),
    ("pim-gpt", "default", "bf16"), ("cent-8", "tensor", "bf16"),
]  # fmt: skip
in_memory = pytest.mark.parametrize(("name", "mapping", "dtype"), IN_MEMORY)


def unit_of(name):
    machine = load_machine(name)
    return machine, next(path for path, u in machine.units.items() if u.config.pim)


@pytest.mark.parametrize("model", ["gpt-2-medium", "llama-3.1-8b", "deepseek-v2-lite", "t5-large"])
@pytest.mark.parametrize(("name", "mapping"), MAPPINGS)
def test_every_work_has_a_price_or_a_refusal(name, mapping, model):
    machine = load_machine(name)
    phases = [
        {"kind": "decode", "batch": 1, "context": 1},
        {"kind": "decode", "batch": 3, "context": 777},
        {"kind": "prefill", "batch": 2, "input": 33},
    ]
    for dtype in ("bf16", "fp16", "fp8", "int8", "fp32", "int32"):
        for phase in phases:
            more = {"input": phase.get("input", 16)} if model == "t5-large" else {}
            precision = dict.fromkeys(("weight", "kv", "activation"), dtype)
            work = {"model": model, "precision": precision, **phase, **more}
            times = []
            for fidelity in ("bound", "analytic"):
                try:
                    result = ob.simulate(machine, work, mapping=mapping, fidelity=fidelity)
                except OpbyteError:
                    continue
                assert math.isfinite(result.seconds)
                assert math.isfinite(result.joules)
                assert min(result.seconds, result.joules) > 0
                times.append(result.seconds)
            assert times == sorted(times)


@in_memory
@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_weights_that_nothing_unpacks_are_refused_by_the_bound_too(name, mapping, dtype, fidelity):
    work = {
        "kind": "decode", "model": "gpt-2-medium", "batch": 1, "context": 64,
        "precision": {"weight": "int4", "kv": dtype, "activation": dtype},
    }  # fmt: skip
    with pytest.raises(UncoveredError, match="as banks hold it"):
        ob.simulate(name, work, mapping=mapping, fidelity=fidelity)


@in_memory
@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_an_unknown_dtype_and_a_matrix_too_large_are_refused(name, mapping, dtype, fidelity):
    def price(n, k, dtype):
        work = ob.Gemm(m=1, n=n, k=k, dtype=dtype)
        return ob.simulate(name, work, mapping=mapping, fidelity=fidelity)

    with pytest.raises(UncoveredError, match="no arithmetic for fp32"):
        price(256, 256, "fp32")
    with pytest.raises(CapacityError, match="not fit"):
        price(10**7, 10**6, dtype)


@pytest.mark.parametrize("name", [n for n in MACHINES if n != "upmem-2556"])
@pytest.mark.parametrize("number", ["channels", "banks", "bank_groups", "rows", "columns"])
def test_a_device_of_no_banks_is_refused(name, number):
    machine, unit = unit_of(name)
    with pytest.raises(ConfigError, match=number):
        machine.replace({f"{unit}.pim.organisation.{number}": 0})
