"""Blocks of a `serve` work with mistakes: all at once, with place, path, rule and remedy."""

import pandas as pd
import pytest

import opbyte as ob
from opbyte.core.config import parse_document
from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine
from opbyte.workloads.serve import Fleet, Goal, Scheduling, Serve
from opbyte.workloads.works import work_from

TWO = {"replicas": 2}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "layered", "lead": 5}, "lead.*it is for fair, got 5"),
        ({"kind": "continuous", "groups": 4}, "groups.*for layered"),
        ({"aging": 3}, "aging.*for shortest and prefix"),
        ({"kind": "fair", "aging": 3}, "aging.*shortest and prefix"),
        ({"swap_space": "1 GiB"}, "swap_space.*for preempt: swap"),
        ({"kind": "prefix", "prefix_cache": False}, "prefix_cache.*what the cache holds"),
        ({"kv_blocks": 100, "memory": 0.5}, "memory.*beside kv_blocks"),
        ({"kv_blocks": True}, "kv_blocks.*must be a number, got true"),
    ],
)
def test_an_option_that_nobody_uses_is_refused(given, says):
    with pytest.raises(ob.OpbyteError, match=says):
        Serve("llama-3.1-8b", "sample-chat", scheduler=given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"router": "least_outstanding"}, "router.*several engines"),
        ({"slack": 3}, "slack.*for a fleet of several engines"),
        ({**TWO, "router": "round_robin", "slack": 3}, "slack.*for router prefix_affinity"),
        ({"replicas": True}, "replicas.*must be a number, got true"),
        ({"replicas": 1, "pools": {"prefill": 1, "decode": 1}}, "replicas.*beside pools"),
        ({**TWO, "via": "nvlink"}, "via.*from pool to pool"),
        ({**TWO, "failures": [{"replica": 2, "at": "1 s", "for": "1 s"}]}, "replica.*2 engines"),
        ({**TWO, "failures": [{"replica": 1, "at": "1 s", "for": "0 s"}]}, "must be some time"),
    ],
)
def test_a_fleet_with_a_mistake_is_refused(given, says):
    with pytest.raises(ob.OpbyteError, match=says):
        Serve("llama-3.1-8b", "sample-chat", fleet=given)


def test_what_is_used_is_taken():
    assert Scheduling.model_validate({"kind": "continuous", "lead": None}).lead is None
    assert Scheduling.model_validate({"kind": "my-own", "lead": 5, "aging": 3}).lead == 5
    assert Fleet.model_validate({"replicas": 1, "router": "least_outstanding"}).engines == 1
    assert Fleet.model_validate({**TWO, "router": "my-own", "slack": 3}).slack == 3


def test_a_goal_of_no_time_is_refused():
    with pytest.raises(ob.OpbyteError, match=r"ttft.*above 0"):
        Serve("llama-3.1-8b", "sample-chat", slo={"ttft": "0 s"})
    assert Goal.model_validate({"ttft": "1 s", "tpot": None}).ttft.value == 1.0


def test_all_mistakes_of_all_blocks_come_at_once_with_their_places():
    text = """kind: serve
model: llama-3.1-8b
trace: sample-chat
scheduler:
  kind: layered
  lead: 5
fleet:
  replicas: -1
slo: {ttft: 0 s}
speculate: {draft: none, acceptance: 0.5}
"""
    with pytest.raises(ConfigError) as caught:
        work_from(parse_document(text, "serve.yaml"))
    found = {p.path: (p.where, p.remedy) for p in caught.value.problems}
    assert found["scheduler.lead"][0].startswith("serve.yaml:6:")
    assert found["fleet.replicas"][0].startswith("serve.yaml:8:")
    assert found["slo.ttft"][0].startswith("serve.yaml:9:")
    assert found["speculate"][0].startswith("serve.yaml:10:")
    assert found["scheduler.lead"][1] == "leave it out, or use fair"
    assert len(found) == 4


def test_a_draft_must_have_the_models_vocabulary():
    draft = {"draft": "qwen3-0.6b", "tokens": 3, "acceptance": 0.5}
    says = "vocabulary of Llama-3.1-8B, 128256 tokens.*151936"
    with pytest.raises(ConfigError, match="(?i)" + says):
        Serve("llama-3.1-8b", "sample-chat", speculate=draft)
    with pytest.raises(ConfigError, match="(?i)" + says):
        ob.SpeculativeDecode("llama-3.1-8b", 1, 100, draft)


def test_a_swap_space_holds_a_block_at_least():
    frame = pd.DataFrame({"arrival_s": [0.0], "input_tokens": 9, "output_tokens": 2})
    work = Serve("llama-3.1-8b", frame, scheduler={"preempt": "swap", "swap_space": "1 MiB"})
    with pytest.raises(ConfigError, match=r"holds no block of 2 MiB, got 1 MiB\. raise swap_space"):
        ob.simulate(load_machine("a100-sxm-host"), work)
