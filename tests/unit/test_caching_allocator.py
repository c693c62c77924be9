"""Does the allocator of training keep the blocks that PyTorch's keeps?"""

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.sim.training.caching_allocator import Held, fill_blocks, replayed

KIB, MIB = 2**10, 2**20


def held(*events, limit=float("inf")):
    """Play events: bytes for a tensor that comes, -i for the i-th tensor that goes."""
    sizes = [e for e in events if e > 0]
    number, coded = 0, []
    for event in events:
        number += event > 0
        coded.append(number if event > 0 else event)
    return replayed(np.array(coded), np.array(sizes), limit)


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB), (10 * MIB + 1, 12 * MIB), (33 * MIB, 34 * MIB),
    ],
)  # fmt: skip
def test_a_tensor_gets_a_segment_of_its_class(size, segment):
    assert held(size) == Held(segment, size, fits=True)


def test_small_tensors_share_a_segment_and_large_ones_do_not_use_it():
    assert held(*[512] * 4096).reserved == 2 * MIB
    assert held(*[512] * 4097).reserved == 4 * MIB
    assert held(MIB, MIB, 2 * MIB).reserved == 22 * MIB


def test_tensors_below_10_mib_share_a_segment_of_20():
    assert held(*[5 * MIB] * 4).reserved == 20 * MIB
    assert held(*[6 * MIB] * 4).reserved == 40 * MIB


def test_a_block_that_is_free_is_taken_again_and_what_is_left_of_it_too():
    assert held(40 * MIB, -1, 24 * MIB, 16 * MIB).reserved == 40 * MIB
    # A rest of 1 MiB is no block of its own.
    assert held(40 * MIB, -1, 39 * MIB, 1 * MIB + 1).reserved == 60 * MIB
    assert held(40 * MIB, -1, 38 * MIB, 2 * MIB).reserved == 40 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken():
    # 30 leaves the block of 32, so that 40 is still there for 40.
    assert held(40 * MIB, 32 * MIB, -1, -2, 30 * MIB, 40 * MIB).reserved == 72 * MIB


def test_neighbours_join_but_not_across_segments():
    apart = held(40 * MIB, 40 * MIB, -1, -2, 80 * MIB)
    assert apart == Held(160 * MIB, 80 * MIB, fits=True)
    assert apart.holes == 80 * MIB
    # The same bytes in one segment.
    whole = held(80 * MIB, -1, 40 * MIB, 40 * MIB, -2, -3, 80 * MIB)
    assert whole == Held(80 * MIB, 80 * MIB, fits=True)


def test_a_hole_that_is_too_small_stays():
    # Every other block of 20 goes: 40 find no room in holes of 20.
    first = [80 * MIB, -1, *[20 * MIB] * 4, -2, -4]
    assert held(*first, 40 * MIB).holes == 120 * MIB - 80 * MIB


def test_a_full_memory_gives_back_whole_segments():
    events = (40 * MIB, 40 * MIB, -1, -2, 80 * MIB)
    assert held(*events, limit=100 * MIB) == Held(80 * MIB, 80 * MIB, fits=True)
    assert not held(*events, limit=79 * MIB).fits
    # A segment with one tensor in it stays.
    assert not held(40 * MIB, -1, 20 * MIB, 80 * MIB, limit=100 * MIB).fits


class Twin:
    """The same rules, written for people: segments are lists of [bytes, tensor or None]."""

    def __init__(self, limit):
        self.limit = limit
        self.segments = []
        self.where = {}
        self.reserved = self.asked = self.most_reserved = self.most_asked = 0

    def take(self, tensor, asked):
        size = -(-asked // 512) * 512
        small = size <= MIB
        fits = [
            (block[0], s, i)
            for s, (kind, blocks) in enumerate(self.segments)
            for i, block in enumerate(blocks)
            if kind == small and block[1] is None and block[0] >= size
        ]
        if fits:
            _, s, i = min(fits)
        else:
            whole = -(-size // (2 * MIB)) * 2 * MIB
            segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else whole
            if self.reserved + segment > self.limit:
                for _, blocks in self.segments:
                    if len(blocks) == 1 and blocks[0][1] is None:
                        self.reserved -= blocks.pop()[0]
            if self.reserved + segment > self.limit:
                return False
            self.segments.append((small, [[segment, None]]))
            self.reserved += segment
            s, i = len(self.segments) - 1, 0
        self.most_reserved = max(self.most_reserved, self.reserved)
        blocks = self.segments[s][1]
        left = blocks[i][0] - size
        if left >= 512 if small else left > MIB:
            blocks[i : i + 1] = [[size, tensor], [left, None]]
        else:
            blocks[i][1] = tensor
        self.where[tensor] = s
        self.asked += asked
        self.most_asked = max(self.most_asked, self.asked)
        return True

    def give(self, tensor, asked):
        blocks = self.segments[self.where.pop(tensor)][1]
        (i,) = (i for i, block in enumerate(blocks) if block[1] == tensor)
        blocks[i][1] = None
        for first in (i, i - 1):
            pair = blocks[first : first + 2] if first >= 0 else []
            if len(pair) == 2 and pair[0][1] is None and pair[1][1] is None:
                blocks[first : first + 2] = [[pair[0][0] + pair[1][0], None]]
        self.asked -= asked


SIZES = st.one_of(
    st.integers(1, 4 * KIB), st.integers(1, 4 * MIB), st.integers(1, 60).map(lambda n: n * MIB)
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(SIZES, st.floats(0, 1)), min_size=1, max_size=80),
    st.sampled_from([float("inf"), 300 * MIB, 900 * MIB]),
)
def test_the_loop_holds_what_its_twin_holds(steps, limit):
    twin, events, sizes, alive, fits = Twin(limit), [], [], [], True
    for size, chance in steps:
        if alive and chance < 0.45:
            tensor = alive.pop(int(chance / 0.45 * len(alive)))
            twin.give(tensor, sizes[tensor])
            events.append(-tensor - 1)
            continue
        sizes.append(size)
        events.append(len(sizes))
        fits = twin.take(len(sizes) - 1, size)
        if not fits:
            break
        bisect.insort(alive, len(sizes) - 1)
    found = replayed(np.array(events), np.array(sizes), limit)
    assert found == Held(twin.most_reserved, twin.most_asked, fits=fits)
    assert found.reserved >= found.asked or not sizes


def test_the_compiled_loop_is_the_plain_one():
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 40 * MIB, 300)
    events = np.concatenate([np.arange(1, 301), -rng.permutation(300)[:200] - 1, np.arange(1, 2)])
    blocks = np.full((2 * len(events) + 1, 6), -1)
    totals = np.zeros(8, np.int64)
    free, of = np.empty(len(blocks), np.int64), np.full(300, -1)
    fill_blocks(events[:-1], sizes, 2**62, blocks, free, of, totals)
    found = replayed(events[:-1], sizes)
    assert (found.reserved, found.asked) == (totals[3], totals[5])
