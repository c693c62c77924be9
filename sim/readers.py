"""Several readers of one CXL device: GPUs whose copy engines draw from the same expander.

Each reader goes through iterations: b bytes come from the device, and c seconds of computation use
them. With `prefetch` the bytes of the next iteration come meanwhile, else before.

**analytic** adds up demands. With r the rate of one reader alone, n readers and d devices of R,

    seconds of an iteration = max(alone, n b / (d R))    alone = max(c, b / r), or c + b / r

**event** lets them meet. Readers that copy share what the devices grant to as many of them: with k
copying, k times the bytes that an engine keeps in flight wait at the devices, whose latency grows
with the load (`opbyte.hw_models.memory.cxl`, Little's law). Readers start in step, as those of one
data-parallel job do after each all-reduce, or at drawn phases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.core.units import is_number
from opbyte.hw_models.memory.cxl import Cxl
from opbyte.hw_models.memory.cxl_flits import LINE

__all__ = ["Reader", "Shared", "shared_reads"]

_DONE = 1e-12


@dataclass(frozen=True)
class Reader:
    """What every reader does in an iteration.

    Attributes:
        bytes: That it draws from the devices.
        compute_s: Seconds that it computes.
        rate: Of its own link, bytes/s.
        in_flight: Bytes that its engine keeps under way.
        path_s: From the engine to the device's port and back, seconds.
        prefetch: Bytes of the next iteration come while this one computes.
    """

    bytes: float
    compute_s: float
    rate: float
    in_flight: float
    path_s: float = 0.0
    prefetch: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: If one makes no sense.
        """
        for name in ("bytes", "rate", "in_flight"):
            value = getattr(self, name)
            if not is_number(value) or not 0.0 < value < float("inf"):
                raise ConfigError.one("", f"reader.{name}", "must be above 0", value)
        for name in ("compute_s", "path_s"):
            value = getattr(self, name)
            if not is_number(value) or not 0.0 <= value < float("inf"):
                rule = "must not be below 0"
                raise ConfigError.one("", f"reader.{name}", rule, value)
        if not isinstance(self.prefetch, bool):
            raise ConfigError.one("", "reader.prefetch", "must be true or false", self.prefetch)


@dataclass(frozen=True)
class Shared:
    """Readers of shared devices.

    Attributes:
        readers: How many.
        devices: Over which their bytes are interleaved.
        seconds: Of an iteration.
        alone_s: Of an iteration of one reader with the same devices to itself.
        bytes_per_s: That all draw.
    """

    readers: int
    devices: int
    seconds: float
    alone_s: float
    bytes_per_s: float

    @property
    def slowdown(self) -> float:
        """Return the seconds of an iteration over those without the others."""
        return self.seconds / self.alone_s


def shared_reads(
    expander: Cxl, reader: Reader, readers: int, devices: int = 1, *, fidelity: str = "analytic",
    iterations: int = 32, read_pct: int = 100, seed: int | None = None,
) -> Shared:  # fmt: skip
    """Return how long iterations take when several readers draw from the same devices.

    Args:
        expander: One device; pages go round all of them.
        readers: How many.
        devices: How many expanders.
        fidelity: analytic or event.
        iterations: Of each reader, event.
        read_pct: Of the traffic.
        seed: Of phases at which readers start, event; without it they start in step.
    Raises:
        ConfigError: For counts below 1, another fidelity or seed, writes alone, or what is no
            device or reader.
    """
    for name, given, kind, way in (
        ("expander", expander, Cxl, "opbyte.cxl"), ("reader", reader, Reader, "opbyte.Reader"),
    ):  # fmt: skip
        if not isinstance(given, kind):
            raise ConfigError.one("", name, f"must be what {way} makes", given)
    for name, value in (("readers", readers), ("devices", devices), ("iterations", iterations)):
        if not is_number(value) or not 1 <= value < float("inf") or value != int(value):
            raise ConfigError.one("", name, "must be a whole number from 1 on", value)
    if seed is not None and (not is_number(seed) or not seed >= 0 or seed != int(seed)):
        raise ConfigError.one("", "seed", "must be a whole number from 0 on", seed)
    if fidelity not in ("analytic", "event"):
        raise ConfigError.one("", "fidelity", "must be analytic or event", fidelity)

    @functools.cache
    def granted(copying: int) -> float:
        lines = copying * reader.in_flight / LINE / devices
        found = expander.outstanding(lines, read_pct, path_s=reader.path_s).bytes_per_s
        return min(devices * found, copying * reader.rate)

    own = reader.bytes / granted(1)
    alone = max(reader.compute_s, own) if reader.prefetch else reader.compute_s + own
    demands = readers * reader.bytes / (devices * expander.peak_bytes_per_s(read_pct))
    if fidelity == "analytic":
        seconds = max(alone, demands)
    else:
        phases = np.zeros(readers)
        if seed is not None:
            phases = np.random.default_rng(seed).uniform(0.0, alone, readers)
        # With phases the first begins and the last ends alone: of few iterations that would be
        # more than the devices deliver.
        seconds = max(_played(reader, readers, granted, iterations, phases), demands)
        alone = _played(reader, 1, granted, iterations, np.zeros(1))
    return Shared(readers, devices, seconds, alone, readers * reader.bytes / seconds)


def _played(
    reader: Reader, readers: int, granted: Callable[[int], float], iterations: int,
    phases: Array,
) -> float:  # fmt: skip
    """Return the mean seconds of an iteration of the slowest reader, its first copy included."""
    left = np.full(readers, reader.bytes)
    begins = phases.astype(float)  # when a copy may begin; infinite while it waits for a buffer
    busy_until = np.full(readers, np.inf)
    copied, computed = np.zeros(readers, int), np.zeros(readers, int)
    ended = np.zeros(readers)
    now = 0.0
    while (computed < iterations).any():
        copying = (begins <= now + _DONE) & (left > 0.0)
        many = int(copying.sum())
        each = granted(many) / many if many else 0.0
        step = min(
            (left[copying] / each).min() if many else np.inf,
            (begins[begins > now + _DONE] - now).min(initial=np.inf),
            (busy_until - now).min(),
        )
        now += step
        left[copying] -= each * step
        for i in range(readers):
            if copying[i] and left[i] <= _DONE * reader.bytes:
                left[i], begins[i] = 0.0, np.inf
                copied[i] += 1
            if busy_until[i] <= now + _DONE:
                computed[i] += 1
                busy_until[i], ended[i] = np.inf, now
            idle = np.isinf(busy_until[i]) and computed[i] < iterations
            if idle and copied[i] > computed[i]:
                busy_until[i] = now + reader.compute_s
            computes = not np.isinf(busy_until[i])
            ahead = computed[i] + (reader.prefetch and computes)
            if left[i] == 0.0 and copied[i] == ahead and copied[i] < iterations:
                left[i], begins[i] = reader.bytes, now
    return float(((ended - phases) / iterations).max())
