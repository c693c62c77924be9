"""A mapping file: the blocks of its YAML, how work is split, placed, run and pipelined."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from opbyte.core.blocks import Block, Words
from opbyte.core.parallel import Parallel
from opbyte.core.parameters import Bytes
from opbyte.core.routes import Format

#: The operator class that may have a group of devices of its own.
ATTENTION = "attention_decode"


class Split(Block):
    """How a group of devices shares an operator class.

    Attributes:
        group: Name of a group.
        dispatch: Tokens are sent to the devices of their experts, see `Parallel`.
        expert_tp: Devices over which each routed expert is split, see `Parallel`.
        heads: Devices that share the attention heads, where only attention is split; `all` of the
            group's part.
        zero: ZeRO stage of data-parallel training.
        sequence: Sequence parallelism in training, see `Parallel`.
        interleave: Chunks of layers of each pipeline stage in training, see `Parallel`.
        tensor: What `tp` splits. `megatron`: heads and columns, two all-reduces a layer. `outputs`:
            every matrix by its outputs alone; inputs are broadcast and outputs gathered, all else
            runs on one device of the stage.
        together: A device of the group is a set of instances of its part: each stage has all of
            one part above, or an equal share where that part holds several stages.
    """

    group: str
    tp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    ep: int = Field(1, ge=1)
    dp: int = Field(1, ge=1)
    microbatches: int = Field(1, ge=1)
    dispatch: bool = True
    expert_tp: int | None = Field(None, ge=1)
    heads: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    zero: Literal[0, 1, 2, 3] = 0
    sequence: bool = False
    interleave: int = Field(1, ge=1)
    tensor: Literal["megatron", "outputs"] = "megatron"
    together: bool = False

    @property
    def degrees(self) -> Parallel:
        """Return the degrees without the group: those by which operators are split."""
        return Parallel(
            self.tp // self.gathered, self.pp, self.ep, self.dp, self.microbatches, self.dispatch,
            self.expert_tp or 0, self.sequence, self.interleave, self.zero,
        )  # fmt: skip

    @property
    def gathered(self) -> int:
        """Return the devices over which matrices are split by their outputs."""
        return self.tp if self.tensor == "outputs" else 1


class Cache(Block):
    """A faster tier that holds copies of what is used.

    Attributes:
        tier: Memory that holds the copies.
        evict: What leaves when the tier is full: what was used longest ago (`lru`), what is needed
            again last (`belady`, which knows the future and bounds every policy), or everything
            once it was used (`none`).
        via: Link that fills it.
        prefetch: Routed experts that are copied while the MoE block before theirs runs: `none` of
            them, `all` of the next block, or those that its gate, evaluated one block early,
            names (`next_block_gate`). `pre_attention`: while the mixer of their own layer runs,
            whose router reads the layer's input. Of other tensors under a `zigzag` pipeline: `all`
            of the next block's, or `none`.
        waits: What waits for copies of routed experts: the `block`, until all are there, or each
            `expert`, those that are there running first.
        reserve: Capacity of the tier that the cache leaves free.
        slots: Routed experts that it keeps, of all layers; by default as many as fit.
    """

    tier: str
    evict: Literal["lru", "belady", "none"] = "lru"
    via: str | None = None
    prefetch: Literal["none", "all", "next_block_gate", "pre_attention"] = "none"
    waits: Literal["block", "expert"] = "block"
    reserve: Bytes | None = None
    slots: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _waits(self) -> Cache:
        if self.waits == "expert" and self.prefetch not in ("none", "pre_attention"):
            raise ValueError(
                "experts that run as they arrive (`waits: expert`) are those of the block at work: "
                f"prefetch: none or pre_attention, got {self.prefetch}"
            )
        return self


class Spill(Block):
    """A memory that takes what leaves the one above it.

    Attributes:
        tier: The memory.
        via: Link to the memory above; by default the fewest links.
        capacity: Bytes that it takes in one instance; by default all that nothing else is in.
    """

    tier: str
    via: str | None = None
    capacity: Bytes | None = None


class Placement(Block):
    """Where a tensor class lives: shares of memories that add up to one.

    Attributes:
        interleave: Bytes that lie in one memory before the next one's: pages go round the memories
            of `in` by their shares, and round all instances of each.
        page: Bytes that lie together in one instance of a memory; pages are at random places. Left
            out: tensors lie in one piece and are read as streams.
        copies: Under a `zigzag` pipeline, of `scores`: score matrices that are held at once, where
            kernels of attention are not fused.
        format: Number format into which kernels of their own unpack them before each use, under a
            `zigzag` pipeline.
        spill: Memories below, for what does not fit. Under a `zigzag` pipeline, of `kv`: one that
            the system swaps to. Steps pass through the cache in one order, so that least recently
            used pages of a cache larger than the memory are gone before they are used again.
    """

    in_: dict[str, float] = Field(alias="in")
    cache: Cache | None = None
    copies: int | dict[str, int] | None = None
    page: Bytes | None = None
    interleave: Bytes | None = None
    format: Format | None = None
    spill: tuple[Spill, ...] = ()

    @model_validator(mode="after")
    def _shares(self) -> Placement:
        if not self.in_ or any(not 0 < s <= 1 for s in self.in_.values()):
            raise ValueError("shares of memories must lie in (0, 1]. give at least one memory")
        if abs(sum(self.in_.values()) - 1) > 1e-9:
            raise ValueError(f"shares must add up to 1, got {sum(self.in_.values()):g}")
        for name in ("page", "interleave"):
            size = getattr(self, name)
            if size is not None and size.value < 1:
                raise ValueError(f"`{name}` has at least one byte, got {size}. give its size")
        copies = self.copies if isinstance(self.copies, dict) else {"k": self.copies}
        if not copies.keys() <= {"k", "v"}:
            raise ValueError(f"`copies` are of k and of v, got {', '.join(copies)}. name these")
        for count in (c for c in copies.values() if c is not None):
            if count < 1:
                raise ValueError(f"`copies` counts every one, the first too, got {count}. give 1")
        below = [*self.in_, *(s.tier for s in self.spill)]
        if len(set(below)) < len(below):
            raise ValueError("a memory occurs twice. spill to memories below those of `in`")
        return self


class CoProcess(Block):
    """An operator class for which several units of a device are candidates.

    Each expert of a mixture of experts counts as an operator of its own.

    Attributes:
        between: Short paths of the units.
        by: What decides. `fastest`: each operator runs where it takes least. `op_per_byte`: where
            the roofline of peak rates takes least, or by `threshold`. `greedy_tokens`: experts run
            on two units at the same time, those with fewest tokens on the one at the faster port,
            as many as make the longer of the two shortest.
        threshold: Operations per byte below which an operator runs on the one of two units that is
            at the faster port, for `op_per_byte`.
    """

    between: tuple[str, ...] = Field(min_length=2)
    by: Literal["fastest", "op_per_byte", "greedy_tokens"]
    threshold: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> CoProcess:
        if len(set(self.between)) < len(self.between):
            raise ValueError("a unit occurs twice in `between`. name different ones")
        if self.threshold is not None and self.by != "op_per_byte":
            raise ValueError(f"`threshold` belongs to by: op_per_byte, got by: {self.by}")
        two = self.by == "greedy_tokens" or self.threshold is not None
        if two and len(self.between) != 2:
            what = "`threshold`" if self.threshold is not None else "greedy_tokens"
            raise ValueError(f"{what} divides between two units, got {len(self.between)}")
        return self


class Run(Block):
    """Which unit runs the operators that carry one of the labels; the first rule that fits wins."""

    ops: Words
    unit: str | None = None
    split: CoProcess | None = None

    @model_validator(mode="after")
    def _one(self) -> Run:
        if (self.unit is None) == (self.split is None):
            raise ValueError("give either 'unit' or 'split'")
        return self

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units that may run the operators."""
        return self.split.between if self.split else (str(self.unit),)


class Assist(Block):
    """Products of which a unit of the group of decode attention takes a share.

    Attributes:
        ops: Labels of the products.
        unit: Its short path.
    """

    ops: Words
    unit: str


class Pipeline(Block):
    """Batches that take turns on two groups of devices.

    `staggered`: each of `batches` is at another place of the layers; while one is at the group of
    its operator class, the others are at `replicas` copies of the rest, which they visit in turn.

    Attributes:
        batches: Pieces into which the sequences are cut.
        replicas: Copies of the default group, one fewer than batches.
    """

    kind: Literal["staggered"]
    batches: int = Field(ge=2)
    replicas: int = Field(ge=1)

    @model_validator(mode="after")
    def _turns(self) -> Pipeline:
        if self.replicas != self.batches - 1:
            raise ValueError(
                f"{self.batches} staggered batches keep {self.batches - 1} replicas busy, got "
                f"{self.replicas}. change one"
            )
        return self


class Continuous(Block):
    """Batches that follow each other through the pipeline stages of one group without end.

    The next step of a batch follows at once: no stage waits for the pipeline to fill or to drain.

    Attributes:
        batches: Pieces into which the sequences are cut; by default one for each stage.
    """

    kind: Literal["continuous"]
    batches: int | None = Field(None, ge=1)

    @property
    def replicas(self) -> int:
        """Return the copies of the group: one."""
        return 1


class Zigzag(Block):
    """Batches that share one load of each layer's weights: the block schedule of FlexGen.

    All batches pass a layer before the first one passes the next.

    Attributes:
        batches: Pieces into which the sequences are cut.
    """

    kind: Literal["zigzag"]
    batches: int = Field(ge=1)

    @property
    def replicas(self) -> int:
        """Return the copies of the group: one."""
        return 1


class Einsums(Block):
    """How fused attention is mapped on a spatial array, as a cascade of Einsums.

    Attributes:
        cascade: How often the keys are walked.
        schedule: `overlapped`: arrays work on neighbouring tiles at the same time; `serial`: within
            a tile each Einsum waits for those it reads, and the next tile for this one.
        tiles: Of a cascade of one pass: whether tiles of queries `divide` their number, or the last
            one may be smaller (`uneven`).
    """

    cascade: Literal["three-pass", "two-pass", "one-pass"]
    schedule: Literal["overlapped", "serial"] = "overlapped"
    tiles: Literal["divide", "uneven"] = "divide"

    @model_validator(mode="after")
    def _fits(self) -> Einsums:
        if self.tiles == "uneven" and self.cascade != "one-pass":
            raise ValueError(f"tiles are of cascade: one-pass, got {self.cascade}. leave them out")
        return self
