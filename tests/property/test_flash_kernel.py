"""The compiled flash loops against their readable twins, on drawn devices and streams."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.hw_models.memory.flash_devices import load_flash
from opbyte.hw_models.memory.flash_wear import filled
from opbyte.hw_models.memory.nand_kernel import loops, twin
from opbyte.hw_models.memory.nand_kernel.collect import collect
from opbyte.hw_models.memory.nand_kernel.setup import job_of, numbers_of
from opbyte.hw_models.memory.nand_kernel.twin_blocks import collect_twin

small = st.integers(1, 3)
devices = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 4), "chips": small, "dies": small, "planes": st.integers(1, 4),
        "blocks": st.sampled_from([10, 16]), "pages": st.sampled_from([4, 16]),
        "page": st.sampled_from(["4 KiB", "8 KiB"]), "read": st.sampled_from(["3 us", "75 us"]),
        "program": st.sampled_from(["75 us", "750 us"]),
        "channel_rate": st.sampled_from(["333 MB/s", "1.4 GB/s"]),
        "multiplane": st.booleans(), "cache_read": st.booleans(), "die_interleave": st.booleans(),
        "commands_first": st.booleans(),
        "allocation": st.sampled_from(["CWDP", "PDWC", "DCPW"]),
        "layout": st.sampled_from(["touch", "sequential"]), "whole_ns": st.booleans(),
        "overprovisioning": st.just(0.5), "erase": st.sampled_from(["0.1 ms", "3.8 ms"]),
        "merge": st.sampled_from(["none", "changed", "whole"]),
        "collection": st.fixed_dictionaries(
            {
                "policy": st.sampled_from(["greedy", "fifo", "sampled"]),
                "start": st.sampled_from([0.1, 0.3]), "stall": st.just(0.1),
                "first": st.sampled_from(["host", "flash"]), "copyback": st.booleans(),
            }
        ),
        "suspend": st.sampled_from(
            [{}, {"program": "20 us", "erase": "50 us", "resume": "5 us"}, {"program": "100 us"}]
        ),
        "pcie": st.sampled_from([{"rate": "4 GB/s"}, {"rate": "0.5 GB/s", "header": 0}]),
        "mapping": st.fixed_dictionaries(
            {"ideal": st.booleans(), "cache": st.sampled_from(["64 B", "512 B", "1 MiB"])}
        ),
        "buffer": st.sampled_from(
            [{"rate": "200 MB/s"}, {"rate": "3 GB/s", "size": "16 KiB"}, {"answers": False}]
        ),
        "host": st.sampled_from([{}, {"command": "1 us", "firmware": "3 us", "fetch": 3}]),
    }
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    devices, st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0, 50, 100]),
    st.sampled_from([None, 0.0, 0.7, 1.0]),
)  # fmt: skip
def test_equal_times_and_counts(changes, depth, seed, read_pct, fill):
    device = load_flash("mqsim-default", **changes)
    rng = np.random.default_rng(seed)
    sectors = device.capacity_bytes // 512
    count = int(rng.integers(1, 150))
    sizes = rng.integers(1, min(400 if seed % 2 else 64, sectors) + 1, count)
    at = (rng.random(count) * (sectors - sizes + 1)).astype(np.int64)
    writes = (rng.random(count) * 100 >= read_pct).astype(np.int64)
    stop = 1e-3 if seed % 3 == 0 else None
    blocks = None if fill is None else filled(device, fill, 1.0, seed)
    numbers = numbers_of(device, depth, stop, blocks is not None)
    job = job_of(device, numbers, at * 512, sizes * 512, writes, blocks)
    # The loop changes the blocks, the twin takes them over.
    theirs, ours = twin.replay(job), loops.replay(job)
    assert np.array_equal(ours[0][theirs[1] >= 0], theirs[0][theirs[1] >= 0])
    assert np.array_equal(ours[1], theirs[1])
    assert ours[2] == theirs[2]
    if stop is None:
        assert (ours[1] >= 0).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(8, 24), st.integers(2, 8), st.integers(0, 2), st.floats(0.2, 0.95),
    st.integers(0, 2**31),
)  # fmt: skip
def test_equal_collections(blocks, pages, policy, fill, seed):
    rng = np.random.default_rng(seed)
    logical = max(1, int((blocks - 5) * pages * fill))
    ops = rng.integers(0, logical, 600)
    ops[rng.random(600) < 0.1] *= -1
    ops = np.where(ops < 0, ops - 1, ops).astype(np.int64)
    arguments = (blocks, pages, logical, ops, policy, 2, 200, seed)
    found = collect(*arguments)
    assert found == collect_twin(*arguments)
    assert found[0] == max(0, np.count_nonzero(ops >= 0) - 200)
