"""Requests per second of the DRAM kernel, one core, addresses decoded beforehand.

`python -m pytest -m benchmark --benchmark-enable tests/benchmarks/test_dram_speed.py`
"""

import statistics
import time

import pytest

from opbyte.hw_models.memory.addresses import decode, pack
from opbyte.hw_models.memory.dram import memory
from opbyte.hw_models.memory.dram_kernel.replay import Replay
from opbyte.hw_models.memory.dram_kernel.setup import Controller, controller_numbers
from opbyte.hw_models.memory.patterns import PATTERNS, addresses_of
from opbyte.hw_models.memory.standards import load_standard

NAMES = ("ddr4-3200", "ddr5-4800", "lpddr5-6400", "hbm2-2000", "hbm3-6400", "hbm4-8000")
REQUESTS, SAMPLED = 1_000_000, 5_000_000


def rate(name, pattern, requests=REQUESTS):
    """Return requests per second of processor time, the best of three."""
    standard = load_standard(name)
    numbers = controller_numbers(standard, Controller())
    codes = pack(standard, decode(standard, addresses_of(standard, pattern, requests)))
    Replay(standard, numbers).take(codes[:100])
    best = 0.0
    for _ in range(3):
        replay, start = Replay(standard, numbers), time.process_time()
        replay.take(codes)
        best = max(best, requests / (time.process_time() - start))
    return best


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_exact(benchmark, name, pattern):
    benchmark.extra_info["requests_per_s"] = rate(name, pattern)
    benchmark.pedantic(lambda: None)


def test_bars(benchmark):
    """What is asked of a whole core; a busy machine gives less."""
    cells = {(n, p): rate(n, p) for n in NAMES for p in PATTERNS}
    mean = statistics.geometric_mean(cells.values())
    benchmark.extra_info.update(geometric_mean=mean, least=min(cells.values()))
    benchmark.pedantic(lambda: None)
    assert mean > 10e6
    assert statistics.geometric_mean(cells[n, "seq"] for n in NAMES) > 20e6
    assert min(cells.values()) > 4e6


def test_sampled_bars(benchmark):
    """Requests per second that a prefix stands for, and how far off that is."""
    rates, errors = [], []
    for name in NAMES:
        channel = memory(name)
        for pattern in PATTERNS:
            exact = channel.stream(pattern, requests=SAMPLED)
            seconds = []
            for _ in range(3):
                start = time.process_time()
                found = channel.stream(pattern, requests=SAMPLED, sample=True)
                seconds.append(time.process_time() - start)
            rates.append(SAMPLED / min(seconds))
            errors.append(abs(found.bandwidth_bytes_per_s / exact.bandwidth_bytes_per_s - 1))
    benchmark.extra_info.update(least=min(rates), mean_error=statistics.mean(errors))
    benchmark.pedantic(lambda: None)
    assert min(rates) > 300e6
    assert statistics.mean(errors) < 0.01
    assert max(errors) < 0.05
