"""The host's path to a storage device: its rate from its steps.

A thread reads or writes a request of c bytes. Its processor is busy for

    s(c) = command + copies * c / memcpy + c / page * fault

with no copy where the device writes into the user's buffer (`direct`), one out of the page cache
(`buffered`), page faults instead of system calls' copies (`mapped`), and one more where the bytes
are staged in a pinned buffer. The device serves one command after the other in

    d(c) = device command + c / B

and answers the first byte after its latency L. Of T threads with D commands in flight each, the
operational laws (Denning and Buzen, ACM Computing Surveys 10(3), 1978) bound the rate by

    X(c) = c * min(T / s(c), T * D / (s(c) + L + d(c)), 1 / d(c))

which deterministic service times reach. A cap that was measured lowers it further. Where a thread
waits for the copy over the links beyond, of which the slowest has rate B', s(c) has c / B' more.
What is staged out of the host's own memory takes T * memcpy, or a third of that memory's rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.blocks import Block
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.core.parameters import Bytes, BytesPerSecond, Seconds
from opbyte.core.routes import Software

#: Copies by the processor that an access makes, and whether it touches pages for the first time.
ACCESS = {"direct": (0, False), "buffered": (1, False), "mapped": (0, True)}

#: Bytes of memory traffic for each byte that is staged: it is read, the line that it is stored to
#: is fetched, and written back.
STAGED = 3.0


class HostIo(Block):
    """What one thread of a host takes for input and output."""

    command: Seconds
    """Processor time of one command: system call, file system, block layer, driver, completion."""
    memcpy: BytesPerSecond
    """Rate at which one thread copies memory."""
    fault: Seconds
    """Processor time of one page fault whose page is in the page cache."""
    page: Bytes
    """Bytes that one fault maps."""
    source: str | None = None


def path_rate(
    values: Any,
    io: str,
    port: str,
    software: Software,
    *,
    write: bool = False,
    neuron: float | None = None,
    beyond: Any = 0.0,
) -> Array:
    """Return the rate at which software moves bytes between a device and memory, (points,).

    Args:
        values: Parameter values of the machine by short path.
        io: Short path of the host's `io` block; empty where the host has none.
        port: Short path of the device's port, or of the host's memory where nothing but staging
            is asked for.
        software: How requests are made.
        write: Whether bytes go to the device.
        neuron: Bytes of one neuron that lie together, where requests are neurons.
        beyond: Seconds that a byte takes over the links beyond, for threads that wait for it.
    Raises:
        UncoveredError: If steps are asked for and the host has no `io`, or requests are neurons
            of a mapping without any.
    """
    cap: Any = np.inf
    if software.cap is not None and software.cap != "none":
        cap = software.cap.value
    onward = beyond if software.waits else 0.0
    if software.access is None or software.request is None:
        if not software.staged:
            return np.atleast_1d(np.asarray(cap, float))
        if not io or not port:
            raise UncoveredError("`staged` needs a host with memory and an `io` block. give it")
        rate = software.threads.value / (1.0 / values[f"{io}.memcpy"] + onward)
        memory = values[f"{port}.bandwidth"] * values.get(f"{port}.efficiency", 1.0)
        return np.atleast_1d(np.minimum(np.minimum(rate, memory / STAGED), cap))
    size = neuron if isinstance(software.request, str) else software.request.value
    if not io or size is None:
        what = "`neurons` and their `ffn.weight`" if io else "a host with an `io` block"
        raise UncoveredError(f"access: {software.access} to '{port}' needs {what}. give it")
    busy = thread_seconds(values, io, software, size) + size * onward
    device = device_seconds(values, port, size, write=write)
    latency = values.get(f"{port}.latency", 0.0)
    threads = software.threads.value
    flying = threads * software.depth.value
    rate = size * np.minimum(
        np.minimum(threads / busy, flying / (busy + latency + device)), 1.0 / device
    )
    return np.atleast_1d(np.minimum(rate, cap))


def thread_seconds(values: Any, io: str, software: Software, size: float) -> Any:
    """Return the processor time of one request of some bytes, seconds: s(c) above."""
    assert software.access is not None, "checked before"
    copies, faults = ACCESS[software.access]
    own = software.per_command.value if software.per_command else 0.0
    seconds = values[f"{io}.command"] + own
    seconds = seconds + (copies + software.staged) * size / values[f"{io}.memcpy"]
    if faults:
        seconds = seconds + size / values[f"{io}.page"] * values[f"{io}.fault"]
    return seconds


def device_seconds(values: Any, port: str, size: float, *, write: bool = False) -> Any:
    """Return the time that a device is busy with one command, seconds: d(c) above."""
    bandwidth = values[f"{port}.bandwidth"] * values.get(f"{port}.efficiency", 1.0)
    if write:
        bandwidth = values.get(f"{port}.write", bandwidth)
    return values.get(f"{port}.command", 0.0) + size / bandwidth
