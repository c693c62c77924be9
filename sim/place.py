"""Placement: joins work and hardware. OpTable + machine + mapping -> PlacedOps."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.mapping_file import ATTENTION, Placement
from opbyte.core.ops import CLASS_OF, COLLECTIVES, REPLICAS, TRANSFER, Array, OpTable
from opbyte.core.placed import MOVED, PlacedOps, SharedArray, Transfer, written_name
from opbyte.hw_models.machine import Machine
from opbyte.sim.attention_block import BEHIND, THERE
from opbyte.sim.attention_route import command_seconds
from opbyte.sim.groups import Groups
from opbyte.sim.kv_select import selected
from opbyte.sim.networks import Networks
from opbyte.sim.operators import Operators
from opbyte.sim.policies import decided
from opbyte.sim.sharing import ports_by_memory, shared_arrays, spread_memories
from opbyte.sim.ways import TierWays, Ways

#: Placement key of each tensor class, in order of preference.
PLACE_KEYS = {
    "weight": ("weight",),
    "expert": ("expert.weight", "weight"),
    "kv": ("kv",),
    "state": ("state", "kv"),
    "activation": ("activation",),
    "gradient": ("gradient",),
    "working": ("working",),
    "buffer": ("buffer",),
    "fragmentation": ("working",),
    "momentum": ("momentum", "optimizer"),
    "variance": ("variance", "optimizer"),
    "master_weight": ("master_weight", "optimizer"),
    "master_gradient": ("master_gradient", "optimizer"),
}


class Placer:
    """Resolves a mapping on a machine once, and places any number of tables with it.

    Args:
        training: The tables are those of a training step.
    Raises:
        ConfigError: If the mapping names a part, memory, unit or link that the machine lacks.
        UncoveredError: If the mapping asks for what no model covers.
    """

    def __init__(self, machine: Machine, mapping: Mapping, *, training: bool = False) -> None:
        missing = mapping.not_modelled(training=training)
        if missing:
            raise UncoveredError(
                f"mapping '{mapping.name or 'unnamed'}' of {machine.name}: no model honours "
                f"{', '.join(missing)} yet. remove it, or use a mapping without it"
            )
        self.machine = machine
        self.mapping = mapping
        self.groups = Groups.of(machine, mapping)
        self.group = self.groups.part
        #: Devices that run; what the others leave alone is not shared with them.
        self.devices = self.groups.devices(self.group)
        self._rules = [(frozenset(r.ops), r.units) for r in mapping.run]
        used = [machine.unit(path) for _, units in self._rules for path in units]
        for unit in used:
            self._check_count("unit", unit.path, unit.count)
        if mapping.einsums and all(u.config.kind != "spatial_array" for u in used):
            raise UncoveredError(
                f"mapping '{mapping.name or 'unnamed'}' of {machine.name}: einsums are mapped on "
                "units of kind spatial_array, and it runs on none. remove them, or name one"
            )
        self.spread = spread_memories(machine, mapping, self.groups)
        self.holders: dict[str, list[str]] = {}
        self._routes: dict[tuple[str, str], dict[str, float]] = {}
        self.ways = Ways(machine)
        self.networks = Networks(machine, mapping.degrees, self.groups)
        self.command = command_seconds(self.ways, mapping, self.groups)

    def _check_count(self, noun: str, path: str, count: int) -> None:
        """Refuse what each device has several of: nothing spreads work or tensors over them yet."""
        group = self.groups.of_path(path)
        devices = self.machine.counts[group]
        if count > devices and path not in self.spread:
            raise UncoveredError(
                f"{self.machine.name}: {noun} '{path}' occurs {count} times for {devices} of "
                f"'{group}', and no model spreads work over several. make its part the group, "
                "give one the rates and capacities of all, or `interleave` what lies in a memory"
            )

    # -- tiers -----------------------------------------------------------------------------

    def tiers(self, tensor: str, unit: str = "") -> Placement:
        """Return the placement of a tensor class; the default is the unit's largest memory.

        Args:
            unit: The unit whose memory is meant; by default that of the last rule.
        """
        for key in PLACE_KEYS.get(tensor, (tensor,)):
            if key in self.mapping.place:
                return self.mapping.place[key]
        if tensor.endswith(".weight") and "weight" in self.mapping.place:
            return self.mapping.place["weight"]
        return Placement.model_validate({"in": {self._main_memory(unit): 1.0}})

    def _main_memory(self, of: str) -> str:
        unit = self.machine.unit(of or self._default_unit)
        own = {p: m for p, m in self.machine.memories.items() if m.part == unit.part}
        if not own:
            own = {
                p.rpartition(".")[0]: self.machine.memories[p.rpartition(".")[0]]
                for p in self.machine.unit_ports(unit.path)
            }
        ports = self.machine.unit_ports(unit.path)
        direct = [
            p.rpartition(".")[0]
            for p in ports
            if self.machine.memory(p.rpartition(".")[0]).config.kind != "sram"
        ]
        if direct:
            return direct[0]
        return max(
            own, key=lambda p: _rate(self.machine, p) if own[p].config.kind != "sram" else 0.0
        )

    def occupancy(self, footprint: MappingType[str, Any]) -> dict[str, Any]:
        """Return the bytes taken in one instance of each memory.

        Args:
            footprint: Tensor class -> bytes that one device holds (floats or arrays).
        """
        used: dict[str, Any] = {}
        for tensor, size in footprint.items():
            if not np.any(size):
                continue
            copies = sum(self.kv_copies) / 2 if tensor == "kv" else 1.0
            for tier, share in self.tiers(tensor).in_.items():
                part = np.atleast_1d(size) * share * self.crowd(tier) / self._spread(tier, tensor)
                part = part * copies
                part = part / self.spread.get(tier, 1.0)
                used[tier] = used.get(tier, 0.0) + part
                if tensor not in self.holders.setdefault(tier, []):
                    self.holders[tier].append(tensor)
        return used

    def capacity(self, tier: str) -> Any:
        """Return the bytes of one memory instance that tensors may take."""
        self.machine.memory(tier)
        share = self.mapping.coverage.value if self.mapping.coverage else 1.0
        return self.machine.values[f"{tier}.capacity"] * share

    def crowd(self, tier: str) -> float:
        """Return how many devices of the group put their tensors into one instance of a memory."""
        return self._sharing(tier, self.machine.memory(tier).count)

    def _spread(self, tier: str, tensor: str) -> float:
        """Return the instances of a memory over which a device of the group spreads a tensor.

        Where matrices are split by their outputs, so are keys; values and activations are on one
        device of the stage.
        """
        groups = self.groups
        whole = groups.spanned(tier)
        one = whole / groups.gathered if whole > 1.0 else 1.0
        if tensor == "kv":
            return 2.0 / (1.0 / whole + 1.0 / one)
        return one if tensor == "activation" else whole

    def _sharing(self, path: str, count: int) -> float:
        """Return how many devices share one of `count` instances, at least 1."""
        if self.groups.together:
            inside = f"{path}.".startswith(f"{self.group}.")
            return 1.0 if inside else float(self.groups.guests)
        return max(1.0, self.groups.devices(path) / count)

    # -- routes ----------------------------------------------------------------------------

    def read_from(self, tensor: str, unit: str) -> MappingType[str, float]:
        """Return the shares of memories in which the operators of a unit find a class."""
        return self.tiers(tensor, unit if self.groups.attends(unit) else "").in_

    def route(self, unit: str, tensor: str) -> dict[str, float]:
        """Return resource -> share of the tensor's bytes that cross it on the way to a unit."""
        key = (unit, tensor)
        if key not in self._routes:
            crossing: dict[str, float] = {}
            for tier, share in self.read_from(tensor, unit).items():
                for resource in self.hops(tier, unit):
                    crossing[resource] = crossing.get(resource, 0.0) + share
            self._routes[key] = crossing
        return self._routes[key]

    def hops(self, tier: str, unit: str) -> list[str]:
        """Return the ports and links between a memory and a unit, both ends included."""
        return self.ways.hops(tier, unit)

    def path(self, source: str, target: str, via: str | None = None) -> list[str]:
        """Return the ports and links that a copy from one memory to another crosses.

        Args:
            via: Link that it takes; by default the fewest.
        Raises:
            ConfigError: If no chain of links joins them, or `via` is no link or does not.
        """
        return self.ways.path(source, target, via)

    def links_between(self, start: str, goal: str) -> list[str]:
        """Return the fewest links that lead from one part to another.

        Raises:
            ConfigError: If no chain of links joins them.
        """
        return self.ways.links_between(start, goal)

    # -- tables ----------------------------------------------------------------------------

    @property
    def _default_unit(self) -> str:
        return self._rules[-1][1][0]

    def unit_of(self, labels: frozenset[str]) -> str:
        """Return the unit of the first rule that fits; of several candidates the first."""
        return self._rules[self._rule_of(labels)][1][0]

    def _rule_of(self, labels: frozenset[str]) -> int:
        """Return the first rule that fits."""
        for i, (words, _) in enumerate(self._rules):
            if "all" in words or words & labels:
                return i
        raise ConfigError.one(
            "",
            "mapping.run",
            "no rule fits an operator",
            "/".join(sorted(labels)),
            "add 'ops: all'",
        )

    def place(self, table: OpTable) -> PlacedOps:
        """Return the table's operators on their units, fused as the mapping says.

        Raises:
            UncoveredError: If no model covers what the mapping asks for.
        """
        if self.mapping.kv_select is not None:
            table = selected(table, self.mapping.kv_select)
        alone = [kind in COLLECTIVES or kind == TRANSFER for kind in table.kinds]
        rules = [-1 if a else self._rule_of(x) for a, x in zip(alone, table.labels, strict=True)]
        op_of = self._fuse(table, rules)
        rule_of = np.full(int(op_of[-1]) + 1, -1)
        np.maximum.at(rule_of, op_of, rules)
        units = tuple("" if r < 0 else self._rules[r][1][0] for r in rule_of.tolist())
        operators = Operators.of(table, op_of, units)
        policies = {
            op: split
            for op, r in enumerate(rule_of.tolist())
            if r >= 0 and (split := self.mapping.run[r].split) is not None
        }
        return self.placed(decided(self, operators, policies) if policies else operators)

    def placed(self, operators: Operators) -> PlacedOps:
        """Return operators with what they cross, whose units are decided."""
        table, op_of = operators.table, operators.op_of
        collective = np.array([k in COLLECTIVES for k in table.kinds])
        # Collectives on their own start, and reach memory, like the kernels of the default rule.
        used = {u for u in operators.units if u}
        units = tuple(dict.fromkeys((self._default_unit, *sorted(used))))
        unit_of = np.array([units.index(u) if u else -1 for u in operators.units], np.int64)
        network, local = "", float("inf")
        if collective.any():
            network, local = self.networks.across(table["participants"][collective].max())
        ways = self._ways(table)
        crossed = [r for way in ways.values() for r in way]
        networks = self.networks
        link_of = [
            "" if not c else networks.of_replicas() if REPLICAS in x else networks.of_collectives()
            for c, x in zip(collective, table.labels, strict=True)
        ]
        resources, routes, arrays = self._route_matrix(
            units, [link for link in dict.fromkeys(link_of) if link], network, crossed
        )
        return PlacedOps(
            table,
            op_of,
            operators.blocks,
            _names(table, op_of, len(operators)),
            operators.one_by_one() if self.mapping.serial else operators.edges,
            units,
            unit_of,
            resources,
            np.array([self.instances(r) for r in resources]),
            operators.moved,
            operators.live,
            routes,
            np.array([resources.index(link) if link else -1 for link in link_of], np.int64),
            self.mapping.launch,
            np.array([self._sharing(u, self.machine.unit(u).count) for u in units]),
            self._copies(units, unit_of),
            np.array([self.groups.alike(r) for r in resources]),
            resources.index(network) if network else -1,
            local,
            self.mapping.all_reduce == "direct",
            tuple(self._transfer(int(op_of[row]), way, resources) for row, way in ways.items()),
            arrays,
            operators.runs,
            span=np.array([self.groups.spanned(u) for u in units]),
            together=self.groups.sets,
            artifact=self.mapping.artifact,
            head_overlap=self.mapping.overlap == "head",
            dependency=self.mapping.overlap == "dependency",
            pages=self._pages(units),
            einsums=self.mapping.einsums,
            kv_select=self.mapping.kv_select,
            kv_copies=self.kv_copies,
            left=self._left(table, op_of),
            ways=self._tier_ways(units, resources),
        )

    def _left(self, table: OpTable, op_of: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Return the operators that the next layer does not wait for, None where it waits."""
        if self.mapping.overlap != "kv_write":
            return None
        left = np.zeros(int(op_of[-1]) + 1, bool)
        left[op_of[[BEHIND in labels for labels in table.labels]]] = True
        return left

    @property
    def kv_copies(self) -> tuple[int, int]:
        """Return how often keys and values are stored."""
        copies = self.mapping.place["kv"].copies if "kv" in self.mapping.place else None
        if isinstance(copies, dict):
            return copies.get("k", 1), copies.get("v", 1)
        return (copies or 1,) * 2

    def _transfer(self, op: int, way: list[str], resources: tuple[str, ...]) -> Transfer:
        """Return a transfer that takes a way."""
        source, *links, target = (resources.index(r) for r in way)
        shares = tuple(self.groups.wired(written_name(r)) for r in way[1:-1])
        return Transfer(op, source, target, tuple(links), shares, self.command)

    def _tier_ways(
        self, units: tuple[str, ...], resources: tuple[str, ...]
    ) -> dict[tuple[int, int], TierWays]:
        """Return the ways of each class to its tiers, for units that count bytes under way."""
        found: dict[tuple[int, int], TierWays] = {}
        for u, unit in enumerate(units):
            if not self.ways.counts_bytes_under_way(unit):
                continue
            for c, moved in enumerate(MOVED):
                if moved != "internal":
                    tiers = self.read_from(CLASS_OF.get(moved, moved), unit)
                    found[u, c] = self.ways.to_tiers(tiers, unit, resources)
        return found

    def _pages(self, units: tuple[str, ...]) -> dict[tuple[int, int], float]:
        """Return the page of each class that lies in pages, by (unit, column of `MOVED`)."""
        if not any(place.page for place in self.mapping.place.values()):
            return {}
        found = {}
        for u, unit in enumerate(units):
            for c, moved in enumerate(MOVED):
                page = self.tiers(CLASS_OF.get(moved, moved), unit).page
                if page is not None and moved != "internal":
                    found[u, c] = page.value
        return found

    def _copies(self, units: tuple[str, ...], unit_of: npt.NDArray[np.int64]) -> Array:
        """Return how many devices run each operator alike: of what has no unit, the default's."""
        copies = np.full(len(unit_of), self.groups.alike(self.group))
        for u, unit in enumerate(units):
            copies[unit_of == u] = self.groups.alike(unit)
        return copies

    def _ways(self, table: OpTable) -> dict[int, list[str]]:
        """Return the rows that are transfers, with the port, links and port that each takes."""
        rows = [r for r, kind in enumerate(table.kinds) if kind == TRANSFER]
        if not rows:
            return {}
        groups = self.groups
        ends = (self._default_unit, self.unit_of(frozenset({ATTENTION})))
        first, last = (self.hops(next(iter(self.tiers("activation", u).in_)), u)[0] for u in ends)
        links = self.links_between(groups.part, groups.attention)
        forth = [first, *self._directed(links, groups.part), last]
        back = [last, *self._directed(links[::-1], groups.attention), first]
        return {r: forth if THERE in table.labels[r] else back for r in rows}

    def _directed(self, links: list[str], start: str) -> list[str]:
        """Return the resources of a chain of links in the direction away from a part."""
        chain = []
        for name in links:
            chain.append(self.groups.direction(name, start))
            ends = [self.ways.part_of(e) for e in self.machine.config.links[name].ends]
            start = ends[1] if f"{ends[0]}.".startswith(f"{start}.") else ends[0]
        return chain

    def _fuse(self, table: OpTable, rules: list[int]) -> npt.NDArray[np.int64]:
        """Return the operator of each row: neighbours with a common fused label are one.

        Args:
            rules: Rule of each row, -1 for what needs no unit.
        """
        op_of = np.zeros(len(table), np.int64)
        previous: tuple[int, int, Any] | None = None
        op = -1
        unit: Any = None
        for row, labels in enumerate(table.labels):
            block = int(table.block_of[row])
            rule = next(
                (
                    i
                    for i, words in enumerate(self.mapping.fused_labels)
                    if "all" in words or labels & set(words)
                ),
                -1,
            )
            # A collective inside a fused run belongs to the unit that runs the fused kernel.
            run = self.mapping.run[rules[row]] if rules[row] >= 0 else None
            unit = (run.split or run.unit) if run else (unit if rule >= 0 else None)
            key = (block, rule, unit)
            if rule < 0 or key != previous:
                op += 1
            previous = key if rule >= 0 else None
            op_of[row] = op
        return op_of

    def _route_matrix(
        self, units: tuple[str, ...], links: list[str], network: str, crossed: list[str]
    ) -> tuple[tuple[str, ...], Array, tuple[SharedArray, ...]]:
        shares: dict[tuple[int, int], dict[str, float]] = {}
        for u, unit in enumerate(units):
            for c, moved in enumerate(MOVED):
                if moved == "internal":
                    port = self.machine.unit_ports(unit)[0]
                    memory = self.machine.memory(port.rpartition(".")[0])
                    shares[u, c] = {port: 1.0} if memory.config.kind == "sram" else {}
                else:
                    shares[u, c] = self.route(unit, CLASS_OF.get(moved, moved))
        names = dict.fromkeys(r for crossing in shares.values() for r in crossing)
        names |= dict.fromkeys(crossed)
        self._check_ports(tuple(names))
        names |= dict.fromkeys(links)
        if network:
            names[network] = None
        resources, arrays = shared_arrays(self.machine, tuple(names))
        routes = np.zeros((len(units), len(MOVED), len(resources)))
        for (u, c), crossing in shares.items():
            for resource, share in crossing.items():
                routes[u, c, resources.index(resource)] = share
        return resources, routes, arrays

    def _check_ports(self, ports: tuple[str, ...]) -> None:
        """Refuse ports whose limits no model honours yet, and more of them than partitions."""
        for tier, used in ports_by_memory(self.machine, ports).items():
            self._check_count("memory", tier, self.machine.memory(tier).count)
            for port in used:
                written = self.machine.memory(tier).config.ports[port.rpartition(".")[2]]
                if written.limit:
                    text = f"no model honours the limit of '{port}' yet"
                    raise UncoveredError(f"{self.machine.name}: {text}")
                if written.write is not None or written.command is not None:
                    raise UncoveredError(
                        f"{self.machine.name}: units do not read '{port}' of a storage device "
                        "directly. give what lives there a `cache` in a memory that they are at, "
                        "under a zigzag pipeline"
                    )

    def instances(self, resource: str) -> float:
        """Return how many instances of a port or link each device of the group has to itself."""
        link = self.machine.config.links.get(written_name(resource))
        if link is not None:
            node = link.ends[0]
            if self.groups.joins(resource):
                return 1.0 / self.groups.alike(resource) if link.topology == "bus" else 1.0
            if self.groups.together:
                return 1.0
            wide = [n for m, n in self.spread.items() if self.machine.memory(m).part in link.ends]
            if wide:
                return max(wide)
            if link.ends == (node, node) and self.group.startswith(f"{node}."):
                return self.machine.counts[node] / self.machine.counts[self.group]
            return 1.0 / self.devices if link.topology == "bus" else 1.0
        if resource in self.machine.memories:
            return 1.0
        memory = self.machine.memory(resource.rpartition(".")[0])
        if memory.path in self.spread:
            return self.spread[memory.path]
        if self.groups.together:
            return self.groups.spanned(resource) / self._sharing(memory.path, memory.count)
        return min(1.0, memory.count / self.groups.devices(resource))


def _names(table: OpTable, op_of: npt.NDArray[np.int64], count: int) -> tuple[str, ...]:
    """Return the name of each operator: its rows' names."""
    names: list[list[str]] = [[] for _ in range(count)]
    for op, name in zip(op_of, table.names, strict=True):
        names[op].append(name)
    return tuple("+".join(n) if len(n) < 4 else f"{n[0]}..{n[-1]}" for n in names)


def _rate(machine: Machine, memory: str) -> float:
    ports = machine.memory(memory).config.ports
    return max(float(p.bandwidth.value) if p.bandwidth else 0.0 for p in ports.values())
