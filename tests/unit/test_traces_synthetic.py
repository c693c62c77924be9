"""Synthetic traces: closed-form statistics, seeds, definitions as users write them."""

import math

import numpy as np
import pytest

from opbyte.core.config import parse_document
from opbyte.core.errors import ConfigError
from opbyte.workloads.traces import (
    Bursts,
    Clients,
    Gamma,
    Lengths,
    Lognormal,
    Poisson,
    RequestTrace,
    SyntheticTrace,
    Uniform,
    load_trace,
    read_trace,
    retimed,
    write_trace,
)
from opbyte.workloads.traces.load import SAMPLES
from opbyte.workloads.traces.synthetic import synthetic_from

N = 200_000
FIXED = {"input": 100, "output": 10}


def made(arrivals, requests=N, lengths=FIXED, seed=1, **more):
    given = {"requests": requests, "arrivals": arrivals, "lengths": lengths, "seed": seed} | more
    return load_trace(given)


def gaps(trace):
    return np.diff(trace.arrival_s, prepend=0.0)


def test_poisson_gaps_are_exponential():
    """Mean within 4 standard errors, a share of e^-k above k means, neighbours uncorrelated."""
    found = gaps(made({"kind": "poisson", "rate": "4 requests/s"})) * 4.0
    assert abs(found.mean() - 1) < 4 / math.sqrt(N)
    for k in (0.5, 1, 2, 4):
        due = math.exp(-k)
        assert abs((found > k).mean() - due) < 4 * math.sqrt(due / N)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / math.sqrt(N)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_their_mean_variation_and_skewness(cv):
    """A gamma distribution's skewness is twice its coefficient of variation."""
    found = gaps(made({"kind": "gamma", "rate": "4 requests/s", "cv": cv})) * 4.0
    assert found.mean() == pytest.approx(1, abs=5 * cv / math.sqrt(N))
    assert found.std() == pytest.approx(cv, rel=0.03)
    assert ((found - 1) ** 3).mean() / cv**3 == pytest.approx(2 * cv, rel=0.15)


def test_gamma_without_variation_is_a_clock():
    trace = made({"kind": "gamma", "rate": "4 requests/s", "cv": 0}, requests=8)
    assert trace.arrival_s.tolist() == [0.25 * i for i in range(1, 9)]


def test_one_burst_of_a_hundred_times():
    """Counts inside and outside of the window are Poisson with the integral of the rate."""
    burst = {"kind": "bursts", "rate": "10 requests/s", "factor": 100, "start": "50 s"}
    times = made(burst | {"length": "20 s"}, requests=22_000).arrival_s
    for start, stop, due in ((0, 50, 500), (50, 70, 20_000), (50, 55, 5_000), (70, 120, 500)):
        count = ((times >= start) & (times < stop)).sum()
        assert abs(count - due) < 4 * math.sqrt(due), (start, stop)


def test_a_square_wave():
    wave = {"kind": "bursts", "rate": "10 requests/s", "factor": 9, "start": "3 s"}
    trace = made(wave | {"length": "2 s", "every": "8 s"})
    times = trace.arrival_s
    assert (np.diff(times) >= 0).all()
    periods = int((times[-1] - 3) // 8)
    phase = (times[times >= 3] - 3) % 8
    inside = (phase[times[times >= 3] < 3 + 8 * periods] < 2).sum()
    outside = (phase[times[times >= 3] < 3 + 8 * periods] >= 2).sum()
    assert abs(inside - 180 * periods) < 4 * math.sqrt(180 * periods)
    assert abs(outside - 60 * periods) < 4 * math.sqrt(60 * periods)
    assert abs((times < 3).sum() - 30) < 4 * math.sqrt(30)


def test_a_factor_of_one_is_poisson():
    same = {"rate": "10 requests/s", "factor": 1, "start": "3 s", "length": "2 s"}
    poisson = made({"kind": "poisson", "rate": "10 requests/s"}, requests=1000)
    for more in ({}, {"every": "8 s"}):
        trace = made({"kind": "bursts"} | same | more, requests=1000)
        assert trace.arrival_s == pytest.approx(poisson.arrival_s, rel=1e-9)


def test_a_closed_loop_has_clients_and_no_arrivals():
    trace = made({"kind": "closed_loop", "concurrency": 8, "think": "2 s"}, requests=5)
    assert not trace.timed
    assert trace.client.concurrency == 8
    assert trace.client.think_s.tolist() == [2.0] * 5
    assert trace.describe()["concurrency"] == 8
    spread = {"kind": "closed_loop", "concurrency": 8, "think": "2 s", "spread": "exponential"}
    think = made(spread).client.think_s
    assert think.mean() == pytest.approx(2.0, abs=4 * 2 / math.sqrt(N))
    assert think.std() == pytest.approx(2.0, rel=0.02)
    assert made({"kind": "closed_loop", "concurrency": 1}, requests=3).client.think_s.sum() == 0


def test_lognormal_lengths_have_their_mean_and_variation():
    lengths = {"input": {"kind": "lognormal", "mean": 800, "cv": 1.5}, "output": 1}
    found = made({"kind": "poisson", "rate": "1 Hz"}, lengths=lengths).input_tokens
    assert found.mean() == pytest.approx(800, abs=4 * 1200 / math.sqrt(N))
    assert found.std() == pytest.approx(1200, rel=0.05)
    assert np.log(found).std() == pytest.approx(math.sqrt(math.log(1 + 1.5**2)), rel=0.01)
    assert np.median(found) == pytest.approx(800 / math.sqrt(1 + 1.5**2), rel=0.02)


def test_lengths_are_cut_off_at_their_ends():
    random = np.random.default_rng(0)
    found = Lognormal(mean=800, cv=3, least=100, most=1000).draw(10_000, random)
    assert found.min() == 100
    assert found.max() == 1000
    assert Lognormal(mean=800, cv=0).draw(5, random).tolist() == [800] * 5


def test_uniform_lengths_reach_both_ends_equally():
    found = Uniform(least=3, most=7).draw(N, np.random.default_rng(0))
    counts = np.bincount(found, minlength=9)
    assert counts[[0, 1, 2, 8]].sum() == 0
    assert (np.abs(counts[3:8] - N / 5) < 4 * math.sqrt(N / 5)).all()


def test_pairs_of_a_trace_stay_pairs(tmp_path):
    pairs = RequestTrace(np.zeros(3), [10, 20, 30], [1, 2, 3], timed=False)
    write_trace(pairs, tmp_path / "pairs.jsonl")
    definition = {
        "requests": 9000,
        "arrivals": {"kind": "poisson", "rate": "1 Hz"},
        "lengths": {"trace": "pairs.jsonl"},
    }
    trace = load_trace(definition, folder=tmp_path)
    assert (trace.input_tokens == 10 * trace.output_tokens).all()
    assert (np.abs(np.bincount(trace.output_tokens)[1:] - 3000) < 4 * math.sqrt(3000)).all()
    with pytest.raises(ConfigError, match="does not exist"):
        load_trace(definition, folder=tmp_path / "elsewhere")


def test_seeds_and_streams():
    poisson = {"kind": "poisson", "rate": "4 requests/s"}
    lengths = {"input": {"kind": "uniform", "least": 1, "most": 10**6}, "output": 5}
    one, again = (made(poisson, 50, lengths, seed=7) for _ in range(2))
    other = made(poisson, 50, lengths, seed=8)
    clock = made({"kind": "gamma", "rate": "9 requests/s", "cv": 0}, 50, lengths, seed=7)
    assert one.arrival_s.tolist() == again.arrival_s.tolist()
    assert one.input_tokens.tolist() == again.input_tokens.tolist()
    assert one.arrival_s.tolist() != other.arrival_s.tolist()
    assert one.input_tokens.tolist() != other.input_tokens.tolist()
    assert one.input_tokens.tolist() == clock.input_tokens.tolist()


def test_shared_prefixes():
    lengths = {"input": {"kind": "uniform", "least": 1, "most": 400}, "output": 5}
    prefix = {"texts": 3, "tokens": 100, "block_tokens": 32}
    trace = made({"kind": "poisson", "rate": "1 Hz"}, 2000, lengths, prefix=prefix)
    assert trace.prefix.block_tokens == 32
    assert (trace.prefix.counts == np.ceil(trace.input_tokens / 32)).all()
    texts, own = set(), set()
    for row, tokens in enumerate(trace.input_tokens.tolist()):
        ids = trace.prefix.of(row).tolist()
        shared = min(100 // 32, tokens // 32)
        if shared:
            texts.add(ids[0] // 3)
            assert ids[:shared] == [ids[0] + j for j in range(shared)]
            assert ids[0] in (0, 3, 6)
        assert min(ids[shared:], default=9) >= 9
        assert own.isdisjoint(ids[shared:])
        own.update(ids[shared:])
    assert texts == {0, 1, 2}
    shared = np.minimum(3, trace.input_tokens // 32).sum()
    bound = trace.describe()["prefix_reuse_bound"] * len(trace.prefix.ids)
    assert shared - 9 <= round(bound) <= shared


def test_other_arrivals_for_the_same_requests():
    trace = RequestTrace(np.zeros(3), [10, 20, 30], [1, 2, 3], timed=False)
    open_ = retimed(trace, Poisson(rate="5 requests/s"), seed=2)
    assert open_.timed
    assert open_.input_tokens.tolist() == [10, 20, 30]
    closed = retimed(open_, Clients(concurrency=2))
    assert not closed.timed
    assert closed.client.concurrency == 2


GOOD = """\
kind: trace
requests: 20
seed: 3
arrivals: {kind: gamma, rate: {value: 4 requests/s, source: "guess", range: [1 Hz, 9 req/s]}, cv: 2}
lengths:
  input: {kind: lognormal, mean: 800, cv: 1.5, most: 4096}
  output: 128
"""


def told(text):
    with pytest.raises(ConfigError) as caught:
        synthetic_from(parse_document(text, "t.yaml"))
    return str(caught.value)


def test_a_definition_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    trace = load_trace(path)
    assert len(trace) == 20
    assert trace.name == "mine"
    assert trace.source == "synthetic: gamma, seed 3"
    found = synthetic_from(parse_document(GOOD))
    assert found.arrivals.rate.source == "guess"
    assert SyntheticTrace.model_validate(found.model_dump()) == found


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed: 3", "sead: 3", ["t.yaml:3:1", "'sead'", "Did you mean 'seed'?"]),
        ("kind: gamma", "kind: gama", ["t.yaml:4:", "'gama'", "Did you mean 'gamma'?"]),
        ("cv: 2}", "vc: 2}", ["arrivals", "'vc'"]),
        ("4 requests/s", "4", ["arrivals.rate", "a rate of requests needs a unit", "requests/s"]),
        ("4 requests/s", "0 requests/s", ["arrivals.rate", "inside its own range"]),
        ("[1 Hz", "[1 GHz", ["arrivals.rate", "start with its lower end"]),
        ("4 requests/s", "4 GB/s", ["arrivals.rate", "4 GB/s"]),
        ("requests: 20", "requests: 0", ["t.yaml:2:", "must be at least 1"]),
        ("requests: 20\n", "", ["the key 'requests' is missing"]),
        ("cv: 2}", "cv: -2}", ["arrivals.cv", "must be at least 0"]),
        ("output: 128", "output: 0", ["lengths.output", "must be at least 1"]),
        ("output: 128", "output: {kind: uniform, least: 9, most: 2}", ["least must be at most"]),
        ("  output: 128\n", "", ["lengths", "either both input and output, or trace"]),
        ("output: 128", "output: 128\n  trace: t.csv", ["either both input and output"]),
        ("kind: lognormal", "kind: lognorm", ["lengths.input", "Did you mean 'lognormal'?"]),
    ],
)
def test_mistakes_in_a_definition_are_told_with_place_and_remedy(old, new, words):
    assert old in GOOD
    text = told(GOOD.replace(old, new))
    for word in words:
        assert word in text, text


def test_all_mistakes_are_told_at_once():
    text = told(GOOD.replace("seed: 3", "sead: 3").replace("128", "0").replace("cv: 2}", "cv: -2}"))
    assert len(text.splitlines()) == 3


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be above 0, got 0 Hz"):
        Poisson(rate="0 requests/s")


def test_a_period_shorter_than_its_burst_is_refused():
    with pytest.raises(ValueError, match="every must be at least length"):
        Bursts(rate="1 Hz", factor=2, length="5 s", every="4 s")


def test_python_and_yaml_make_the_same():
    spec = SyntheticTrace(
        requests=20,
        seed=3,
        arrivals=Gamma(rate="4 requests/s", cv=2),
        lengths=Lengths(input=Lognormal(mean=800, cv=1.5, most=4096), output=128),
    )
    one, other = spec.generate(), synthetic_from(parse_document(GOOD)).generate()
    assert one.arrival_s.tolist() == other.arrival_s.tolist()
    assert one.input_tokens.tolist() == other.input_tokens.tolist()
    assert load_trace(spec).arrival_s.tolist() == one.arrival_s.tolist()


@pytest.mark.parametrize("name", ["sample-bursts", "sample-chat"])
def test_shipped_samples_are_what_their_definitions_draw(name):
    made_now, shipped = load_trace(SAMPLES / f"{name}.yaml"), load_trace(name)
    assert len(shipped) >= 200
    assert shipped.arrival_s == pytest.approx(made_now.arrival_s, rel=1e-9)
    for column in ("input_tokens", "output_tokens"):
        assert np.abs(getattr(shipped, column) - getattr(made_now, column)).max() <= 1
    if made_now.prefix is not None:
        assert shipped.prefix.ids.tolist() == made_now.prefix.ids.tolist()
    assert (SAMPLES / f"{name}.jsonl").stat().st_size < 50_000


def test_a_wrong_name_of_a_sample_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'sample-chat'"):
        load_trace("sample-chats")


def test_paths_and_traces_are_taken_as_they_are(tmp_path):
    trace = load_trace("sample-chat")
    assert load_trace(trace) is trace
    path = write_trace(trace, tmp_path / "no_ending")
    assert len(load_trace(path)) == len(read_trace(path)) == 300
