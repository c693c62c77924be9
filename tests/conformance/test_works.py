"""What every kind of work keeps: tables that can be priced, one value for each design point."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opbyte.core.errors import WorkloadError
from opbyte.core.labels import is_label
from opbyte.core.ops import BYTE_COLUMNS, COLLECTIVES
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.metrics import (
    BLOCK_METRICS,
    CLUSTER_METRICS,
    COMMON,
    COSTS,
    KV_METRICS,
    OFFLOAD_METRICS,
    metrics_of,
)
from opbyte.sim.place import PLACE_KEYS, Placer
from opbyte.sim.simulate import simulate
from opbyte.sweeps.axes import SI_UNITS
from opbyte.sweeps.constraints import Constraint, metric_dimension
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.op_trace import save_ops
from opbyte.workloads.phases import Decode
from opbyte.workloads.works import WORKS, Work, work_from

LAYERS = (Layer(Attention(8, 8, 32), DenseFfn(512)), Layer(Attention(8, 8, 32), MoeFfn(8, 2, 128)))
MODEL = Model("both", 256, 1000, LAYERS, (0, 1, 0, 1))
EXAMPLES: dict[str, dict[str, Any]] = {
    "continuous": {"model": MODEL, "batch": 2, "input": 4, "output": 4},
    "decode": {"model": MODEL, "batch": 4, "context": 100},
    "prefill": {"model": MODEL, "batch": 2, "input": 64},
    "generate": {"model": MODEL, "batch": 2, "input": 64, "output": 9},
    "speculative_decode": {
        "model": MODEL,
        "batch": 4,
        "context": 100,
        "speculate": {"draft": MODEL, "tree": [2, 2], "acceptance": 0.7},
    },
    "mixed": {"model": MODEL, "chunks": [[32, 10]], "decodes": 3, "context": 50},
    "gemm": {"m": 64, "n": 128, "k": 256},
    **{
        kind: {"rows": 12, "width": 256}
        for kind in ("softmax", "norm", "activation", "gated_activation", "rotary", "add")
    },
    "moe": {"tokens": 40, "hidden": 64, "ffn": 96, "experts": 8, "top_k": 2},
    "mla_decode": {"batch": 3, "kv_tokens": 100, "heads": 16},
    "all_reduce": {"bytes": 2**20, "participants": 4},
    "all_gather": {"bytes": 2**20, "participants": 4},
    "reduce_scatter": {"bytes": 2**20, "participants": 4},
    "all_to_all": {"bytes": 2**20, "participants": 4},
    "attention_prefill": {"batch": 2, "q_tokens": 32, "kv_tokens": 64, "heads": 8, "kv_heads": 1},
    "attention_decode": {"batch": 3, "kv_tokens": 100, "heads": 8, "kv_heads": 1},
    "coe": {"router": MODEL, "experts": MODEL, "count": 5, "batch": 2, "input": 16, "output": 4},
    "train": {"model": MODEL, "batch": 2, "sequence": 64},
    "fft-conv": {"batch": 2, "channels": 8, "length": 1024, "order": 2},
    "stream": {"bytes": 2**20},
    "monarch-example": {"rows": 64, "columns": 64, "inner": 16, "outer": 16},
}
#: What a served trace computes is not known before it is served.
kinds = pytest.mark.parametrize("kind", [kind for kind in WORKS.names() if kind != "serve"])


@pytest.fixture
def example(kind: str, tmp_path: Path) -> Work:
    if kind == "ops":
        save_ops(Decode(MODEL, 1, 4).lower(Parallel())[0].table, tmp_path / "ops.parquet")
        return work_from({"kind": "ops", "path": str(tmp_path / "ops.parquet")})
    if kind not in EXAMPLES:
        pytest.fail(f"add an example of '{kind}' here: every registered work is checked")
    return work_from({"kind": kind, **EXAMPLES[kind]})


@kinds
def test_tables_are_finite_and_do_something(example: Work) -> None:
    phases = example.lower(Parallel())
    assert phases
    assert len({p.name for p in phases}) == len(phases)
    for phase in phases:
        assert np.all(np.asarray(phase.repeats) >= 0)
        for column in phase.table.columns.values():
            assert np.isfinite(column).all()
            assert (column >= 0).all()
        worked = ("flops", "payload", "in_bytes")
        assert sum(phase.table.total(c).item() for c in worked) > 0
        assert (phase.table.edges[:, 0] < phase.table.edges[:, 1]).all()


@kinds
def test_labels_are_of_the_vocabulary(kind: str, example: Work) -> None:
    tables = [phase.table for phase in example.lower(Parallel())]
    labels = {word for table in tables for words in table.labels for word in words}
    # A mapping may name them beside works that have none of them.
    assert [word for word in labels if not is_label(word)] == [], f"opbyte.core.labels: {kind}"


@kinds
def test_products_do_no_more_than_their_rectangle(example: Work) -> None:
    for phase in example.lower(Parallel()):
        t = phase.table
        full = 2 * t["m"] * t["n"] * t["k"] * t["groups"]
        matrix = (t["m"] > 0).any(axis=1)
        assert (t["flops"][matrix] <= full[matrix] * (1 + 1e-12)).all()
        assert not (t["flops"][[k in COLLECTIVES for k in t.kinds]]).any()


@kinds
def test_footprints_are_classes_that_a_mapping_places(example: Work) -> None:
    held = example.footprint(Parallel())
    known = {*PLACE_KEYS, "router.weight", "expert.weight"}
    assert set(held) <= known
    assert all(np.all(np.asarray(size) >= 0) for size in held.values())
    machine = load_machine("a100-sxm-80gb")
    assert Placer(machine, machine.mapping()).occupancy(held).keys() == {"gpu.hbm"}


@kinds
def test_what_is_read_is_held(example: Work) -> None:
    held = example.footprint(Parallel())
    weights = sum(float(np.max(v)) for k, v in held.items() if "weight" in k or k == "expert")
    for phase in example.lower(Parallel()):
        once = sum(phase.table[c].sum() for c in BYTE_COLUMNS if c in ("weight", "expert"))
        assert once <= weights * (1 + 1e-9)


@kinds
def test_results_have_the_promised_metrics_at_all_fidelities(kind: str, example: Work) -> None:
    mapping = "coe" if kind == "coe" else "default"
    seconds = []
    # The event kernel plays no training step yet.
    played = ("event",) if kind != "train" else ()
    for fidelity in ("bound", "analytic", *played):
        result = simulate("sn40l-socket", example, mapping, fidelity)  # type: ignore[arg-type]
        assert set(result.metrics) == set(metrics_of(kind))
        assert all(np.isfinite(v) for v in result.metrics.values())
        assert result.seconds > 0
        assert result.joules > 0
        seconds.append(result.seconds)
    assert seconds[0] <= seconds[1] * (1 + 1e-9)
    if kind not in ("coe", "train"):
        assert seconds[1] <= seconds[2] * (1 + 1e-9)


@kinds
def test_vector_fields_hold_one_value_for_each_point(kind: str, example: Work) -> None:
    cls = type(example)
    names = [f for f in cls.vector_fields if np.max(getattr(example, f)) >= 1]
    for name in names:
        value = float(np.max(getattr(example, name)))
        fields = {f: getattr(example, f) for f in cls.vector_fields}
        plain = {k: v for k, v in EXAMPLES.get(kind, {}).items() if k not in fields}
        if kind == "mixed":
            plain["chunks"] = getattr(example, "chunks")  # noqa: B009
        made = cls(**{**plain, **fields, name: np.array([value, value + 1, 2 * value])})
        (first, *_) = made.lower(Parallel())
        assert first.table.points in (1, 3)
        tokens = np.broadcast_to(made.tokens, 3)
        assert tokens[0] == np.max(example.tokens)
        with pytest.raises(WorkloadError, match=name):
            cls(**{**plain, **fields, name: np.array([value, np.nan])})


#: Metrics that are counts or shares, or whose name says all that their unit would.
PLAIN = {
    "op_per_byte", "tokens_per_s", "requests_per_s", "goodput_per_s",
    "kernels", "steps", "microbatches", "misses", "switches", "copies", "swapped",
    "failed", "rejected", "preempted", "device_losses", "idle_failures",
    "batch_max", "models_in_fast", "models_max", "nodes_fast", "nodes_max",
    "running_mean", "waiting_mean", "waiting_p99", "waiting_max", "kv_mean", "kv_p99", "kv_max",
    "tokens_per_step", "tokens_per_decode", "speedup_over_plain",
    "mfu", "mfu_causal", "hfu", "hit_rate", "kv_hit_rate", "draft_share", "kv_share", "utilisation",
}  # fmt: skip


def test_every_metric_has_a_unit_or_needs_none():
    metrics = {name for kind in WORKS.names() for name in metrics_of(kind)}
    metrics |= {*COMMON, *COSTS, *OFFLOAD_METRICS, *CLUSTER_METRICS, *BLOCK_METRICS, *KV_METRICS}
    assert {m for m in metrics if metric_dimension(m) is None} == PLAIN
    for name in metrics - PLAIN:
        assert metric_dimension(name) in SI_UNITS, "or the stored column has none"


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        ("carbon_g_per_mtoken <= 5 kg", 5000.0),
        ("carbon_g_per_mtoken <= 40 g", 40.0),
        ("bandwidth >= 0.5 TB/s", 5e11),
        ("kv_bytes <= 1 GiB", 2.0**30),
        ("tbt_p99 <= 60 ms", 0.06),
        ("flops <= 2 TFLOP", 2e12),
    ],
)
def test_constraints_read_a_metrics_unit(constraint, value):
    name = constraint.split()[0]
    read = Constraint.parse(constraint, {name: metric_dimension(name)})
    assert read.violation({name: np.array(value)}) == 0.0
    assert read.violation({name: np.array(value * (1.01 if read.upper else 0.99))}) > 0.0
