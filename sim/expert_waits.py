"""How long the experts of a block wait for copies.

With m misses of k experts that are asked for, c the time of one copy, L the latency before the
first one and h the time that hides copies, a block that waits for all of them waits

    max(0, L + m c - h)

Where each expert runs once it is there, those that are there run first. Of w seconds of operators
each takes p = w / k, and the last to arrive ends the block: a line of two machines that take
pieces in one order (Johnson 1954), so that the block waits

    max(0, L + c - h - (k - m) p, L + m c - h - (k - 1) p)

An expectation m below 1 waits as one copy does, in the share m of the blocks.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.mapping_file import Cache
from opbyte.core.ops import Array
from opbyte.sim.copies import Copy
from opbyte.sim.expert_blocks import Blocks


def hidden_seconds(blocks: Blocks, prefetch: str) -> Array:
    """Return the time before each block's experts in which its copies run, (blocks, points)."""
    if prefetch == "none":
        return np.zeros_like(blocks.lead)
    if prefetch == "pre_attention":
        return blocks.ahead
    hidden = np.concatenate([blocks.last_window[None], blocks.windows])
    if prefetch == "next_block_gate":
        hidden[0] = 0.0
    return hidden


def block_waits(blocks: Blocks, misses: Array, asked: Array, copy: Copy, cache: Cache) -> Array:
    """Return how long each block waits for copies, (blocks, points).

    Args:
        misses: Experts to copy, (blocks, points).
        asked: Experts that run, (blocks, points).
    """
    some = np.minimum(misses, 1.0)
    hidden = hidden_seconds(blocks, cache.prefetch)
    if cache.waits == "block":
        return np.asarray(np.maximum(misses * copy.seconds + some * copy.start - hidden, 0.0))
    whole = np.maximum(misses, 1.0)
    running = np.minimum(asked, blocks.distinct)
    piece = blocks.work / np.maximum(running, 1.0)
    there = np.maximum(running - whole, 0.0)
    first = copy.start + copy.seconds - hidden - there * piece
    last = copy.start + whole * copy.seconds - hidden - (there + whole - 1.0) * piece
    return np.asarray(some * np.maximum(np.maximum(first, last), 0.0))
