"""Mapping: the software side of a simulation, beside the machine and never inside it.

A mapping says which devices form a group, how work is split over them, where each tensor class
lives, which unit runs which operator, what is fused, how kernels are launched and which route
data takes. Two mappings of one machine are two programs on the same hardware.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opbyte.core.allocation import Allocate
from opbyte.core.blocks import Block
from opbyte.core.config import Document, judged, load_document, parse_document, validate
from opbyte.core.errors import Problem
from opbyte.core.kv_select import KvSelect
from opbyte.core.mapping_file import (
    ATTENTION,
    Assist,
    Continuous,
    Einsums,
    Pipeline,
    Placement,
    Run,
    Split,
    Zigzag,
)
from opbyte.core.parallel import Parallel
from opbyte.core.parameters import Ratio, Seconds
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest
from opbyte.core.routes import Neurons, Routes
from opbyte.core.staging import Staging

#: Fusion by name, as lists of labels: a run of neighbouring rows with one of the labels is one
#: operator.
FUSIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "none": (),
    "attention": (("attention",),),
    "layer": (("all",),),
}

#: Tensor classes that `place` may name: all weights or some of them, what runs keep, and what
#: training adds. `optimizer` stands for momentum, variance, master weight and master gradient.
PLACED = (
    "weight", "expert.weight", "router.weight", "ffn.weight", "model.weight", "adapter.weight",
    "kv", "kv.swap", "state", "activation", "scores", "gradient", "working", "buffer", "optimizer",
    "momentum", "variance", "master_weight", "master_gradient",
)  # fmt: skip


class Mapping(Block):
    """A mapping, as written.

    Attributes:
        groups: Group name -> part of the machine; every instance of the part belongs to it.
        parallel: Operator class -> how a group shares it; `all`, or `dense` where there is no
            `all`, is the default class: whatever no other class names.
        place: Tensor class -> placement. `expert.weight` are routed experts or the experts of a
            Composition of Experts, `router.weight` the latter's router.
        allocate: In training, the policy that places what `place` does not name.
        staging: In training, buffers that the host holds beside what lives there.
        swap: In training, the share of the tokens whose activations are kept, where `activation`
            lives, though the work would compute them again; `auto` takes as many as copies hide
            for, and memories hold (MEMO, arXiv 2407.12117).
        allocator: In training, whose blocks tensors of the device lie in: `caching` is PyTorch's,
            without it they leave no holes.
        run: Rules that pick a unit.
        fusion: A name of `FUSIONS`, or lists of labels of which neighbours become one operator.
        launch: How a kernel starts; names a latency of the unit.
        all_reduce: Whose all-reduces inside a node run: the `library`'s, or, up to a size,
            `direct` kernels that read the other devices' memory, as vLLM has them.
        host: What the host needs to issue all operators of one run of a phase. Devices work
            meanwhile: the run takes the longer of both. Left out where a graph is replayed.
        overlap: What runs at the same time; `copy` copies the next model while one runs;
            `q_first` sends queries before keys and values to the group that runs attention;
            `kv_write` writes keys and values of prompts there while the next layer runs;
            `head` has the heads of a layer follow each other through both groups; `dependency`
            has them follow each other through the units of a device, so that norms, softmax and
            attention hide behind linear tiles; `gradients` has replicas exchange gradients and
            gathered weights while they compute, in training; `optimizer` has, beside these, each
            layer's optimizer step run as soon as its gradients are there.
        pipeline: Batches that take turns on the groups of a mapping that has two, that follow
            each other through the stages of one, or that share loads of weights (`zigzag`).
        assist: Products that the group of decode attention takes a share of while it has no
            attention to run.
        coverage: Share of a tier's capacity that tensors may take.
        serial: Of several units of a device one works at a time.
        einsums: Of fused attention on units of kind `spatial_array`.
        neurons: Of networks of which a token uses a part of the neurons. Where their weights,
            `ffn.weight` or `expert.weight`, have a cache in front of a slow memory they are read
            neuron by neuron: under a `zigzag` pipeline, or with `popularity` and `evict: lru`.
        kv_select: Cached tokens that decode attention is exact on; without it all.
        artifact: Simulator whose conventions are reproduced, its defects included, so that its
            published numbers can be compared; left out: the physical values.
    """

    kind: Literal["mapping"] = "mapping"
    name: str = ""
    groups: dict[str, str] = Field(default_factory=dict)
    parallel: dict[str, Split] = Field(default_factory=dict)
    place: dict[str, Placement] = Field(default_factory=dict)
    allocate: Allocate | None = None
    staging: Staging | None = None
    swap: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = None
    allocator: Literal["caching"] | None = None
    run: tuple[Run, ...]
    fusion: str | tuple[tuple[str, ...], ...] = "none"
    launch: str = "hardware"
    host: Seconds | None = None
    all_reduce: Literal["library", "direct"] = "library"
    overlap: Literal[
        "none", "copy", "head", "dependency", "q_first", "kv_write", "gradients", "optimizer"
    ] = "none"
    routes: dict[str, Routes] = Field(default_factory=dict)
    pipeline: Annotated[Pipeline | Continuous | Zigzag, Field(discriminator="kind")] | None = None
    assist: Assist | None = None
    kv_select: KvSelect | None = None
    coverage: Ratio | None = None
    serial: bool = False
    einsums: Einsums | None = None
    neurons: Neurons | None = None
    artifact: Literal["bitmod", "cent"] | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Mapping:
        problems = Problems()
        if isinstance(self.fusion, str) and self.fusion not in FUSIONS:
            problems.add(_unknown("fusion", "no fusion", self.fusion, FUSIONS))
        for name in self.place:
            if name not in PLACED:
                problems.add(_unknown(f"place.{name}", "place: no tensor class", name, PLACED))
        for name, split in self.parallel.items():
            if split.group not in self.groups:
                path = f"parallel.{name}.group"
                problems.add(_unknown(path, f"parallel.{name}: no group", split.group, self.groups))
        problems.tell()
        return self

    @property
    def fused_labels(self) -> tuple[tuple[str, ...], ...]:
        """Return the label lists whose neighbouring rows are one operator."""
        return FUSIONS[self.fusion] if isinstance(self.fusion, str) else self.fusion

    @property
    def words(self) -> tuple[tuple[str, str], ...]:
        """Return the labels by which it selects operators, each with its place in the file."""
        lists = {f"run.{i}.ops": rule.ops for i, rule in enumerate(self.run)}
        if not isinstance(self.fusion, str):
            lists |= {f"fusion.{i}": words for i, words in enumerate(self.fusion)}
        if self.assist is not None:
            lists["assist.ops"] = self.assist.ops
        return tuple((place, word) for place, words in lists.items() for word in words)

    @property
    def fuses_attention(self) -> bool:
        """Return whether scores, softmax and context are one kernel."""
        return any({"all", "attention"} & set(words) for words in self.fused_labels)

    @property
    def default(self) -> Split | None:
        """Return how the default operator class is split, if the mapping says it."""
        return self.parallel.get("all") or self.parallel.get("dense")

    @property
    def degrees(self) -> Parallel:
        """Return the parallel degrees of the default operator class."""
        return self._with_batches(self.default.degrees if self.default else Parallel())

    @property
    def attention(self) -> Split | None:
        """Return how decode attention is split over a group of its own, if it has one."""
        return self.parallel.get(ATTENTION)

    @property
    def attention_degrees(self) -> Parallel:
        """Return the parallel degrees of decode attention on a group of its own."""
        split = self.attention
        assert split is not None, "asked only of a mapping with such a group"
        assert split.heads != "all", "asked only of a mapping `on` a machine"
        return self._with_batches(Parallel(tp=split.heads or split.tp))

    def on(self, counts: MappingType[str, int]) -> Mapping:
        """Return the mapping with `heads: all` counted on a machine.

        Args:
            counts: Part -> its instances. A part that is not there counts as one; who asks for the
                group's devices says that it is missing.
        """
        split = self.attention
        if split is None or split.heads != "all":
            return self
        counted = split.model_copy(update={"heads": counts.get(self.groups[split.group], 1)})
        return self.model_copy(update={"parallel": {**self.parallel, ATTENTION: counted}})

    def _with_batches(self, degrees: Parallel) -> Parallel:
        return replace(degrees, microbatches=self.batches) if self.pipeline else degrees

    @property
    def batches(self) -> int:
        """Return the pieces into which a pipeline cuts the sequences, 1 without one."""
        if self.pipeline is None:
            return 1
        stages = self.default.pp if self.default else 1
        return self.pipeline.batches or stages

    @property
    def blocks(self) -> bool:
        """Return whether batches share loads of weights."""
        return self.pipeline is not None and self.pipeline.kind == "zigzag"

    @property
    def units(self) -> tuple[str, ...]:
        """Return every unit that a rule names, once."""
        return tuple(dict.fromkeys(unit for rule in self.run for unit in rule.units))

    @property
    def cached(self) -> tuple[str, ...]:
        """Return the tensor classes with a cache."""
        return tuple(name for name, place in self.place.items() if place.cache)

    @property
    def clusters(self) -> bool:
        """Return whether neurons lie in a cache of those used last."""
        popular = self.neurons is not None and self.neurons.popularity is not None
        return popular and not self.blocks and bool(self.cached)

    def not_modelled(self, *, training: bool = False) -> tuple[str, ...]:
        """Return what this mapping asks for that no simulation honours yet.

        Loading such a mapping is fine; simulating it would silently ignore a wish, so the
        simulation refuses.

        Args:
            training: Of a training step; ZeRO, sequence parallelism and chunks are its alone.
        """
        two = self.attention is not None
        blocks = self.blocks
        known = {"all", ATTENTION} if "all" in self.parallel else {"dense", ATTENTION}
        shapes = [split.degrees for split in self.parallel.values()]
        ahead: tuple[str, ...] = ("q_first", "head", "kv_write") if two else ("dependency",)
        splits = [] if training else list(self.parallel.values())
        ahead = ("gradients", "optimizer") if training else ahead
        wishes = {
            "overlap": self.overlap not in ("none", "copy", *ahead),
            "overlap: kv_write of staggered batches": self.overlap == "kv_write"
            and self.pipeline is not None,
            "pipeline": self.pipeline is not None and two != (self.pipeline.kind == "staggered"),
            "assist without a group for attention, or with a pipeline": self.assist is not None
            and (not two or self.pipeline is not None),
            "pp, ep, dp or microbatches beside a group for attention": two
            and any(d != Parallel(tp=d.tp) for d in shapes),
            "parallel.heads of other operators": any(
                s.heads is not None for c, s in self.parallel.items() if c != ATTENTION
            ),
            "kv_select: lop beside a group for attention": two
            and self.kv_select is not None
            and self.kv_select.kind == "lop",
            "parallel of one operator class": bool(set(self.parallel) - known),
            "allocate": self.allocate is not None and not training,
            "staging": self.staging is not None and not training,
            "swap": self.swap is not None and not training,
            "allocator": self.allocator is not None and not training,
            "parallel.zero": any(s.zero for s in splits),
            "parallel.sequence": any(s.sequence for s in splits),
            "parallel.interleave": any(s.interleave > 1 for s in splits),
            "routes": bool(self.routes)
            and not (blocks or self.cached)
            and not (two and set(self.routes) == {"kv"}),
        }
        for name, place in self.place.items():
            held = (two and name == "kv") or (blocks and name == "scores")
            wishes[f"place.{name}.copies"] = place.copies is not None and not held
            wishes[f"place.{name}.page of what has a cache or spills"] = (
                place.page is not None and (place.cache is not None or bool(place.spill))
            )
            wishes[f"place.{name}.spill"] = bool(place.spill) and name != "kv"
            wishes[f"place.{name}.format"] = place.format is not None and not blocks
            early = place.cache is not None and place.cache.prefetch != "none"
            if early and name != "expert.weight" and not blocks:
                wishes[f"place.{name}.cache.prefetch"] = True
        return tuple(name for name, wished in wishes.items() if wished)


def _unknown(path: str, noun: str, name: str, known: Iterable[str]) -> tuple[Problem, ...]:
    """Return the problem of a name that is not known, at the path of its entry."""
    near, listed = nearest(name, known), ", ".join(known) or "none"
    hint = f"Did you mean {near!r}? " if near else ""
    return (Problem("", path, f"{noun} is called {name!r}", "", f"{hint}Known: {listed}."),)


def load_mapping(source: str | Path | MappingType[str, Any] | Mapping) -> Mapping:
    """Return a mapping from a YAML file, a dict or a mapping.

    Raises:
        ConfigError: With every problem of the file.
    """
    if isinstance(source, Mapping):
        return source
    if isinstance(source, MappingType):
        return validate(Mapping, Document(dict(source), {}, "mapping"))
    text = str(source)
    if "\n" in text:
        return validate(Mapping, parse_document(text, "mapping"))
    problems = Problems()
    mapping = judged(Mapping, load_document(Path(text), problems=problems), problems)
    problems.tell()
    assert mapping is not None
    return mapping
