"""`Serve` and `capacity`: a trace through an engine of a machine, end to end."""

import json

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.sim.metrics import metrics_of, static_watts
from opbyte.sim.serving.server import Server
from opbyte.sweeps.cli import main
from opbyte.sweeps.experiment import load_experiment
from opbyte.workloads.serve import Scheduling, Serve
from opbyte.workloads.traces import PrefixBlocks, RequestTrace

A100 = load_machine("a100-sxm-80gb")
LLAMA = ob.load_model("llama-3.1-8b")
FIELDS = [
    "arrival_s", "scheduled_s", "first_token_s", "last_token_s", "input_tokens", "output_tokens",
    "preempted", "status", "reason",
]  # fmt: skip


def trace(n: int = 60, gap: float = 0.05, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(gap, n)),
            "input_tokens": rng.integers(20, 1500, n),
            "output_tokens": rng.integers(1, 200, n),
        }
    )


def served(frame=None, **scheduler):
    work = Serve(LLAMA, trace() if frame is None else frame, scheduler=scheduler)
    return ob.simulate(A100, work)


def test_every_request_is_served_in_order_of_what_happens_to_it():
    result = served()
    frame = result.requests
    assert list(frame) == FIELDS
    assert (frame["status"] == "served").all()
    assert (frame["scheduled_s"] >= frame["arrival_s"]).all()
    assert (frame["first_token_s"] > frame["scheduled_s"]).all()
    assert (frame["last_token_s"] >= frame["first_token_s"]).all()
    assert (frame["last_token_s"] > frame["first_token_s"]).eq(frame["output_tokens"] > 1).all()
    assert result.tokens_per_s * result.seconds == pytest.approx(frame["output_tokens"].sum())
    assert result.ttft_mean == pytest.approx((frame["first_token_s"] - frame["arrival_s"]).mean())
    assert 0 < result.utilisation <= 1
    assert result.joules > 0
    assert 0 < result.kv_mean < 1


def test_the_compiled_loop_and_the_plug_in_say_the_same():
    work = Serve(LLAMA, trace(), scheduler={"kv_blocks": 300, "depth": 2})
    server = Server.of(A100, work, A100.mapping())
    loop = server.serve(work.trace)
    plug_in = Server(server.prices, server.scheduling, server.blocks, compiled=False)
    other = plug_in.serve(work.trace)
    assert loop.preempted.sum() > 0
    assert loop.times == pytest.approx(other.times, rel=1e-12)
    assert loop.joules == pytest.approx(other.joules, rel=1e-9)
    assert list(loop.busy.values()) == pytest.approx(list(other.busy.values()), rel=1e-9)


def test_means_are_over_time_and_nothing_runs_while_nothing_is_there():
    rare = pd.DataFrame(
        {"arrival_s": 100.0 * np.arange(5), "input_tokens": 500, "output_tokens": 2}
    )
    result = served(rare)
    assert result.running_mean == pytest.approx(result.utilisation, rel=1e-6)
    assert result.running_mean < 0.01
    one = pd.DataFrame({"arrival_s": np.zeros(8), "input_tokens": 300, "output_tokens": 1})
    busy = served(one, max_sequences=1)
    assert busy.running_mean == pytest.approx(1.0)
    assert busy.waiting_mean == pytest.approx(3.5, rel=0.1)
    assert busy.kv_mean > 0


def test_both_ways_agree_on_the_means():
    work = Serve(LLAMA, trace(), scheduler={"kv_blocks": 300})
    server = Server.of(A100, work, A100.mapping())
    readable = Server(server.prices, server.scheduling, server.blocks, compiled=False)
    loop, other = server.serve(work.trace), readable.serve(work.trace)
    assert loop.means == pytest.approx(other.means, rel=1e-9)


def test_numbers_of_prefix_blocks_are_names_and_no_more():
    """A block id that equals another request's row is not that request's answer."""

    def ttft(offset):
        prefix = PrefixBlocks(np.array([5, 5]) + offset, np.array([0, 0, 1, 1, 1, 1, 2]), 512)
        requests = RequestTrace(
            np.arange(6) * 2.0, np.array([96, 600, 96, 96, 96, 600]), np.full(6, 200), prefix
        )
        return ob.simulate(A100, Serve(LLAMA, requests)).requests["first_token_s"].tolist()

    assert ttft(0) == ttft(1000)


def test_what_the_model_can_not_read_is_refused():
    llama2 = ob.load_model("llama-2-7b")
    frame = trace(5)
    frame.loc[2, "input_tokens"] = 20_000
    result = ob.simulate(A100, Serve(llama2, frame))
    assert result.rejected == 1
    assert "context of 4096" in result.requests["reason"][2]
    small = ob.load_model("gpt-2-xl").with_precision(weight="bf16", activation="bf16", kv="bf16")
    short = pd.DataFrame({"arrival_s": [0.0], "input_tokens": [100], "output_tokens": [5]})
    assert ob.simulate(A100, Serve(small, short)).seconds > 0


def test_no_request_that_can_be_served_is_an_error_with_the_reason():
    frame = pd.DataFrame({"arrival_s": [0.0, 1.0], "input_tokens": 5000, "output_tokens": 5})
    with pytest.raises(ob.WorkloadError, match="KV blocks of 10"):
        served(frame, kv_blocks=10)
    with pytest.raises(ob.WorkloadError, match="KV blocks of 10"):
        ob.capacity(A100, Serve(LLAMA, frame, scheduler={"kv_blocks": 10}), {"ttft_p99": 1})


def test_capacity_of_answers_of_one_token_and_of_limits_that_nothing_breaks():
    frame = trace(40)
    frame["output_tokens"] = 1
    work = Serve(LLAMA, frame)
    both = {"ttft_p99": 0.2, "tpot_p99": 1.0}
    turned = dict(reversed(both.items()))
    assert ob.capacity(A100, work, both).rate == ob.capacity(A100, work, turned).rate > 0
    assert ob.capacity(A100, work, {"ttft_p99": "1 h"}).rate == np.inf


def test_a_file_beside_the_experiment_is_found(tmp_path, monkeypatch):
    rows = [{"timestamp": 0, "input_length": 100, "output_length": 3, "hash_ids": [1]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    work = "{kind: serve, model: llama-3.1-8b, trace: t.jsonl}"
    text = f"kind: experiment\nmachine: a100-sxm-80gb\nworkload: {work}\n"
    (tmp_path / "e.yaml").write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    assert load_experiment(tmp_path / "e.yaml").simulate().rejected == 0


def test_a_lone_request_takes_what_its_steps_take():
    frame = pd.DataFrame({"arrival_s": [0.0], "input_tokens": [700], "output_tokens": [3]})
    result = served(frame, max_batched_tokens=512)

    def step(**kind):
        return ob.simulate(A100, {"kind": "mixed", "model": LLAMA, **kind}).seconds

    first = step(chunks=[[512, 0]]) + step(chunks=[[188, 512]])
    later = step(decodes=1, context=701) + step(decodes=1, context=702)
    assert result.ttft_mean == pytest.approx(first, rel=1e-9)
    assert result.latency_mean == pytest.approx(first + later, rel=1e-9)


def test_the_cache_takes_what_weights_and_activations_leave():
    work = Serve(LLAMA, trace())
    server = Server.of(A100, work, A100.mapping())
    left = 0.9 * 80 * 2**30 - 2 * LLAMA.parameters
    whole = left / (16 * LLAMA.kv_bytes_per_token)
    assert 0.97 * whole < server.blocks <= whole
    half = Serve(LLAMA, trace(), scheduler={"memory": 0.5})
    assert Server.of(A100, half, A100.mapping()).blocks < 0.5 * server.blocks
    with pytest.raises(ob.CapacityError, match="kv"):
        ob.simulate(A100, Serve(LLAMA, trace(), scheduler={"memory": 0.1}))


def test_requests_that_never_fit_are_counted_with_a_reason():
    frame = trace(20)
    frame.loc[7, "input_tokens"] = 5000
    result = served(frame, kv_blocks=120)
    row = result.requests.iloc[7]
    assert row["status"] == "rejected"
    assert "KV blocks of 120" in row["reason"]
    assert np.isnan(row["last_token_s"])
    assert result.rejected == 1
    assert result.requests["status"].eq("served").sum() == 19


def test_chunked_is_continuous_batching_with_a_small_budget():
    assert Serve("llama-3.2-1b", "sample-chat", scheduler="chunked").scheduler == Scheduling(
        kind="chunked", max_batched_tokens=512
    )
    chosen = {"kind": "chunked", "max_batched_tokens": 300}
    one = ob.simulate(A100, Serve("llama-3.2-1b", "sample-chat", scheduler=chosen))
    other = ob.simulate(
        A100, Serve("llama-3.2-1b", "sample-chat", scheduler={**chosen, "kind": "continuous"})
    )
    assert one.requests.equals(other.requests)


def test_the_table_leaves_out_what_a_work_does_not_have(tmp_path, capsys):
    path = tmp_path / "plain.yaml"
    text = "kind: experiment\nmachine: a100-sxm-80gb\nworkload: {kind: serve, trace: sample-chat, "
    path.write_text(text + "model: llama-3.2-1b}\n")
    assert main(["run", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "ttft_p99" in shown
    for name in ("hit_rate", "switches", "tokens_per_decode", "expert_bytes_per_token"):
        assert name not in shown.split()
    assert "expert_bytes_per_token" not in Serve("mixtral-8x7b", "sample-chat").silent


def test_a_batch_that_waits_for_its_longest_answer_is_slower():
    continuous, static = served(kind="continuous"), served(kind="static")
    assert static.latency_mean > 1.2 * continuous.latency_mean
    assert static.preempted == 0


def test_prompts_that_share_a_beginning_read_it_once():
    with_cache, without = (
        ob.simulate(A100, Serve(LLAMA, "sample-chat", scheduler={"prefix_cache": use}))
        for use in (True, False)
    )
    assert with_cache.ttft_mean < 0.95 * without.ttft_mean
    assert with_cache.requests["status"].eq("served").all()


def test_clients_that_wait_for_answers_never_exceed_their_number():
    work = Serve(
        LLAMA,
        {
            "kind": "trace", "requests": 40, "lengths": {"input": 300, "output": 20},
            "arrivals": {"kind": "closed_loop", "concurrency": 4, "think": "0.1 s"},
        },
    )  # fmt: skip
    result = ob.simulate(A100, work)
    frame = result.requests
    assert (frame["status"] == "served").all()
    for moment in frame["arrival_s"]:
        waits = (frame["arrival_s"] <= moment) & (frame["last_token_s"] > moment)
        assert waits.sum() <= 4


def test_a_goal_counts_only_what_keeps_it():
    frame = trace()
    all_good, none = (
        ob.simulate(A100, Serve(LLAMA, frame, slo={"ttft": limit})) for limit in ("1 h", "1 us")
    )
    assert all_good.goodput_per_s == pytest.approx(all_good.requests_per_s)
    assert none.goodput_per_s == 0


def test_a_rate_stretches_arrivals():
    slow, fast = (
        ob.simulate(A100, Serve(LLAMA, trace(), rate=rate)) for rate in (0.5, "50 requests/s")
    )
    assert slow.seconds > fast.seconds
    assert slow.ttft_p99 < fast.ttft_p99


def test_capacity_is_the_last_rate_that_keeps_the_limits():
    work = Serve(LLAMA, trace(80))
    limits = {"ttft_p99": "0.5 s", "tpot_p99": "40 ms"}
    found = ob.capacity(A100, work, limits, accuracy=0.02)
    assert found.rate > 0
    assert found.metrics["ttft_p99"] <= 0.5
    assert found.metrics["tpot_p99"] <= 0.04
    assert found.limited_by in limits
    beyond = ob.simulate(A100, work.at(1.02 * found.rate * (1 + 1e-9)))
    assert beyond.ttft_p99 > 0.5 or beyond.tpot_p99 > 0.04
    assert ob.capacity(A100, work, {"ttft_p99": 1e-6}).rate == 0
    assert (
        ob.capacity(A100, work, {"tpot_p99": "30 ms"}).rate
        <= ob.capacity(A100, work, {"tpot_p99": "60 ms"}).rate
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler": {"max_batchd_tokens": 1}}, "max_batched_tokens"),
        ({"scheduler": "continous"}, "continuous"),
        ({"scheduler": 5}, "scheduler must be a mapping"),
        ({"slo": {"ttftt": "1 s"}}, "ttft"),
        ({"slo": {"ttft": "1 GB"}}, "time"),
        ({"rate": -1.0}, "rate must be requests per second"),
        ({"rate": "fast"}, "rate must be requests per second"),
        ({"rate": None}, "rate must be requests per second"),
        ({"trace": None}, "trace must be"),
        ({"trace": [1]}, "trace must be"),
        ({"scheduler": {"max_sequences": 10**9}}, "65536"),
        ({"trace": "no-such-trace"}, "sample-chat"),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(ob.OpbyteError, match=says):
        ob.simulate(A100, Serve(LLAMA, **{"trace": trace(3), **changes}))


@pytest.mark.parametrize(
    "slo",
    [
        {},
        [1],
        {"ttft_p99": None},
        {"ttft_p99": True},
        {"ttft_p98": "1 s"},
        {"ttft_p99": 0},
        {"ttft_p99": "1 GB"},
    ],
)
def test_limits_that_make_no_sense_are_refused(slo):
    with pytest.raises(ob.ConfigError):
        ob.capacity(A100, Serve(LLAMA, trace(3)), slo)


def test_serving_has_no_bound_and_no_breakdown():
    with pytest.raises(ob.UncoveredError, match="has no bound"):
        ob.simulate(A100, Serve(LLAMA, trace(3)), fidelity="bound")
    with pytest.raises(ob.UncoveredError, match="no breakdown"):
        _ = ob.simulate(A100, Serve(LLAMA, trace(3))).breakdown


EXPERIMENT = (
    "machine: a100-sxm-80gb\nworkload: {kind: serve, model: llama-3.1-8b, trace: sample-chat}\n"
)


def test_no_bound_is_asked_for_before_anything_runs(tmp_path, capsys):
    (tmp_path / "e.yaml").write_text(f"kind: experiment\n{EXPERIMENT}fidelity: bound\n")
    assert main(["run", str(tmp_path / "e.yaml")]) == 2
    assert "e.yaml:4:1: fidelity: a serve work has no bound" in capsys.readouterr().err
    base = EXPERIMENT.replace("\n", "\n  ").rstrip()
    (tmp_path / "s.yaml").write_text(
        f"kind: study\nfidelity: bound\nbase:\n  {base}\n"
        "axes:\n  machine.gpu.hbm.capacity: {values: [60 GiB, 80 GiB]}\n"
        "objectives: {flops: min, goodput_per_s: max}\n"
    )
    assert main(["sweep", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "s.yaml:2:1: fidelity: a serve work has no bound" in said
    assert "Choose analytic." in said
    assert "objectives.flops: a serve work defines no metric 'flops'" in said
    assert not (tmp_path / "out").exists()


def test_every_metric_is_a_number_and_says_what_it_costs(tmp_path, capsys):
    result = served()
    assert set(result.metrics) == set(metrics_of("serve"))
    assert all(np.isfinite(value) for value in result.metrics.values())
    tokens = result.requests["output_tokens"].sum()
    # A three-year share of the price for the time of the run, over the tokens of answers.
    share = result.price_usd * result.seconds / (3 * 365.25 * 86400)
    assert result.usd_per_mtoken == pytest.approx(1e6 * share / tokens)
    assert result.dynamic_joules + result.static_joules == pytest.approx(result.joules)
    assert result.static_joules == pytest.approx(static_watts(A100) * result.seconds)
    assert result.joules_per_token == pytest.approx(result.joules / tokens)


def test_times_between_tokens_are_those_of_the_answers():
    result = served()
    frame = result.requests
    later = frame["output_tokens"] - 1
    # All gaps of a request add up to the time from its first token to its last.
    whole = (frame["last_token_s"] - frame["first_token_s"]).sum()
    assert result.itl_mean == pytest.approx(whole / later.sum(), rel=1e-9)
    assert result.itl_p50 <= result.itl_p90 <= result.itl_p99 <= result.itl_max
    assert result.itl_max >= result.tpot_p99
    # A limit of time between tokens is one that capacity can keep.
    found = ob.capacity(A100, Serve(LLAMA, trace(80)), {"itl_p99": "60 ms"}, accuracy=0.05)
    assert found.limited_by == "itl_p99"
    assert found.metrics["itl_p99"] <= 0.06


def test_queues_and_caches_are_told_over_time():
    many = pd.DataFrame({"arrival_s": np.zeros(8), "input_tokens": 300, "output_tokens": 1})
    result = served(many, max_sequences=1, kv_blocks=100)
    # Seven wait at first; each of eight equal steps takes one of them.
    assert result.waiting_max == 7
    assert result.waiting_p99 == 7
    assert result.kv_max == pytest.approx(19 / 100)
    # Nothing is there in nearly all of the time.
    rare = pd.DataFrame({"arrival_s": [0.0, 0.0, 1e4], "input_tokens": 300, "output_tokens": 1})
    result = served(rare, max_sequences=1, kv_blocks=100)
    assert (result.waiting_max, result.waiting_p99, result.kv_p99) == (1, 0, 0)


def test_the_use_of_every_resource_is_told(tmp_path, capsys):
    (tmp_path / "e.yaml").write_text(f"kind: experiment\n{EXPERIMENT}")
    assert main(["run", str(tmp_path / "e.yaml"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    use = told["utilisation"]
    assert list(use.values()) == sorted(use.values(), reverse=True)
    assert max(use.values()) == pytest.approx(told["metrics"]["utilisation"])
    assert {"gpu.sm", "gpu.hbm.phy"} <= set(use)
    assert main(["run", str(tmp_path / "e.yaml")]) == 0
    assert "gpu.hbm.phy" in capsys.readouterr().out


def test_a_sweep_notices_that_its_trace_has_changed(tmp_path, capsys):
    """Limits of the scheduler are axes like any other; stored points belong to the trace's rows."""

    def write(tokens):
        row = {"input_length": tokens, "output_length": 3, "hash_ids": []}
        lines = [json.dumps({"timestamp": 1000 * i, **row}) for i in range(4)]
        (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")

    work = "{kind: serve, model: llama-3.1-8b, trace: t.jsonl, scheduler: {max_sequences: 8}}"
    (tmp_path / "s.yaml").write_text(
        f"kind: study\nbase:\n  machine: a100-sxm-80gb\n  workload: {work}\n"
        "axes:\n  workload.scheduler.max_sequences: {values: [4, 8]}\n"
        "objectives: {ttft_p99: min}\n"
    )
    sweep = ["sweep", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    write(100)
    assert main(sweep) == 0
    assert main(sweep) == 0
    write(3000)
    assert main(sweep) == 2
    assert "t.jsonl" in capsys.readouterr().err
