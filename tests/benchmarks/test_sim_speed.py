"""How fast single simulations are, in a process that has warmed up."""

import numpy as np

import opbyte as ob
from opbyte.sim.simulate import evaluate


def test_one_event_level_decode_step_of_gpt_3(benchmark):
    machine = ob.load_machine("dgx-a100")
    model = ob.load_model("gpt-3-175b")
    contexts = iter(range(1000, 2048))

    def step():
        # Another context each time: nothing is remembered from the last step.
        return ob.simulate(machine, ob.Decode(model, 1, next(contexts)), fidelity="event")

    result = benchmark.pedantic(step, rounds=300, warmup_rounds=20)
    assert result.seconds > 0
    assert benchmark.stats.stats.median <= 2e-3


def test_analytic_points_of_one_operator_table(benchmark):
    points = 20_000
    machine = ob.load_machine("sn40l-node")
    mapping = machine.mapping()
    rates = np.linspace(0.8e12, 4e12, points)
    machine = machine.with_values({"rdu.hbm.phy.bandwidth": rates})
    model = ob.load_model("llama-3.1-8b")
    batch = np.tile([1.0, 2.0, 4.0, 8.0], points // 4)

    def all_points():
        return evaluate(machine, ob.Decode(model, batch, 4096), mapping)

    outcome = benchmark(all_points)
    assert outcome.metrics["seconds"].shape == (points,)
    assert points / benchmark.stats.stats.median >= 50_000


def test_single_gemms(benchmark):
    import pandas as pd

    rows = 100_000
    rng = np.random.default_rng(0)
    sizes = {name: rng.integers(1, 8192, rows) for name in "mnk"}
    frame = pd.DataFrame({"kind": "gemm", "dtype": "bf16", **sizes})
    out = benchmark(ob.simulate_batch, "a100-sxm-80gb", frame)
    assert (out["seconds"] > 0).all()
    assert rows / benchmark.stats.stats.median >= 100_000


def test_every_context_of_one_split_of_a_70b_model_in_memory(benchmark):
    """CENT: 80 stages of ten channels each, 32 contexts from 128 to 4096 tokens."""
    machine, model = ob.load_machine("cent-32"), ob.load_model("llama-2-70b")
    default = machine.mapping("artifact")
    stages = default.parallel["all"].model_copy(update={"pp": 80})
    mapping = default.model_copy(update={"parallel": {"all": stages}})
    contexts = np.arange(128.0, 4097.0, 128.0)

    def every_context():
        return evaluate(machine, ob.Decode(model, 80.0, contexts), mapping)

    outcome = benchmark.pedantic(every_context, rounds=5, warmup_rounds=1)
    assert outcome.metrics["tpot"].shape == (32,)
    assert benchmark.stats.stats.median <= 1.0
