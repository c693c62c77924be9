"""Collective calls of a library: protocols with a latency of the call, of its steps, and a rate.

With p participants, a buffer of s bytes each, k steps (2(p-1) for an all-reduce, p-1 for its
halves) and w bytes on the wire of each participant, on a link of rate B, latency l, efficiency e:

    LL      (call + k l) (1 + crowd u^2 / (1 + u^2)) + w / (ll B), u = (s / p) / 4 KiB
    LL128   call + ll128_start + k (l + ll128_step) + w / (ll128 B) + (s / p) / (own_copy B)
    Simple  call + simple_start + k (l + simple_step) + w / (e B) + (s / p) / (own_copy B)
    NVLS    call + p nvls_step + s (p + 1) / p / (nvls B): the switch adds and spreads
    direct  one shot (1 + log2 p) l + s (p - 1) / (direct B); two shots three times as many l, w

512 threads of one channel take 4 KiB at once with LL: above it all threads wait for flags. An
all-to-all is p-1 sends side by side: 2 log2 p steps with LL, as measured, 1 with Simple. The
library chooses by its own rules (`libraries`), whatever a sweep makes of the link: so a faster link
or a shorter latency is never slower. Between nodes, for which no rows were at hand, rings and trees
of every protocol are priced and the least is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.link.collectives import collective_cost
from opbyte.hw_models.link.libraries import LIBRARIES, LL, LL128, SIMPLE, one_shot
from opbyte.hw_models.machine_file import Link

_CROWD_BYTES = 4096.0
#: Share of a network's rate that is data: LL, LL128, Simple.
_NET_SHARES = (0.5, 120.0 / 128.0, 1.0)


@dataclass(frozen=True)
class Network:
    """The link between nodes, as one node has it.

    Attributes:
        local: Devices of a node.
        rate: Effective rate of one node and direction, bytes/s.
        latency: Of one step, seconds.
    """

    local: float
    rate: Array
    latency: Array


@dataclass(frozen=True)
class CallCost:
    """What calls cost, arrays of one shape.

    Attributes:
        seconds: Latency: the call, its steps, and copies.
        wire_bytes: Data on the wire of one participant.
        busy: Seconds that the participant's link is busy with it.
        net_bytes: Data between nodes, of one participant.
        net_busy: Seconds that the node's link is busy with all participants' data.
    """

    seconds: Array
    wire_bytes: Array
    busy: Array
    net_bytes: Array
    net_busy: Array

    @property
    def total(self) -> Array:
        """Return seconds of a call on its own."""
        return self.seconds + np.maximum(self.busy, self.net_busy)


@dataclass(frozen=True)
class Caller:
    """A link with a `collectives` block.

    Attributes:
        get: Value of a parameter of the link by its name below it, with a default.
        rate: Peak rate of one participant and direction, bytes/s.
        network: Between nodes, if there are several.
        direct: Small all-reduces inside a node are kernels of the serving software.
    """

    link: Link
    get: Callable[[str, float], Any]
    rate: Array
    network: Network | None = None
    direct: bool = False

    def __post_init__(self) -> None:
        """Refuse a link without the block, or without what direct kernels reach."""
        if self.link.collectives is None:
            raise UncoveredError("the link has no `collectives` block. give it one")
        if self.direct and self.link.collectives.direct is None:
            raise UncoveredError(
                "direct all-reduces need `collectives.direct` of the link between devices. "
                "give it, or map `all_reduce: library`"
            )

    def cost(self, kind: str, payload: Array, participants: Array) -> CallCost:
        """Return what calls of one kind cost.

        Args:
            kind: all_reduce, all_gather, reduce_scatter, all_to_all or send.
            payload: Bytes of each participant's full buffer.
            participants: Devices that take part.
        Raises:
            UncoveredError: For an unknown kind, a topology that joins only two devices, or a
                library without rules.
        """
        payload, participants = np.broadcast_arrays(payload, participants)
        inside = self._inside(kind, payload, participants)
        if self.network is None or kind == "send":
            return inside
        far = participants > self.network.local
        if not far.any():
            return inside
        between = self._between(kind, payload, participants, self.network)
        return _where(far, between, inside)

    def least_bytes(self, kind: str, payload: Array, participants: Array) -> tuple[Array, Array]:
        """Return the fewest bytes on the link and between nodes, of one participant."""
        wire = collective_cost(kind, self.link.topology, payload, participants).wire_bytes
        block = self._block
        if kind == "all_reduce" and block.nvls is not None:
            share = (participants + 1.0) / np.maximum(participants, 1.0)
            wire = np.where(participants > 1.0, np.minimum(wire, payload * share), wire)
        net = np.zeros_like(wire)
        if self.network is not None and kind != "send":
            local = self.network.local
            far = participants > local
            factor = 2.0 if kind == "all_reduce" else 1.0
            # What leaves the node once, and what its devices pass on among themselves.
            net = np.where(far, factor * payload * (1.0 / local - 1.0 / participants), 0.0)
            part = payload * (local - 1.0) / local
            if kind == "all_to_all":
                net = np.where(far, payload * (1.0 - local / participants), 0.0)
                part = payload * (local - 1.0) / np.maximum(participants, 1.0)
            wire = np.where(far, np.minimum(wire, factor * part), wire)
        return wire, net

    # -- parts -----------------------------------------------------------------------------

    @property
    def _block(self) -> Any:
        return self.link.collectives

    def _value(self, name: str) -> Any:
        return self.get(f"collectives.{name}", np.nan)

    @property
    def _effective(self) -> Array:
        """Return the rate that protocols take their shares of: halved on a half-duplex link."""
        share = 1.0 if self._block.p2p else self._value("through_host")
        both = 0.5 if self.link.duplex == "half" and self.link.topology != "bus" else 1.0
        return np.asarray(self.rate * share * both)

    @property
    def _shares(self) -> tuple[Any, Any, Any]:
        return self._value("ll"), self._value("ll128"), self.get("efficiency", 1.0)

    @property
    def _step(self) -> tuple[Any, Any, Any]:
        hop = self.get("latency", 0.0)
        return hop, hop + self._value("ll128_step"), hop + self._value("simple_step")

    def _start(self, protocol: int) -> Any:
        name = {LL128: "ll128_start", SIMPLE: "simple_start"}.get(protocol)
        return self._value("call") + (self._value(name) if name else 0.0)

    def _crowd(self, chunk: Array) -> Array:
        many = (chunk / _CROWD_BYTES) ** 2
        return np.asarray(1.0 + self._value("crowd") * many / (1.0 + many))

    def _inside(self, kind: str, s: Array, p: Array) -> CallCost:
        ring = collective_cost(kind, self.link.topology, s, p).wire_bytes
        steps, chunk = _steps(kind, s, p)
        library = LIBRARIES.lookup(self._block.library)
        adds = self._block.nvls is not None
        chosen = library.choose(kind, s, p, self._value("tuned_rate"), adds=adds)
        rate = self._effective
        hop, hop128, hop_simple = self._step
        own = np.where(kind == "send", 0.0, chunk) / (self._value("own_copy") * self.rate)
        few = np.minimum(steps, 1.0) if kind == "all_to_all" else steps
        seconds = [
            (self._start(LL) + steps * hop) * self._crowd(chunk),
            self._start(LL128) + steps * hop128 + own,
            self._start(SIMPLE) + few * hop_simple + own,
        ]
        shares = list(self._shares)
        wires = [ring, ring, ring]
        if adds:
            seconds.append(self._value("call") + p * self._value("nvls_step"))
            shares.append(self._value("nvls"))
            wires.append(s * (p + 1.0) / np.maximum(p, 1.0))
        wire = _pick(chosen, wires)
        cost = CallCost(
            _pick(chosen, seconds),
            wire,
            wire / (_pick(chosen, shares) * rate),
            np.zeros_like(wire),
            np.zeros_like(wire),
        )
        if kind == "all_reduce" and self.direct:
            cost = _where(library.goes_direct(s, p), self._direct(s, p, ring), cost)
        idle = (p <= 1.0) | (s <= 0.0)
        return _where(idle, _nothing(cost), cost)

    def _direct(self, s: Array, p: Array, ring: Array) -> CallCost:
        once = one_shot(s, p)
        wire = np.where(once, s * np.maximum(p - 1.0, 0.0), ring)
        rounds = (1.0 + np.log2(np.maximum(p, 1.0))) * np.where(once, 1.0, 3.0)
        busy = wire / (self._value("direct") * self._effective)
        none = np.zeros_like(wire)
        return CallCost(rounds * self.get("latency", 0.0), wire, busy, none, none)

    def _between(self, kind: str, s: Array, p: Array, net: Network) -> CallCost:
        nodes = np.ceil(p / net.local)
        rate, shares, hops = self._effective, self._shares, self._step
        steps, chunk = _steps(kind, s, p)
        own = chunk / (self._value("own_copy") * self.rate)
        ways: list[CallCost] = []
        library = LIBRARIES.lookup(self._block.library)
        for protocol in (LL, LL128, SIMPLE):
            if protocol == LL128 and not library.ll128:
                continue
            far_hop = net.latency + hops[protocol] - hops[LL]
            for near, far, wire, out in _ways(kind, s, p, net.local, nodes, steps):
                seconds = near * hops[protocol] + self._start(protocol)
                if protocol == LL:
                    seconds = seconds * self._crowd(chunk)
                seconds = seconds + far * far_hop + (0.0 if protocol == LL else own)
                busy = wire / (shares[protocol] * rate)
                net_busy = out / (_NET_SHARES[protocol] * net.rate)
                ways.append(CallCost(seconds, wire, busy, out / net.local, net_busy))
        best = ways[0]
        for way in ways[1:]:
            best = _where(way.total < best.total, way, best)
        return _where(s <= 0.0, _nothing(best), best)


def _steps(kind: str, s: Array, p: Array) -> tuple[Array, Array]:
    """Return steps of a ring, and the bytes that each step passes on."""
    others = np.maximum(p - 1.0, 0.0)
    chunk = s / np.maximum(p, 1.0)
    if kind == "send":
        return np.ones_like(s), s
    if kind == "all_to_all":
        return 2.0 * np.log2(np.maximum(p, 1.0)), chunk
    return others * (2.0 if kind == "all_reduce" else 1.0), chunk


def _ways(
    kind: str, s: Array, p: Array, local: float, nodes: Array, steps: Array
) -> list[tuple[Array, Array, Array, Array]]:
    """Return the ways over several nodes: steps inside, steps between, wire, bytes of a node."""
    if kind == "all_to_all":
        out = local * s * (p - local) / p
        return [(steps, np.ones_like(s), s * (local - 1.0) / p, out)]
    factor = 2.0 if kind == "all_reduce" else 1.0
    far = factor * (nodes - 1.0)
    carried = factor * s * (p - 1.0) / p
    ways = [(steps - far, far, carried, carried)]
    if kind == "all_reduce":
        # A chain inside each node, two trees over the nodes, each for half of the bytes.
        inner = np.full_like(s, 2.0 * (local - 1.0))
        up_down = 2.0 * np.ceil(np.log2(nodes))
        half = s * (local - 1.0) / local
        ways.append((inner, up_down, 2.0 * half, 2.0 * s * (nodes - 1.0) / nodes))
    return ways


def _pick(chosen: npt.NDArray[np.intp], values: list[Any]) -> Array:
    shape = np.broadcast_shapes(chosen.shape, *(np.shape(v) for v in values))
    picked = np.broadcast_to(values[0], shape)
    for i in range(1, len(values)):
        picked = np.where(chosen == i, values[i], picked)
    return np.asarray(picked, np.float64)


def _where(mask: npt.NDArray[np.bool_], yes: CallCost, no: CallCost) -> CallCost:
    names = ("seconds", "wire_bytes", "busy", "net_bytes", "net_busy")
    return CallCost(*(np.where(mask, getattr(yes, n), getattr(no, n)) for n in names))


def _nothing(like: CallCost) -> CallCost:
    zero = np.zeros_like(like.seconds)
    return CallCost(zero, zero, zero, zero, zero)
