"""Page operations per second of the flash loop, one core, pages numbered beforehand.

`python -m pytest -m benchmark --benchmark-enable tests/benchmarks/test_flash_speed.py`
"""

import time

import numpy as np
import pytest

from opbyte.core.loops import compiled
from opbyte.hw_models.memory.flash_devices import load_flash
from opbyte.hw_models.memory.nand_kernel import loops
from opbyte.hw_models.memory.nand_kernel.layout import N_PROGRAMS, N_READS, block_of
from opbyte.hw_models.memory.nand_kernel.setup import job_of, numbers_of

PAGES = 1_000_000
#: Pattern, bytes of a request, requests outstanding.
CASES = {
    "long reads": ("seq", 256 << 10, 16),
    "reads of 64 KiB": ("seq", 64 << 10, 64),
    "random reads of 64 KiB": ("random", 64 << 10, 64),
    "random reads of 4 KiB": ("random", 4096, 64),
}


def rate(pattern, size, depth, name="mqsim-default"):
    """Return page operations per second of processor time, the best of three."""
    device = load_flash(name)
    count = PAGES * device.page_bytes // max(size, device.page_bytes)
    places = device.capacity_bytes // size
    at = np.arange(count) % places
    if pattern == "random":
        at = np.random.default_rng(1).integers(0, places, count)
    reads = np.zeros(count, np.int64)
    job = job_of(device, numbers_of(device, depth), at * size, np.full(count, size), reads)
    loop, best = compiled(loops._run, loops._FILES), 0.0
    for _ in range(3):
        block = block_of(job)
        start = time.process_time()
        loop(block, job.bytes, job.lpn, job.mask, job.memory)
        done = int(block[N_READS] + block[N_PROGRAMS])
        best = max(best, done / (time.process_time() - start))
    return best


#: What is asked of a whole core, page operations per second; a busy machine gives less. Half of
#: the operations of the last are mapping reads: data pages alone come at half of its rate.
BARS = {
    "long reads": 5e6, "reads of 64 KiB": 5e6, "random reads of 64 KiB": 4.5e6,
    "random reads of 4 KiB": 3.5e6,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each(benchmark, case):
    found = rate(*CASES[case])
    benchmark.extra_info["page_operations_per_s"] = found
    benchmark.pedantic(lambda: None)
    assert found > BARS[case]
