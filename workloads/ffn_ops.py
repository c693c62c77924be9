"""Feed-forward parts as rows: dense networks, and mixtures of experts with their collectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import REPLICAS, Array, Number, Spread
from opbyte.core.parallel import Parallel
from opbyte.workloads.ffn import DenseFfn, MoeFfn
from opbyte.workloads.numeric import is_array, maximum, minimum, share
from opbyte.workloads.routing import Routing
from opbyte.workloads.rows import VECTOR_FLOPS, Rows


def dense_ffn(rows: Rows, ffn: DenseFfn, x: int) -> int:
    """Add the rows of a dense network, columns split over devices; return the down projection."""
    width = share(ffn.width, rows.parallel.tp)
    return _network(rows, "", x, width, ffn.matrices, bias=ffn.bias, sub_norm=width * ffn.sub_norm)


def _network(
    rows: Rows, prefix: str, x: int, width: int, matrices: int, *, bias: bool, sub_norm: int = 0
) -> int:
    hidden = rows.model.hidden
    wide = width * (matrices - 1)
    first = "gate_up" if matrices == 3 else "up"
    up = rows.gemm(
        f"{prefix}{first}", (x,), wide, hidden, "ffn", vectors=wide * bias,
        parts=(float(width),) * (matrices - 1),
    )  # fmt: skip
    last = _activation(rows, f"{prefix}activation", up, rows.tokens * width, matrices)
    if sub_norm:
        last = rows.norm(f"{prefix}sub_norm", (last,), width=sub_norm)
    return rows.gemm(f"{prefix}down", (last,), hidden, width, "ffn", vectors=hidden * bias)


def _activation(rows: Rows, name: str, source: int, elements: Number, matrices: int) -> int:
    word = "gated_activation" if matrices == 3 else "activation"
    return rows.vector(name, "activation", (source,), VECTOR_FLOPS[word] * elements, elements)


def expert_split(parallel: Parallel, experts: int, name: str) -> tuple[int, int]:
    """Return (devices over which each expert is split, replicas that share one set of experts).

    `ep` takes devices of the tensor-parallel group first, then data-parallel replicas: with
    ep <= tp every expert is split over tp / ep devices; with ep > tp experts are whole and ep / tp
    replicas send their tokens to each other. `expert_tp` says over how many devices an expert is
    split instead, and ep * expert_tp / tp replicas share the experts.

    Raises:
        WorkloadError: If there are fewer experts than ep, or ep does not divide tp * dp evenly.
    """
    tp, ep, split = parallel.tp, parallel.ep, parallel.expert_tp
    if split:
        if tp % split or ep * split % tp or tp * parallel.dp % (ep * split) or experts < ep:
            raise WorkloadError(
                f"{name}: {experts} experts in ep={ep} parts, each expert on expert_tp={split} "
                f"devices, do not fill replicas of tp={tp} evenly, of which there are "
                f"{parallel.dp}. Let expert_tp divide tp, and ep * expert_tp be tp times a divisor "
                "of dp"
            )
        return split, ep * split // tp
    if ep == 1:
        return tp, 1
    if experts < ep:
        raise WorkloadError(
            f"{name}: ep={ep} does not divide {experts} experts: a device would have none. "
            f"Use ep <= {experts}"
        )
    if tp * parallel.dp % ep or (tp % ep and ep % tp):
        raise WorkloadError(
            f"{name}: ep={ep} must divide tp * dp = {tp * parallel.dp} and tp={tp} must divide "
            "it or be divided by it. Use a divisor of tp, or tp times a divisor of dp"
        )
    return max(tp // ep, 1), max(ep // tp, 1)


def moe_ffn(rows: Rows, ffn: MoeFfn, x: int) -> int:
    """Add the rows of a mixture of experts; return the row that holds its (partial) sum.

    Router, selection, dispatch, grouped products over the distinct experts that the tokens hit,
    combination; shared experts and a dense network beside them as dense rows.

    Raises:
        WorkloadError: If the experts can not be split so.
    """
    model, tokens = rows.model, rows.tokens
    outer = model.hidden
    inner = ffn.latent or outer
    logits = rows.gemm(
        "router", (x,), ffn.experts, outer, "other", vectors=ffn.experts * ffn.router_bias
    )
    picked = tokens * ffn.experts
    choose = rows.vector(
        "top_k", "router", (logits,), VECTOR_FLOPS["router"] * picked, tokens * 2 * ffn.top_k
    )
    narrow = rows.gemm("latent_down", (x,), inner, outer, "ffn") if ffn.latent else x
    last = _experts(rows, ffn, narrow, choose, inner)
    mixed = tokens * ffn.top_k * inner
    last = rows.vector(
        "combine", "elementwise", (last,), VECTOR_FLOPS["combine"] * mixed, tokens * inner
    )
    if ffn.latent:
        last = rows.gemm("latent_up", (last,), outer, inner, "ffn")
    beside = []
    if ffn.shared_width:
        beside.append(_shared(rows, ffn, x))
    if ffn.dense_width:
        width = share(ffn.dense_width, rows.parallel.tp)
        beside.append(_network(rows, "dense_", x, width, ffn.matrices, bias=False))
    if beside:
        elements = tokens * outer
        total = VECTOR_FLOPS["add"] * len(beside) * elements
        last = rows.vector("sum_experts", "elementwise", (last, *beside), total, elements)
    return last


def _shared(rows: Rows, ffn: MoeFfn, x: int) -> int:
    width = share(ffn.shared_width, rows.parallel.tp)
    down = _network(rows, "shared_", x, width, ffn.matrices, bias=False)
    if not ffn.shared_gate:
        return down
    gate = rows.gemm("shared_gate", (x,), 1, rows.model.hidden, "other")
    elements = rows.tokens * rows.model.hidden
    return rows.vector(
        "shared_scale", "elementwise", (down, gate), VECTOR_FLOPS["add"] * elements, elements
    )


def _experts(rows: Rows, ffn: MoeFfn, x: int, choose: int, inner: int) -> int:
    """Add dispatch, grouped products and the return trip; return the last row."""
    parallel, sizes, routing = rows.parallel, rows.sizes, rows.routing
    split, replicas = expert_split(parallel, ffn.experts, rows.model.name)
    together = rows.tokens * replicas
    load = expert_load(routing, ffn, together, parallel.ep)
    payload = together * (ffn.top_k * inner * sizes.activation / (parallel.ep * split))
    inputs: tuple[int, ...] = (x, choose)
    send: Callable[[str, tuple[int, ...]], int] | None = None
    if parallel.ep > 1 and parallel.dispatch:
        send = partial(_all_to_all, rows, payload, parallel.ep, ())
    elif replicas > 1:
        send = partial(_all_to_all, rows, payload, replicas, (REPLICAS,))
    if send:
        inputs = (send("dispatch", inputs),)
    last = expert_network(rows, ffn, inputs, load, share(ffn.width, split), inner, load.assigned)
    return send("return", (last,)) if send else last


def _all_to_all(
    rows: Rows,
    payload: Number,
    participants: int,
    words: tuple[str, ...],
    name: str,
    inputs: tuple[int, ...],
) -> int:
    return rows.collective(name, "all_to_all", inputs, payload, participants, words)


@dataclass(frozen=True, slots=True)
class Load:
    """What the experts of a device have to do.

    Attributes:
        assigned: Picks of its experts.
        hit: Experts that are picked.
        tokens: Tokens that pick one of them, at most.
        counts: Picks of each expert, (experts, 1 or points), or what makes them when asked.
    """

    assigned: Number
    hit: Number
    tokens: Number
    counts: Array | Callable[[], Array]


def expert_load(routing: Routing, ffn: MoeFfn, tokens: Number, devices: int) -> Load:
    """Return the load of one of the devices over which experts are split."""
    counts: Array | Callable[[], Array]
    drawn = routing.counts(ffn.experts, ffn.top_k, tokens, devices)
    if drawn is not None:
        several = is_array(tokens)
        assigned = drawn.sum(axis=0) if several else float(drawn.sum())
        hit = (drawn > 0).sum(axis=0).astype(float) if several else float((drawn > 0).sum())
        counts = drawn
    else:
        assigned = tokens * ffn.top_k / devices
        hit = routing.distinct(ffn.experts, ffn.top_k, tokens) / devices
        if routing.fullest:
            assigned = assigned * routing.imbalance(ffn.experts, ffn.top_k, tokens, devices)
        counts = partial(routing.likely_counts, ffn.experts, ffn.top_k, tokens, devices)
    # A device may get no pick at all: then one expert computes nothing.
    return Load(assigned, maximum(hit, 1e-9), minimum(tokens, assigned), counts)


def expert_network(
    rows: Rows,
    ffn: MoeFfn,
    inputs: tuple[int, ...],
    load: Load,
    width: int,
    inner: int,
    activated: Number,
    in_bytes: Number = 0.0,
) -> int:
    """Add the grouped products of the experts that are hit; return the down projection.

    Args:
        width: Inner width of an expert on this device.
        inner: Outer width.
        activated: Picks whose activation is computed.
        in_bytes: Of the tokens, where no row makes them.
    """
    wide = width * (ffn.matrices - 1)
    first = "gate_up" if ffn.matrices == 3 else "up"
    spread = Spread(load.counts, load.tokens, width)
    up = _grouped(
        rows, f"expert_{first}", inputs, load, wide, inner, wide * ffn.expert_bias, in_bytes
    )
    last = _activation(rows, "expert_activation", up, activated * width, ffn.matrices)
    down = _grouped(rows, "expert_down", (last,), load, inner, width, inner * ffn.expert_bias)
    for row in (up, down):
        rows.block.spread(row, spread)
    return down


def _grouped(
    rows: Rows,
    name: str,
    inputs: tuple[int, ...],
    load: Load,
    n: int,
    k: int,
    vectors: float,
    in_bytes: Number = 0.0,
) -> int:
    """Add one product of each expert that is hit with the tokens that chose it."""
    sizes, assigned, hit = rows.sizes, load.assigned, load.hit
    one = n * k * sizes.stored["expert"] + vectors * sizes.stored["other"]
    return rows.block.add(
        name,
        "grouped_gemm",
        dtype=sizes.compute["expert"],
        inputs=inputs,
        labels=(*rows.words, "expert", sizes.formats["expert"]),
        m=assigned / hit,
        n=n,
        k=k,
        groups=hit,
        flops=2.0 * n * k * assigned,
        expert=hit * one,
        in_bytes=in_bytes,
        out_bytes=assigned * (n * sizes.activation),
    )
