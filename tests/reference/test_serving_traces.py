"""Real traces through machines: they run to the end, and nothing is lost on the way."""

import os
from pathlib import Path

import numpy as np
import pytest

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.workloads.serve import Serve

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPBYTE_REFERENCE", ROOT.parent / "shared")) / "traces"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no request traces in {DATA}")


@pytest.fixture(scope="module")
def served():
    """Azure's coding service, Mixtral 8x7B, 4 of the 8 H100 of a node."""
    machine = load_machine("dgx-h100")
    whole = machine.mapping()
    four = {name: part.model_copy(update={"tp": 4}) for name, part in whole.parallel.items()}
    work = Serve(
        "mixtral-8x7b", DATA / "azure_llm_2023_code.csv",
        scheduler={"max_batched_tokens": 2048, "depth": 2}, slo={"ttft": "2 s", "tpot": "0.1 s"},
    )  # fmt: skip
    return work, ob.simulate(machine, work, whole.model_copy(update={"parallel": four}))


def test_every_request_and_token_is_there(served):
    work, result = served
    frame = result.requests
    assert len(frame) == len(work.trace) == 8819
    assert (frame["status"] == "served").all()
    assert frame["output_tokens"].sum() == 245_896
    assert result.tokens_per_s * result.seconds == pytest.approx(245_896)
    times = frame[["arrival_s", "scheduled_s", "first_token_s", "last_token_s"]].to_numpy()
    assert (np.diff(times, axis=1) >= 0).all()


def test_what_a_goal_asks_for_and_the_series_over_time(served):
    work, result = served
    assert 0.9 < result.goodput_per_s / result.requests_per_s < 1.0
    series = result.outcome.detail["series"]
    assert series["end_s"].is_monotonic_increasing
    assert series["running"].max() <= work.scheduler.max_sequences
    assert series["tokens"].max() <= work.scheduler.max_batched_tokens
    # Nothing is lost and nothing computed twice: prompts, and answers but for their last token.
    due = int((work.trace.input_tokens + work.trace.output_tokens - 1).sum())
    assert result.preempted == 0
    if len(series) == result.steps:
        assert series["tokens"].sum() == due


def test_a_burst_of_a_hundred_times_the_rate_is_served_in_the_end():
    burst = {
        "kind": "trace", "requests": 3000,
        "arrivals": {"kind": "bursts", "rate": "1 requests/s", "factor": 100, "start": "20 s",
                     "length": "20 s", "every": "10 h"},
        "lengths": {"input": 400, "output": 60},
    }  # fmt: skip
    result = ob.simulate("a100-sxm-80gb", Serve("llama-3.1-8b", burst))
    frame = result.requests
    assert (frame["status"] == "served").all()
    inside = frame["arrival_s"].between(20, 40)
    assert inside.sum() > 1500
    ttft = frame["first_token_s"] - frame["arrival_s"]
    assert ttft[inside].median() > 20 * ttft[frame["arrival_s"] < 19].median()
