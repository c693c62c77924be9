"""Exchanges between the devices of a training job: replicas, and stages of a pipeline.

Devices are numbered tensor-parallel first, then replicas, then stages (Megatron-LM's order). If the
members of an exchange are in one node, it is a call of the link between its devices; else the link
between nodes carries it as a ring, and exchanges that run side by side share a node's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.hw_models.link.calls import Caller
from opbyte.hw_models.link.collectives import collective_cost
from opbyte.hw_models.machine import Machine
from opbyte.sim.networks import Networks


@dataclass(frozen=True)
class Fabric:
    """Links of a job.

    Attributes:
        part: Part that is a device of the group.
        ideal: Peaks alone, no latency.
    """

    machine: Machine
    networks: Networks
    part: str
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
            return self._inside(kind, size, participants)
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

    def _inside(self, kind: str, size: Array, participants: int) -> Array:
        name = self.networks.of_collectives()
        link, values = self.machine.config.links[name], self.machine.values
        rate = np.atleast_1d(values[f"{name}.bandwidth"])
        many = np.full_like(size, float(participants))
        if link.collectives is not None and not self.ideal:
            caller = Caller(link, lambda word, default: values.get(f"{name}.{word}", default), rate)
            return np.asarray(caller.cost(kind, size, many).total)
        cost = collective_cost(kind, link.topology, size, many)
        if self.ideal:
            return np.asarray(cost.wire_bytes / rate)
        steps = cost.steps * values.get(f"{name}.latency", 0.0)
        return np.asarray(steps + cost.wire_bytes / (rate * values.get(f"{name}.efficiency", 1.0)))

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
