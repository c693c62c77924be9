"""Demand of copies from the memory of one group of devices to that of another.

A transfer reads its input at a port of the sender, crosses links and writes at a port of the
receiver, all at once:

    t = sum of link latencies + max(bytes / rate of each resource)

The latency is one way, and holds whatever starts the copy (half of a measured round trip); software
that says what a command costs adds that. Where nothing is sent there is none.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps


def with_transfers(placed: PlacedOps, crossing: Array, latencies: Array) -> tuple[Array, Array]:
    """Return bytes on each resource with those of transfers, and the transfers' latency.

    Args:
        crossing: Bytes of all other operators, (ops, resources, 1 or points).
        latencies: Of each resource, (resources, points).
    Returns:
        (ops, resources, points) bytes of one device, and (ops, points) seconds.
    """
    table, moved = placed.table, placed.moved["activation"]
    points = max(crossing.shape[2], table["payload"].shape[1], moved.shape[1])
    crossing = np.broadcast_to(crossing, (*crossing.shape[:2], points)).copy()
    seconds = np.zeros((len(placed), max(points, latencies.shape[1])))
    for one in placed.transfers:
        row = int(np.searchsorted(placed.op_of, one.op))
        written = table["out_bytes"][row]
        crossing[one.op, one.source] = moved[one.op] - written
        crossing[one.op, one.target] = written
        sends = table["payload"][row] > 0.0
        seconds[one.op] += np.where(sends, one.command, 0.0)
        for link, share in zip(one.links, one.shares, strict=True):
            crossing[one.op, link] = share * table["payload"][row]
            seconds[one.op] += np.where(sends, latencies[link], 0.0)
    return crossing, seconds
