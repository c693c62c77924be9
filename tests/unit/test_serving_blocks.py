"""Blocks of a KV cache: who holds them, and what freed ones still know."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from opbyte.sim.serving.blocks import BlockPool


def test_blocks_of_tokens_are_rounded_up():
    pool = BlockPool(8, 16)
    assert [pool.needed(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_the_oldest_freed_block_goes_first_and_the_end_of_a_sequence_before_its_start():
    pool = BlockPool(4, 1)
    first, second = pool.take(2), pool.take(2)
    for i, block in enumerate([*first, *second]):
        pool.know(block, i)
    pool.give(second)
    pool.give(first)
    assert pool.take(1) == [second[1]]
    assert pool.found([2, 3]) == [second[0]]
    assert pool.take(2) == [second[0], first[1]]
    assert pool.found([0, 1]) == [first[0]]


def test_two_hold_the_same_content():
    pool = BlockPool(4, 1)
    mine = pool.take(2)
    pool.know(mine[0], "a")
    found = pool.found(["a", "b"])
    assert found == mine[:1]
    assert pool.idle(found) == 0
    pool.hold(found)
    pool.give(mine)
    assert pool.free == 3
    pool.give(found)
    assert pool.free == 4
    assert pool.idle(pool.found(["a"])) == 1


def test_nothing_is_known_without_memory():
    pool = BlockPool(2, 1, remember=False)
    block = pool.take(1)
    pool.know(block[0], "a")
    assert pool.found(["a"]) == []


def test_more_than_there_is_can_not_be_taken():
    with pytest.raises(IndexError, match="3 blocks of 2"):
        BlockPool(2, 1).take(3)


class Pool(RuleBasedStateMachine):
    """Sequences take, find, hold and give; blocks are conserved at every step."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6, 1)
        self.held: list[list[int]] = []
        self.next = 0

    @rule(count=st.integers(0, 3))
    def take(self, count):
        if count > self.pool.free:
            with pytest.raises(IndexError):
                self.pool.take(count)
            return
        blocks = self.pool.take(count)
        for block in blocks:
            self.pool.know(block, self.next)
            self.next += 1
        self.held.append(blocks)

    @rule(key=st.integers(0, 20), length=st.integers(1, 3))
    def find(self, key, length):
        found = self.pool.found(range(key, key + length))
        self.pool.hold(found)
        self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data):
        self.pool.give(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def blocks_are_conserved(self):
        held = {block for blocks in self.held for block in blocks}
        assert self.pool.free == self.pool.total - len(held)


Pool.TestCase.settings = settings(max_examples=60, deadline=None)
TestPool = Pool.TestCase
