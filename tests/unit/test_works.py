"""Works as files write them, and what is said about mistakes."""

import numpy as np
import pytest

from opbyte.core.config import parse_document
from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.workloads.coe import CompositionOfExperts
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.model_set import ModelSet
from opbyte.workloads.op_trace import save_ops
from opbyte.workloads.phases import Decode, Generate, Mixed, Prefill
from opbyte.workloads.routing import Routing
from opbyte.workloads.works import WORKS, work_from


def read(text):
    return work_from(parse_document(text, "w.yaml"))


@pytest.mark.parametrize(
    ("text", "cls", "fields"),
    [
        ("{kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}", Decode,
         {"batch": 1, "context": 4096}),
        ("{kind: prefill, model: llama-3.1-8b, batch: 2, input: 1e3}", Prefill, {"input": 1000}),
        ("{kind: generate, model: t5-small, batch: 2, input: 100, output: 7}", Generate,
         {"output": 7}),
        ("{kind: mixed, model: llama-3.1-8b, chunks: [[512, 0], [9, 512]], decodes: 8, context: 9}",
         Mixed, {"chunks": ((512, 0), (9, 512))}),
        ("{kind: decode, model: mixtral-8x7b, batch: 4, context: 9, routing: {kind: zipf}}",
         Decode, {"routing": Routing("zipf")}),
    ],
)  # fmt: skip
def test_works_from_text(text, cls, fields):
    work = read(text)
    assert isinstance(work, cls)
    for name, value in fields.items():
        assert getattr(work, name) == value


def test_sources_and_ranges_travel_with_the_values():
    work = read(
        "{kind: decode, model: llama-3.1-8b, source: table 2, "
        "batch: {value: 8, source: 'assumed: not stated', range: [1, 64]}, context: 4096}"
    )
    assert work.batch == 8
    assert work.sources == {
        "model": "table 2", "batch": "assumed: not stated", "context": "table 2"
    }  # fmt: skip
    assert work.ranges == {"batch": (1, 64)}
    assert work == read("{kind: decode, model: llama-3.1-8b, batch: 8, context: 4096}")


def test_lists_are_design_points():
    work = read("{kind: decode, model: llama-3.1-8b, batch: [1, 2, 4], context: 4096}")
    np.testing.assert_array_equal(work.batch, [1, 2, 4])
    assert work.lower(Parallel())[0].table.points == 3


def test_precision_stores_the_model_otherwise():
    plain = read("{kind: decode, model: llama-3.1-8b, batch: 1, context: 9}")
    small = read(
        "{kind: decode, model: llama-3.1-8b, batch: 1, context: 9, precision: {weight: int4}}"
    )
    assert small.model.weight_bytes < 0.3 * plain.model.weight_bytes


def test_trace_beside_its_file(tmp_path):
    layer = Layer(Attention(2, 2, 16), DenseFfn(32))
    model = Model("m", 32, 100, (layer,), (0,))
    save_ops(Decode(model, 1, 4).lower(Parallel())[0].table, tmp_path / "ops.parquet")
    file = tmp_path / "work.yaml"
    work = work_from(parse_document("{kind: ops, path: ops.parquet}", str(file)))
    assert work.lower(Parallel())[0].table.names[0] == "embedding"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("batch: 1", ["w.yaml:1:1: a work needs a kind", "Known: ", "coe, continuous, decode"]),
        ("kind: decod", ["w.yaml:1:1", "no kind of work is called 'decod'", "mean 'decode'"]),
        ("kind: decode\nmodle: llama-3.1-8b",
         ["w.yaml:2:", "a decode work has no key 'modle'. Did you mean 'model'?",
          "a decode work needs the key 'batch'", "a decode work needs the key 'context'"]),
        ("kind: decode\nmodel: llama-3.1-8\nbatch: 1\ncontext: 2", ["w.yaml:2:", "llama-3.1-8b"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: many\ncontext: 2", ["w.yaml:3:", "batch"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: {valu: 1}\ncontext: 2", ["w.yaml:3:", "batch"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: {value: 1, sauce: x}\ncontext: 2",
         ["batch.sauce", "a value has no key 'sauce'. Known: value, source, range"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: {value: 1, range: [9, 2]}\ncontext: 2",
         ["w.yaml:3:", "batch.range", "a range is [lowest, highest]"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: 1\ncontext: 2\nprecision: {wieght: int4}",
         ["w.yaml:5:", "precision", "wieght", "weight"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: 1\ncontext: 2\nrouting: {knd: zipf}",
         ["w.yaml:5:", "a routing has no key 'knd'. Did you mean 'kind'?"]),
        ("kind: decode\nmodel: llama-3.1-8b\nbatch: 1\ncontext: 2\nrouting: zopf",
         ["w.yaml:5:", "no kind is called 'zopf'"]),
        ("kind: mixed\nmodel: llama-3.1-8b\nchunks: [[1]]", ["w.yaml:3:", "[new, past]"]),
        ("kind: coe\nrouter: llama-2-7b\nexperts: {model: llama-2-7b, count: 3, chose: zipf}",
         ["w.yaml:3:", "a set of experts has no key 'chose'"]),
        ("kind: gemm\nm: 1\nn: 8\nk: 8\ndtype: fp9",
         ["w.yaml:5:1: dtype: no number format is called 'fp9'", "Did you mean 'fp8'?"]),
        ("kind: gemm\nm: 1\nn: 8\nk: 8\ndtype: fp16\nweight_dtype: fp9",
         ["w.yaml:6:1: weight_dtype: no number format is called 'fp9'"]),
    ],
)  # fmt: skip
def test_mistakes_are_located(text, messages):
    with pytest.raises(ConfigError) as error:
        read(text)
    for message in messages:
        assert message in str(error.value)


def test_senseless_values_are_located_too():
    with pytest.raises(ConfigError, match=r"w.yaml:1:37: batch: decode: batch must be at least 1"):
        read("{kind: decode, model: llama-3.1-8b, batch: 0, context: 4}")
    with pytest.raises(WorkloadError, match=r"w.yaml:1:1: decode: llama-3.1-8b has no encoder"):
        read("{kind: decode, model: llama-3.1-8b, batch: 1, context: 4, input: 3}")


def test_every_kind_lists_its_metrics():
    for name in WORKS.names():
        cls = WORKS.lookup(name)
        assert cls.kind == name
        assert set(cls.phase_metrics) <= set(cls.metrics)


# -- composition of experts ------------------------------------------------------------------------

SMALL = Model("small", 64, 100, (Layer(Attention(4, 4, 16), DenseFfn(128)),), (0, 0))


def coe(**fields):
    given = {"router": SMALL, "experts": ModelSet(SMALL, 150), "batch": 8, "input": 9, "output": 4}
    return CompositionOfExperts(**{**given, **fields})


def test_composition_from_text():
    work = read(
        "{kind: coe, router: llama-2-7b, experts: {model: llama-2-7b, count: 150, choose: zipf, "
        "skew: 1}, batch: 8, input: 256, output: 20, expert_runs: sequential}"
    )
    assert (work.count, work.choose, work.skew) == (150, "zipf", 1)
    assert work.expert == work.router
    assert work.expert.name == "llama-2-7b"


def test_distinct_experts_of_a_batch():
    assert coe().distinct_experts == pytest.approx(150 * (1 - (149 / 150) ** 8), rel=1e-14)
    assert coe(batch=1).distinct_experts == pytest.approx(1, rel=1e-12)
    many = coe(batch=[1, 8, 8], experts=SMALL, count=[150, 150, 20]).distinct_experts
    each = [coe(batch=b, experts=SMALL, count=c).distinct_experts
            for b, c in ((1, 150), (8, 150), (8, 20))]  # fmt: skip
    np.testing.assert_allclose(many, each, rtol=1e-14)


def test_popular_experts_are_chosen_again():
    skewed = coe(choose="zipf", skew=1.0)
    ranks = np.arange(1, 151)
    popularity = (1 / ranks) / (1 / ranks).sum()
    assert skewed.distinct_experts == pytest.approx((1 - (1 - popularity) ** 8).sum(), rel=1e-12)
    assert skewed.distinct_experts < coe().distinct_experts
    many = coe(choose="zipf", skew=1.0, batch=[1, 8], experts=SMALL, count=[150, 10])
    np.testing.assert_allclose(
        many.distinct_experts,
        [coe(choose="zipf", skew=1.0, batch=b, experts=SMALL, count=c).distinct_experts
         for b, c in ((1, 150), (8, 10))],
        rtol=1e-12,
    )  # fmt: skip


def test_phases_of_router_and_experts():
    work = coe()
    router, prefill, decode = work.lower(Parallel())
    assert [p.name for p in (router, prefill, decode)] == [
        "router", "expert.prefill", "expert.decode"
    ]  # fmt: skip
    assert (router.repeats, prefill.repeats, decode.repeats) == (1, 8, 8 * 3)
    batched = Prefill(SMALL, 8, 9).lower(Parallel())[0].table
    assert router.table.total("flops") == batched.total("flops")
    assert work.expert_phases(Parallel())[0].repeats == 1


def test_footprint_of_all_experts():
    held = coe().footprint(Parallel())
    assert held["router.weight"] == SMALL.weight_bytes
    assert held["expert.weight"] == 150 * SMALL.weight_bytes
    assert coe().expert_bytes(Parallel()) == SMALL.weight_bytes
    assert held["kv"] == 8 * 9 * 2 * 64 * 2 * 2
    assert coe().expert_bytes(Parallel(tp=4)) < 0.3 * SMALL.weight_bytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choose": "best"}, "choose must be one of uniform, zipf, got 'best'"),
        ({"expert_runs": "together"}, "expert_runs must be one of sequential, got 'together'"),
        ({"skew": 1.0}, "skew belongs to choose: zipf"),
        ({"experts": SMALL}, "count must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_senseless_compositions(fields, message):
    with pytest.raises(WorkloadError, match=message):
        coe(**fields)


def test_a_routing_may_be_given_as_in_a_file():
    written = Decode("mixtral-8x7b", batch=4, context=64, routing={"kind": "zipf", "skew": 0.5})
    assert written.routing == Routing("zipf", 0.5)
    assert Decode("mixtral-8x7b", batch=4, context=64, routing="zipf_0.5") == written
    with pytest.raises(ConfigError, match="Did you mean 'fullest'"):
        Decode("mixtral-8x7b", batch=4, context=64, routing={"fulest": True})
    with pytest.raises(ConfigError, match="a routing is due"):
        Decode("mixtral-8x7b", batch=4, context=64, routing=3)


def test_a_model_may_be_given_by_its_catalog_name():
    assert Decode("llama-3.1-8b", 1, 64) == Decode(load_model("llama-3.1-8b"), 1, 64)
    work = CompositionOfExperts("llama-2-7b", "llama-2-7b", 4)
    assert work.router == work.expert == load_model("llama-2-7b")
    with pytest.raises(ConfigError, match=r"Did you mean 'llama-3.1-8b'"):
        Decode("llama-3.1-8", 1, 64)


@pytest.mark.parametrize("given", [None, 7, {"config": {}}])
def test_what_is_no_model_is_told(given):
    for kind, fields in (("decode", {"context": 64}), ("train", {"sequence": 64})):
        with pytest.raises(WorkloadError, match=f"{kind}: model must be a model, a catalog name"):
            WORKS.lookup(kind)(model=given, batch=1, **fields)
