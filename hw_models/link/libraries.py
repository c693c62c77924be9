"""Rules by which a collective library chooses between protocols; declared, never fitted.

NCCL prices each protocol as a latency plus size over a rate, with constants that were tuned once
per generation, and takes the least (`src/graph/tuning.cc`, `src/enqueue.cc`; constants of 2.27).
What a call really takes is priced elsewhere: the library can choose badly, and does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.core.registry import Registry

KIB = 1024.0
#: Protocols, by the number that `Library.choose` gives.
LL, LL128, SIMPLE, NVLS = range(4)

_BASE = (6.6e-6, 14.0e-6, 8.4e-6)
_NVLINK_STEPS = (0.6e-6, 1.9e-6, 3.4e-6)
_PCIE_STEPS = (1.0e-6, 2.5e-6, 5.7e-6)
_NVLS_SECONDS = 25e-6
_NVLS_CHANNELS = 16.0
_DIRECT_BYTES = 8 * 1024.0**2


@dataclass(frozen=True)
class Library:
    """What a library believes of its protocols.

    Attributes:
        base: Latency of a ring call with LL, LL128 and Simple, seconds.
        steps: Latency of each step of it, seconds.
        ll_rate: Most that LL is believed to reach, bytes/s.
        ll128: Whether LL128 is safe on the link.
        nvls: Share of the rate that an all-reduce in the switch is believed to reach, 0 for none.
        p2p_ll: Most bytes to one peer that go with flags in all-to-all and send.
        direct: Participants for which serving software has direct kernels on the link.
    """

    name: str
    source: str
    base: tuple[float, float, float] = _BASE
    steps: tuple[float, float, float] = _NVLINK_STEPS
    ll_rate: float = np.inf
    ll128: bool = True
    nvls: float = 0.0
    p2p_ll: float = 512 * KIB
    direct: tuple[int, ...] = (2, 4, 6, 8)

    def choose(
        self, kind: str, payload: Array, participants: Array, rate: Any, *, adds: bool
    ) -> npt.NDArray[np.intp]:
        """Return the protocol of each call inside one node.

        Args:
            payload: Bytes of each participant's full buffer.
            rate: What the library takes the link for, bytes/s.
            adds: Whether the switch can add (NVLS).
        """
        if kind in ("all_to_all", "send"):
            peer = payload if kind == "send" else payload / np.maximum(participants, 1.0)
            return np.where(peer <= self.p2p_ll, np.intp(LL), np.intp(SIMPLE))
        steps = np.maximum(participants - 1.0, 1.0) * (2.0 if kind == "all_reduce" else 1.0)
        ratio = participants / steps
        rates = (np.minimum(self.ll_rate, 0.5 * rate), 0.92 * rate, rate)
        believed = [
            base + step * steps + payload / (each * ratio)
            for base, step, each in zip(self.base, self.steps, rates, strict=True)
        ]
        if not self.ll128:
            believed[LL128] = np.full_like(believed[LL], np.inf)
        if adds and self.nvls and kind == "all_reduce":
            share = 2.0 * self.nvls * (_NVLS_CHANNELS - 1.0) / _NVLS_CHANNELS
            switched = _NVLS_SECONDS + payload / (share * rate * ratio)
            # Two devices gain nothing from a switch that adds.
            believed.append(np.where(participants > 2.0, switched, np.inf))
        chosen: npt.NDArray[np.intp] = np.argmin(np.stack(np.broadcast_arrays(*believed)), axis=0)
        return chosen

    def goes_direct(self, payload: Array, participants: Array) -> npt.NDArray[np.bool_]:
        """Return which all-reduces a direct kernel takes.

        vLLM's rule where it has no symmetric memory, whose kernels are not modelled.
        """
        return (payload < _DIRECT_BYTES) & np.isin(participants, self.direct)


def one_shot(payload: Array, participants: Array) -> npt.NDArray[np.bool_]:
    """Return which direct all-reduces read all of every other device's buffer, and add alone.

    Source: vLLM, csrc/custom_all_reduce.cuh; without NVLink it has direct kernels for two alone.
    """
    few = (participants <= 4.0) & (payload < 512 * KIB)
    return (participants <= 2.0) | few | (payload < 256 * KIB)


LIBRARIES: Registry[Library] = Registry("collective library")


def _register(library: Library) -> None:
    LIBRARIES.register(library.name)(library)


_NCCL = "NVIDIA/nccl, src/graph/tuning.cc and src/enqueue.cc"
_register(Library("nccl-ampere", _NCCL, ll_rate=87.7e9))
_register(
    Library(
        "nccl-hopper",
        _NCCL,
        ll_rate=141e9,
        nvls=0.85,
    )
)
_register(
    Library(
        "nccl-blackwell",
        _NCCL,
        ll_rate=282e9,
        nvls=0.74,
    )
)
_register(
    Library(
        "nccl-pcie",
        f"{_NCCL}: LL128 needs NVLink; two channels to a peer",
        steps=_PCIE_STEPS,
        ll128=False,
        p2p_ll=32 * KIB,
        direct=(2,),
    )
)
