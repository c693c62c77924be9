"""How fast traces are served, after warm-up, on one core.

Lengths are drawn to be those of long chats (means 2,340 and 439 tokens, as ShareGPT's to 8K); the
rate is 80 % of what the engine sustains.
"""

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.prices import StepPrices
from opbyte.sim.serving.server import Server
from opbyte.workloads.serve import Serve

REQUESTS = 10_000
RATE = 1.74


@pytest.fixture(scope="module")
def work() -> Serve:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / RATE, REQUESTS)),
            "input_tokens": np.clip(rng.lognormal(7.3, 1.0, REQUESTS), 4, 7900).astype(int),
            "output_tokens": np.clip(rng.lognormal(5.7, 0.85, REQUESTS), 2, 2000).astype(int),
        }
    )
    limits = {"max_batched_tokens": 512, "max_sequences": 256}
    return Serve("llama-3.1-8b", frame, scheduler=limits)


@pytest.fixture(scope="module")
def server(work: Serve) -> Server:
    machine = load_machine("a100-sxm-80gb")
    return Server.of(machine, work, machine.mapping())


def test_the_compiled_loop(benchmark, work, server):
    served = benchmark.pedantic(server.serve, (work.trace,), rounds=5, warmup_rounds=1)
    assert served.served.all()
    assert served.steps / benchmark.stats.stats.median >= 300_000


def test_the_plug_in(benchmark, work, server):
    readable = Server(server.prices, server.scheduling, server.blocks, compiled=False)
    few = work.trace[:1000]
    served = benchmark.pedantic(readable.serve, (few,), rounds=3, warmup_rounds=1)
    assert served.served.all()
    assert served.steps / benchmark.stats.stats.median >= 3_000


def test_prices_of_all_steps(benchmark):
    machine, model = load_machine("a100-sxm-80gb"), ob.load_model("llama-3.1-8b")
    limits = {"max_tokens": 8192, "max_sequences": 256}
    benchmark.pedantic(StepPrices.build, (machine, model), limits, rounds=3, warmup_rounds=1)
    assert benchmark.stats.stats.median <= 2.5
