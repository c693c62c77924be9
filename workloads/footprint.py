"""What one device must hold at once, by tensor class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from opbyte.core.ops import Array, Number, OpTable
from opbyte.core.parallel import Parallel
from opbyte.workloads.ffn_ops import expert_split
from opbyte.workloads.layers import lower_step, stages_of
from opbyte.workloads.mixers import Attention, LatentAttention, Mamba, ShortConv
from opbyte.workloads.model import Layer, Model, MoeFfn
from opbyte.workloads.numeric import share
from opbyte.workloads.rows import Sizes
from opbyte.workloads.spans import Segment, Step, held

CLASSES = ("weight", "expert", "kv", "state", "activation")


@lru_cache(maxsize=64)
def weight_bytes(model: Model, parallel: Parallel) -> tuple[Array, Array]:
    """Return (other weights, routed experts) of one device in each stage, bytes, each (pp,).

    Counted from the lowered rows of one token, which read every matrix of a device once; a table
    that is looked up counts in full, divided over the devices of a tensor-parallel group, and
    parameters that no row reads (`extra`) are added to every device.
    """
    sizes = Sizes.of(model)
    encoder = (Segment("prefill", 1.0, 1.0),) if model.encoder else ()
    step = Step((Segment("prefill", 1.0, 1.0, source=1.0, fills_source=True),), encoder)
    table = lower_step(model, step, parallel)
    rows = table["weight"][:, 0] * table.repeats
    rows[[kind == "embedding" for kind in table.kinds]] = 0.0
    weight: Array = np.zeros(parallel.pp)
    np.add.at(weight, table.stage[table.block_of], rows)
    other = sizes.stored["other"]
    run = (*model.encoder, *model.order)
    stages = stages_of(len(run), parallel, model.name)
    tables = table_bytes(model, parallel)
    vocab = tables["embedding"]
    weight[0] += sum(tables.values())
    shared_table = model.tied and parallel.pp == 1
    weight[-1] += model.extra * other - (vocab if shared_table else 0.0)
    if model.encoder and stages[len(model.encoder)] > 0:
        weight[stages[len(model.encoder)]] += vocab
    expert = np.zeros(parallel.pp)
    for index, stage in zip(run, stages, strict=True):
        layer = model.layers[index]
        weight[stage] += layer.extra * other
        if isinstance(layer.ffn, MoeFfn):
            weight[stage] += layer.ffn.extra * other
            expert[stage] += _expert_bytes(model, layer.ffn, parallel, sizes)
    return weight, expert


def table_bytes(model: Model, parallel: Parallel) -> dict[str, float]:
    """Return the bytes of the tables that rows look up, on one device, by the name of the row."""
    stored, width = Sizes.of(model).stored["head"], model.embedding_dim or model.hidden
    columns = model.per_layer_width * len(model.order)
    return {
        "embedding": share(model.vocab, parallel.tp) * width * stored,
        "position": model.position_embeddings * model.hidden * stored,
        "per_layer_embedding": model.per_layer_vocab * columns * stored,
    }


def _expert_bytes(model: Model, ffn: MoeFfn, parallel: Parallel, sizes: Sizes) -> float:
    """Return the bytes of the routed experts of one layer on one device."""
    split, _ = expert_split(parallel, ffn.experts, model.name)
    width, inner = share(ffn.width, split), ffn.latent or model.hidden
    matrices = ffn.matrices * width * inner * sizes.stored["expert"]
    vectors = ffn.expert_bias * ((ffn.matrices - 1) * width + inner) * sizes.stored["other"]
    return share(ffn.experts, parallel.ep) * (matrices + vectors)


def layer_cache_bytes(
    layer: Layer, model: Model, parallel: Parallel, tokens: Number, source: Number
) -> Number:
    """Return the cached bytes of one sequence in one layer on one device.

    `tokens` of the sequence were cached (windows and chunks bound them), and `source` tokens of
    the encoder's output by cross attention.
    """
    kv, tp = Sizes.of(model).kv, parallel.tp
    total: Number = 0.0
    for mixer in (layer.mixer, layer.cross):
        if isinstance(mixer, LatentAttention):
            kept = held(tokens, mixer.window, mixer.chunk)
            total = total + kept * (mixer.kv_elements_per_token * kv)
        elif isinstance(mixer, Attention) and _caches(mixer):
            one = share(mixer.kv_heads, tp) * (mixer.head_dim + mixer.value_dim) * kv
            kept = source if mixer.cross else held(tokens, mixer.window, mixer.chunk)
            total = total + kept * one
    return total


def _caches(mixer: Attention) -> bool:
    """Return whether an attention writes a cache: encoders and layers that reuse one do not."""
    return (mixer.causal or mixer.cross) and not mixer.reuses_cache


def layer_state_bytes(layer: Layer, model: Model, parallel: Parallel) -> float:
    """Return the recurrent state of one sequence in one layer on one device, bytes."""
    size, mixer, tp = Sizes.of(model).state, layer.mixer, parallel.tp
    if isinstance(mixer, Mamba):
        heads, groups = share(mixer.heads, tp), share(mixer.groups, tp)
        conv = heads * mixer.head_dim + 2 * groups * mixer.state
        return size * (heads * mixer.head_dim * mixer.state + conv * (mixer.conv - 1))
    if isinstance(mixer, ShortConv):
        return size * share(mixer.width, tp) * (mixer.conv - 1)
    return 0.0


def activation_bytes(table: OpTable, residual: Number) -> Number:
    """Return a bound on the activations alive at once: the largest row, and the residual stream.

    A row holds its inputs and its output. Score matrices are streamed through attention and never
    held, so score and softmax rows are left out.
    """
    size: Array = table["in_bytes"] + table["side_bytes"] + table["out_bytes"]
    size = np.array(np.broadcast_to(size, (len(table), table.points)))
    streamed = np.array([kind in ("score", "softmax") for kind in table.kinds])
    carried = table.edge_bytes() * ~streamed[table.edges[:, :1]]
    np.add.at(size, table.edges[:, 1], np.broadcast_to(carried, (len(carried), table.points)))
    largest: Array = size[~streamed].max(axis=0)
    total = largest + residual
    return float(total[0]) if total.size == 1 and not isinstance(residual, np.ndarray) else total


def footprint(
    model: Model,
    parallel: Parallel,
    table: OpTable,
    *,
    cached: Sequence[tuple[Number, Number]],
    residual: Number,
    source: Number = 0.0,
) -> dict[str, Number]:
    """Return the bytes of each tensor class on the fullest device of a pipeline.

    Args:
        model: The model.
        parallel: How it is split.
        table: The largest iteration, for the activations.
        cached: (sequences of one replica, cached tokens of each), for all that is cached at once.
        residual: Bytes of the residual stream of one iteration.
        source: Tokens of the encoder's output of each sequence.
    """
    weight, expert = weight_bytes(model, parallel)
    run = (*model.encoder, *model.order)
    stages = stages_of(len(run), parallel, model.name)
    kv: list[Number] = [0.0] * parallel.pp
    state: list[Number] = [0.0] * parallel.pp
    by_layer: dict[int, tuple[Number, Number]] = {}
    for index, stage in list(zip(run, stages, strict=True))[len(model.encoder) :]:
        if index not in by_layer:
            by_layer[index] = _layer_held(model.layers[index], model, parallel, cached, source)
        kv[stage] = kv[stage] + by_layer[index][0]
        state[stage] = state[stage] + by_layer[index][1]
    held_by_stage = [
        {"weight": float(weight[s]), "expert": float(expert[s]), "kv": kv[s], "state": state[s]}
        for s in range(parallel.pp)
    ]
    fullest = _fullest(held_by_stage)
    fullest["activation"] = activation_bytes(table, residual)
    return fullest


def _layer_held(
    layer: Layer,
    model: Model,
    parallel: Parallel,
    cached: Sequence[tuple[Number, Number]],
    source: Number,
) -> tuple[Number, Number]:
    """Return the cache and the recurrent state of all sequences in one layer, bytes."""
    kv: Number = 0.0
    state: Number = 0.0
    one = layer_state_bytes(layer, model, parallel)
    for sequences, tokens in cached:
        kv = kv + sequences * layer_cache_bytes(layer, model, parallel, tokens, source)
        state = state + sequences * one
    return kv, state


def _fullest(stages: list[dict[str, Number]]) -> dict[str, Number]:
    """Return the classes of the stage with the largest sum, point by point."""
    if len(stages) == 1:
        return stages[0]
    totals = np.stack(np.broadcast_arrays(*[np.atleast_1d(sum(s.values())) for s in stages]))
    best = totals.argmax(axis=0)
    if best.size == 1:
        return stages[int(best[0])]
    points = np.arange(best.size)
    return {
        name: np.stack([np.broadcast_to(s[name], best.size) for s in stages])[best, points]
        for name in stages[0]
    }
