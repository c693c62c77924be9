"""The routed experts of one layer as a work, on one device: what follows the router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.ffn import MoeFfn
from opbyte.workloads.ffn_ops import expert_load, expert_network
from opbyte.workloads.model import Layer, Model
from opbyte.workloads.numeric import share
from opbyte.workloads.precision import Precision
from opbyte.workloads.routing import Routing
from opbyte.workloads.rows import VECTOR_FLOPS, Rows, Sizes
from opbyte.workloads.spans import Segment
from opbyte.workloads.work import WORKS, Work

#: Bytes of an entry in the lists of picks: expert, place.
_INDEX_BYTES = 4.0


@WORKS.register("moe")
@dataclass(frozen=True)
class Moe(Work):
    """Tokens sorted by expert, two grouped products with an activation between, and their sum.

    Every token is on the device, whether or not one of its experts is; with `ep_size` > 1 it is the
    device with most picks, and activation and sum run over all picks, as fused kernels do.

    Attributes:
        tokens: Tokens of the batch.
        hidden: Outer width.
        ffn: Inner width of one expert, whole.
        experts: Experts of the layer.
        top_k: Experts that a token picks.
        routing: How tokens choose, such as uniform, balanced, zipf_0.8 or power_law_1.2.
        dtype: Number format of activations.
        weight_dtype: Number format of the experts; `dtype` where it is empty.
        tp_size: Devices over which each expert is split.
        ep_size: Devices over which experts are dealt.
        gated: Experts have three matrices, not two.
        seed: Of what is drawn.
    """

    kind: ClassVar[str] = "moe"
    vector_fields: ClassVar[tuple[str, ...]] = ("tokens",)
    least: ClassVar[Mapping[str, float]] = {"seed": 0.0}
    alone: ClassVar[bool] = True

    tokens: Number
    hidden: int
    ffn: int
    experts: int
    top_k: int
    routing: str = "uniform"
    dtype: str = "bf16"
    weight_dtype: str = ""
    tp_size: int = 1
    ep_size: int = 1
    gated: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If a size is no whole number of at least one, tokens pick more experts
                than there are, or there are more devices than experts or columns.
            ConfigError: If a dtype is unknown.
        """
        super().__post_init__()
        object.__setattr__(self, "weight_dtype", self.weight_dtype or self.dtype)
        for name in ("hidden", "ffn", "experts", "top_k", "tp_size", "ep_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise WorkloadError(f"moe: {name} must be a whole number of at least 1: {value!r}")
        if not self.top_k <= self.experts or self.ep_size > self.experts:
            raise WorkloadError(
                f"moe: {self.experts} experts are fewer than top_k = {self.top_k} or "
                f"ep_size = {self.ep_size}"
            )
        if self.tp_size > self.ffn:
            raise WorkloadError(f"moe: tp_size = {self.tp_size} for {self.ffn} columns")
        Routing.named(self.routing)

    @property
    def sequences(self) -> Number:
        """Return the tokens: each stands for itself."""
        return self.tokens

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase."""
        named = Routing.named(self.routing)
        routing = Routing(named.kind, named.skew, fullest=self.ep_size > 1, seed=self.seed)
        ffn = MoeFfn(self.experts, self.top_k, self.ffn, matrices=3 if self.gated else 2)
        precision = Precision(weight=self.weight_dtype, activation=self.dtype, kv=self.dtype)
        model = Model(
            "moe", self.hidden, 1, (Layer(None, ffn, norms=1),), (0,), precision=precision
        )
        segment = Segment("prefill", 1.0, self.tokens)
        picks = self.tokens * self.top_k
        load = expert_load(routing, ffn, self.tokens, self.ep_size)
        builder = OpTableBuilder()
        with builder.block("moe") as block:
            rows = Rows(
                block, model, Sizes.of(model), parallel, routing, (segment,), self.tokens,
                ("prefill", "ffn"),
            )  # fmt: skip
            align = rows.vector(
                "align", "router", (), VECTOR_FLOPS["select"] * picks, 0.0,
                in_bytes=2.0 * _INDEX_BYTES * picks, state_write=_INDEX_BYTES * picks,
            )  # fmt: skip
            down = expert_network(
                rows, ffn, (align,), load, share(self.ffn, self.tp_size), self.hidden, picks,
                rows.hidden_bytes(),
            )  # fmt: skip
            if self.ep_size > 1:
                # Picks of other devices' experts count as zeros in the sum.
                down = rows.vector("clear", "elementwise", (down,), 0.0, picks * self.hidden)
            mixed = picks * self.hidden
            rows.vector(
                "combine", "elementwise", (down,), VECTOR_FLOPS["combine"] * mixed,
                self.tokens * self.hidden,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase("moe", builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of the device's experts, and of the activations of all picks."""
        del parallel
        matrices = 3 if self.gated else 2
        width = share(self.ffn, self.tp_size)
        own = share(self.experts, self.ep_size) * matrices * width * self.hidden
        size = lookup(self.dtype).bytes_per_element
        return {
            "expert": own * lookup(self.weight_dtype).bytes_per_element,
            "activation": self.tokens * self.top_k * (self.hidden + width) * size,
        }
