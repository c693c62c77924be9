"""What one device of a training job executes and holds, by stage: the input of a simulation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError, WorkloadError
from opbyte.core.ops import Array, Number, OpTable, with_columns
from opbyte.core.parallel import Parallel
from opbyte.workloads.footprint import activation_bytes, table_bytes, weight_bytes
from opbyte.workloads.mixers import Attention, ShortConv
from opbyte.workloads.model import Model
from opbyte.workloads.training.nodes import PRODUCTS, Node, Recipe, Tape
from opbyte.workloads.training.passes import backward_table, forward_table, recompute_table
from opbyte.workloads.training.tape import adapter_elements, tape_of

#: Kinds of rows whose operations utilisation counts, each over its whole rectangle.
COUNTED = PRODUCTS | {"score", "context"}
#: Bytes of a momentum, a variance and a master weight (mixed precision, Rajbhandari et al., arXiv
#: 1910.02054, section 3.1).
STATE = 4.0
#: Tensor classes of the optimizer, with the 32-bit gradients that it may read.
STATES = ("momentum", "variance", "master_weight", "master_gradient")


@dataclass(frozen=True)
class Plan:
    """One microbatch on one device of each virtual stage of the pipeline.

    Virtual stage s is chunk s // pp of stage s mod pp.

    Attributes:
        parallel: Degrees, with `pp` stages of `interleave` chunks each.
        tapes: Of each block.
        order: Blocks as they run forward.
        forward, recompute, backward: Tables; no `recompute` where nothing runs twice.
        mode: What is recomputed.
        swapped: Share of the tokens whose activations are kept though `mode` would have them
            computed again.
        weights: Bytes of all weights of each virtual stage, (virtual,).
        trained: Elements that are trained of each, each (virtual,) or (virtual, points).
    """

    recipe: Recipe
    parallel: Parallel
    tapes: tuple[Tape, ...]
    order: tuple[int, ...]
    forward: OpTable
    recompute: OpTable | None
    backward: OpTable
    mode: str
    weights: Array
    trained: Array
    swapped: Number = 0.0

    @property
    def virtual(self) -> int:
        """Return the virtual stages."""
        return self.parallel.pp * self.parallel.interleave

    def of_stages(self, values: Array) -> Array:
        """Return the sum over the chunks of each stage of what is given by virtual stage."""
        pp = self.parallel.pp
        return np.stack([values[s::pp].sum(axis=0) for s in range(pp)])

    @cached_property
    def kept(self) -> list[Number]:
        """Return the activations that a microbatch keeps in each virtual stage, bytes."""
        kept: list[Number] = [0.0] * self.virtual
        for block in self.order:
            tape = self.tapes[block]
            kept[tape.stage] = kept[tape.stage] + self._kept_of(tape)
        return kept

    def _kept_of(self, tape: Tape) -> Number:
        """Return the bytes that a microbatch keeps of a block."""
        least = tape.kept(self.mode)
        return least + self.swapped * (tape.kept("none") - least)

    @cached_property
    def working(self) -> Number:
        """Return the activations beside them: a layer that runs again, and the largest row."""
        layers = [tape for tape in self.tapes if tape.is_layer]
        again: Number = 0.0
        if self.mode != "none":
            again = np.max(
                np.stack(np.broadcast_arrays(*(t.kept("none") - self._kept_of(t) for t in layers)))
                , axis=0,
            )  # fmt: skip
        return again + self._largest_row

    @property
    def _largest_row(self) -> Number:
        table = self.forward
        if self.recipe.chunked:
            head = [name.startswith("head") for name in table.blocks]
            whole = ~np.array(head)[table.block_of][:, None]
            columns = {c: table[c] * whole for c in ("in_bytes", "side_bytes", "out_bytes")}
            table = with_columns(table, **columns)
        return activation_bytes(table, 0.0)

    @cached_property
    def model_flops(self) -> Number:
        """Return what one microbatch needs of one device of each stage: no product twice."""
        return self._needed(masked=False)

    @cached_property
    def causal_flops(self) -> Number:
        """Return the same, of scores only those that the mask lets through."""
        return self._needed(masked=True)

    def _needed(self, *, masked: bool) -> Number:
        total: Number = 0.0
        for block in self.order:
            for node in self.tapes[block].nodes:
                if node.kind in COUNTED:
                    passes = 3.0 if node.trained or node.kind not in PRODUCTS else 2.0
                    size = _rectangle(node)
                    if masked and node.kind not in PRODUCTS:
                        size = node.causal
                    total = total + passes * size
        return total

    @cached_property
    def layers(self) -> list[float]:
        """Return how many layers each virtual stage has."""
        count = [0.0] * self.virtual
        for block in self.order:
            count[self.tapes[block].stage] += float(self.tapes[block].is_layer)
        return count

    @cached_property
    def largest_kept(self) -> Number:
        """Return the bytes that a microbatch keeps of the layer that keeps most."""
        layers = [self._kept_of(tape) for tape in self.tapes if tape.is_layer]
        largest: Array = np.max(np.stack(np.broadcast_arrays(*layers)), axis=0)
        return largest

    @cached_property
    def hardware_flops(self) -> Number:
        """Return the operations of all products that one microbatch executes."""
        once = _products(self.forward) + _products(self.backward)
        again = _products(self.recompute) if self.recompute is not None else 0.0
        return once + (1.0 - self.swapped) * again

    @cached_property
    def matrices(self) -> list[tuple[float, bool]]:
        """Return the bytes of each matrix of a device's weights and whether it is a layer's.

        Matrices that one product multiplies together count by themselves; experts, which are one
        tensor in checkpoints' modules, together. A table counts whole, however few of its rows are
        looked up; an embedding that is the head's matrix, too, as that.
        """
        found = []
        model, tables = self.recipe.model, table_bytes(self.recipe.model, self.parallel)
        for block in self.order:
            tape = self.tapes[block]
            for node in tape.nodes:
                if node.kind in PRODUCTS:
                    size = float(np.max(node["weight"] + node["expert"]))
                    parts = node.parts or (1.0,)
                    found += [(size * p / sum(parts), tape.is_layer) for p in parts]
                elif node.kind == "embedding" and not (node.name == "embedding" and model.tied):
                    found.append((tables[node.name], tape.is_layer))
        return found

    @cached_property
    def largest_layer(self) -> float:
        """Return the bytes of the weights of the largest layer of a device."""
        return max(
            sum(float(np.max(n["weight"] + n["expert"])) for n in t.nodes)
            for t in self.tapes
            if t.is_layer
        )  # fmt: skip


def _rectangle(node: Node) -> Number:
    return 2.0 * node["m"] * node["n"] * node["k"] * node.numbers.get("groups", 1.0)


def _products(table: OpTable) -> Number:
    mine = np.array([kind in COUNTED for kind in table.kinds])
    size = 2.0 * table["m"] * table["n"] * table["k"] * table["groups"] * table.repeats[:, None]
    total: Array = size[mine].sum(axis=0)
    return float(total[0]) if total.size == 1 else total


def plan_of(forward: OpTable, recipe: Recipe, parallel: Parallel, recompute: str) -> Plan:
    """Return the plan of a forward table whose stages are virtual ones.

    Raises:
        UncoveredError: If a row has no backward pass, or adapters meet short convolutions.
        WorkloadError: If weights that are narrower than 16 bits are to be trained.
    """
    if recipe.adapter and any(isinstance(x.mixer, ShortConv) for x in recipe.model.layers):
        raise UncoveredError(
            f"{recipe.model.name}: no model says where adapters of short convolutions go. train "
            "all weights, or a model of attention"
        )
    tapes = tuple(tape_of(forward, block, recipe) for block in range(len(forward.blocks)))
    filled = [i for i in forward.order.tolist() if tapes[i].nodes]
    several = list(tapes)
    split = _virtual(parallel)
    weight, expert = weight_bytes(recipe.model, split)
    weights: Array = weight + expert
    return Plan(
        recipe,
        parallel,
        tapes,
        tuple(filled),
        forward_table(several, filled),
        recompute_table(several, filled, recompute),
        backward_table(several, filled),
        recompute,
        weights,
        _trained(recipe, weights, tapes, filled, split.pp),
    )


def _virtual(parallel: Parallel) -> Parallel:
    return Parallel(
        parallel.tp, parallel.pp * parallel.interleave, parallel.ep, parallel.dp,
        dispatch=parallel.dispatch, expert_tp=parallel.expert_tp,
    )  # fmt: skip


def _trained(
    recipe: Recipe, weights: Array, tapes: tuple[Tape, ...], order: list[int], virtual: int
) -> Array:
    model = recipe.model
    if recipe.adapter is None:
        precision = model.precision
        sizes = {lookup(precision.dtype(c)).bytes_per_element for c in model.class_parameters()}
        (size, *others) = sizes
        if others or size < 2.0:
            raise WorkloadError(
                f"train: all weights of {model.name} are trained, and must have one type of 16 or "
                "32 bits. give `precision: {weight: bf16}`, or train adapters (`lora`)"
            )
        return weights / size
    trained = np.zeros(virtual)
    for block in order:
        trained[tapes[block].stage] += float(np.max(adapter_elements(tapes[block])))
    return trained


def check_split(model: Model, parallel: Parallel) -> None:
    """Refuse models and splits that have no tape.

    Raises:
        WorkloadError: If there are more virtual stages than layers, or chunks of one stage.
        UncoveredError: If a layer is no attention and network, or replicas split experts.
    """
    name, layers = model.name, len(model.order)
    known = (Attention, ShortConv)
    mixers = {type(x.mixer).__name__ for x in model.layers if not isinstance(x.mixer, known)}
    if mixers or model.encoder:
        raise UncoveredError(
            f"{name}: no model runs {', '.join(sorted(mixers)) or 'an encoder'} backward. train a "
            "decoder of softmax attention, short convolutions, dense networks and experts"
        )
    if parallel.interleave > 1 and parallel.pp == 1:
        raise WorkloadError(f"{name}: interleave={parallel.interleave} needs pp > 1")
    if parallel.pp * parallel.interleave > layers:
        raise WorkloadError(
            f"{name}: pp * interleave = {parallel.pp * parallel.interleave} chunks for "
            f"{layers} layers: one would be empty. lower one of them"
        )
    if model.moe_layers and (parallel.ep > parallel.tp or (parallel.zero and parallel.ep > 1)):
        raise UncoveredError(
            f"{name}: no model splits experts over replicas in training. use ep <= tp, and "
            "zero: 0 beside ep"
        )


def bytes_of_states(trained: Number, zero: int, dp: int, *, weight: float) -> dict[str, Number]:
    """Return the bytes of the optimizer's tensors on one device.

    Args:
        trained: Elements.
        weight: Bytes of an element of the weights; those of 4 are their own master.
    """
    held = trained / (dp if zero >= 1 else 1)
    states = {"momentum": STATE * held, "variance": STATE * held}
    if weight < STATE:
        states["master_weight"] = STATE * held
    return states


def in_flight(pp: int, interleave: int, stage: int, microbatches: Number) -> Number:
    """Return the chunks of microbatches whose activations a stage holds at most.

    1F1B holds pp - stage microbatches (Narayanan et al., arXiv 2104.04473, section 2.2);
    interleaved, 2 (pp - stage - 1) + (v - 1) pp + 1 chunks.
    """
    if interleave == 1:
        return np.minimum(float(pp - stage), microbatches)
    ahead = 2.0 * (pp - stage - 1) + (interleave - 1) * pp + 1.0
    return np.minimum(ahead, microbatches * interleave)
