"""Exchanges between the devices of a training job: replicas, and stages of a pipeline.

Devices are numbered tensor-parallel first, then replicas, then stages (Megatron-LM's order). If the
members of an exchange are in one node, it is a call of the link between its devices; else the link
between nodes carries it as a ring, and exchanges that run side by side share a node's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.hw_models.link.calls import Caller
from opbyte.hw_models.link.collectives import collective_cost
from opbyte.hw_models.machine import Machine
from opbyte.sim.networks import Networks

Members = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fabric:
    """Links of a job.

    Attributes:
        part: Part that is a device of the group.
        port: Of the memory that a device's exchanges read and write.
        ideal: Peaks alone, no latency.
    """

    machine: Machine
    networks: Networks
    part: str
    port: str
    ideal: bool = False

    def exchange(
        self, kind: str, size: Any, participants: int, beside: int, span: int | None = None
    ) -> Array:
        """Return the seconds of a collective, (points,).

        Args:
            kind: all_reduce, all_gather, reduce_scatter or send.
            size: Bytes of each participant's full buffer.
            beside: Exchanges side by side: of neighbouring devices, at the same time.
            span: Devices from the first member to the last of all these; `participants * beside`
                where the members follow each other.
        Raises:
            ConfigError: If no link joins them.
        """
        size = np.atleast_1d(np.asarray(size, np.float64))
        if participants <= 1 or not size.any():
            return np.zeros_like(size)
        local = self._local
        if (span or beside * participants) <= local:
            return self._inside(kind, size, participants)[0]
        name = self._between
        values = self.machine.values
        rate = np.atleast_1d(values[f"{name}.bandwidth"]) / min(beside, local)
        # Ends of a send that cross a border of nodes: as many as there are devices between them.
        many = np.full_like(size, 2.0 if kind == "send" else participants)
        cost = collective_cost(kind, "ring", size, many)
        if self.ideal:
            return np.asarray(cost.wire_bytes / rate)
        rate = rate * values.get(f"{name}.efficiency", 1.0)
        return np.asarray(cost.steps * values.get(f"{name}.latency", 0.0) + cost.wire_bytes / rate)

    def joules(self, kind: str, size: Any, members: Members) -> Array:
        """Return the energy of collectives of one size, of all their members, (points,).

        Each byte costs what it crosses: the link of a node, or the one between nodes where a member
        passes it to one in another, and the memories that it is read from and written to.

        Args:
            kind, size: As of `exchange`.
            members: Numbers of the devices of each collective in their order, (collectives,
                participants).
        """
        size = np.atleast_1d(np.asarray(size, np.float64))
        participants = members.shape[1]
        if participants <= 1 or not size.any():
            return np.zeros_like(size)
        node = members // self._local
        hops = node != np.roll(node, -1, axis=1)
        if kind == "send":
            hops = hops[:, :1]
        crossing, whole = hops.sum(), int((~hops.any(axis=1)).sum())
        beside = hops.size - crossing - whole * hops.shape[1]
        # Of rings over several nodes some members pass on inside one.
        passed: Any = collective_cost(kind, "ring", size, np.full_like(size, participants))
        total: Any = _touched(kind, size, participants) * len(members) * self._energy(self.port)
        if crossing:
            total = total + passed.wire_bytes * crossing * self._energy(self._between)
        if beside or whole:
            inside = self._inside(kind, size, participants)[1] if whole else 0.0
            sent = inside * whole * hops.shape[1] + passed.wire_bytes * beside
            total = total + sent * self._energy(self.networks.of_collectives())
        return np.asarray(total)

    def _energy(self, resource: str) -> Any:
        """Return J/byte of a link or port, NaN where it has none."""
        return 8.0 * np.asarray(self.machine.values.get(f"{resource}.energy", np.nan))

    def _inside(self, kind: str, size: Array, participants: int) -> tuple[Array, Array]:
        """Return the seconds of a call inside a node, and each participant's bytes on its link."""
        name = self.networks.of_collectives()
        link, values = self.machine.config.links[name], self.machine.values
        rate = np.atleast_1d(values[f"{name}.bandwidth"])
        many = np.full_like(size, float(participants))
        if link.collectives is not None:
            caller = Caller(link, lambda word, default: values.get(f"{name}.{word}", default), rate)
            if self.ideal:
                least, _ = caller.least_bytes(kind, size, many)
                return np.asarray(least / rate), least
            call = caller.cost(kind, size, many)
            return np.asarray(call.total), call.wire_bytes
        cost = collective_cost(kind, link.topology, size, many)
        if self.ideal:
            return np.asarray(cost.wire_bytes / rate), cost.wire_bytes
        steps = cost.steps * values.get(f"{name}.latency", 0.0)
        rate = rate * values.get(f"{name}.efficiency", 1.0)
        return np.asarray(steps + cost.wire_bytes / rate), cost.wire_bytes

    @property
    def _node(self) -> tuple[str, str]:
        """Return the link between nodes and the part that is one; empty without."""
        for name, link in self.machine.config.links.items():
            node = link.ends[0]
            if link.ends == (node, node) and self.part.startswith(f"{node}."):
                return name, node
        return "", ""

    @property
    def _local(self) -> float:
        counts, (_, node) = self.machine.counts, self._node
        return counts[self.part] / counts[node] if node else float("inf")

    @property
    def _between(self) -> str:
        name, _ = self._node
        if not name:
            raise ConfigError.one(
                "", "machine.links", f"{self.machine.name} has no link between nodes", "",
                "add one whose ends are both the part that holds the group's",
            )  # fmt: skip
        return name


def _touched(kind: str, size: Array, participants: int) -> Array:
    """Return the bytes that all members of a collective read and write.

    Each reads what it has and writes what it gets: whole buffers, or its part of one.
    """
    buffers = {"all_reduce": 2.0 * participants, "send": 2.0}.get(kind, participants + 1.0)
    return buffers * size
