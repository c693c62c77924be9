"""One block of a forward pass as a tape: nodes that know what they keep for the backward pass.

The tape is read off the rows that inference runs, so every model family has one. It adds what
training has beside: dropout, the loss, the rows of adapters, and the two points at which tensor
parallelism enters and leaves (Korthikanti et al., arXiv 2205.05198, section 4.2):

    enter   forward nothing, or with sequence parallelism an all-gather over the tokens; backward
            an all-reduce of the input's gradient, or a reduce-scatter
    leave   forward an all-reduce, or a reduce-scatter; backward nothing, or an all-gather

Between `leave` and `enter` every device has all tokens, or with sequence parallelism its share.
A tensor that several nodes keep is kept once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import NUMERIC, Number, OpTable
from opbyte.workloads.model import Model
from opbyte.workloads.model_set import Adapter
from opbyte.workloads.modules import modules_of
from opbyte.workloads.rows import VECTOR_FLOPS
from opbyte.workloads.training.nodes import ATTENTION, GATES, GIVEN, PRODUCTS, Node, Recipe, Tape

#: Rows that inference alone has.
_DROPPED = frozenset({"kv_append", "send"})
#: Kinds that the tape knows how to run backward.
_KNOWN = PRODUCTS | {
    *ATTENTION, "norm", "activation", "rotary", "elementwise", "conv", "router", "embedding",
    "all_reduce", "all_to_all", "dropout", "cross_entropy", "enter",
}  # fmt: skip
#: Elementwise rows whose gradient needs what they read.
_PRODUCTS_OF_TWO = ("combine", "shared_scale", *GATES)
#: Bytes of an element of a dropout mask, of logits in the loss, and of a row's log-sum-exp.
_MASK, _LOSS, _LSE = 1.0, 4.0, 4.0
#: Adapter targets inside a row, in the order of its parts.
_TARGETS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "up": ("up_proj",),
    "down": ("down_proj",),
}
_BY_ROWS = ("out", "down")


def tape_of(table: OpTable, block: int, recipe: Recipe) -> Tape:
    """Return the tape of one block of a forward table.

    Raises:
        UncoveredError: If a row has no backward pass here.
    """
    return _Taping(table, recipe, Tape(recipe, table.blocks[block], int(table.stage[block]))).run(
        block
    )


@dataclass(slots=True)
class _Taping:
    table: OpTable
    recipe: Recipe
    tape: Tape
    node_of: dict[int, int] = field(default_factory=dict)
    entered: dict[int, int] = field(default_factory=dict)

    def run(self, block: int) -> Tape:
        """Return the finished tape."""
        table, tape = self.table, self.tape
        for row in table.rows_of(block).tolist():
            kind, name = table.kinds[row], table.names[row]
            if kind in _DROPPED or name == "logits_all_gather":
                continue
            if kind not in _KNOWN:
                raise UncoveredError(
                    f"{self.recipe.model.name}: no model says how '{name}' ({kind}) runs backward. "
                    "train a model of softmax attention, dense networks and experts"
                )
            self.node_of[row] = self._node(row)
        if tape.name.startswith("embed") and self.recipe.dropout:
            self._dropout("embedding_dropout", len(tape.nodes) - 1)
        if tape.name.startswith("head"):
            self._loss()
        return tape

    # -- one row -----------------------------------------------------------------------------

    def _columns(self, row: int) -> dict[str, Number]:
        numbers = {name: _plain(self.table[name][row]) for name in NUMERIC}
        # Keys and values of the step are activations: there is no cache.
        numbers["side_bytes"] = numbers["side_bytes"] + numbers["kv_read"]
        numbers["kv_read"] = numbers["kv_write"] = 0.0
        numbers["state_read"] = numbers["state_write"] = 0.0
        return numbers

    def _node(self, row: int) -> int:
        table, recipe, tape = self.table, self.recipe, self.tape
        numbers, kind, name = self._columns(row), table.kinds[row], table.names[row]
        sources = table.edges[table.edges[:, 1] == row, 0].tolist()
        inputs = [self.node_of[s] for s in sources if s in self.node_of]
        if np.any(numbers["in_bytes"] > 0.0) and kind != "embedding":
            inputs.append(GIVEN)
            tape.given = numbers["in_bytes"] / (recipe.parallel.tp if recipe.splits else 1)
        tp, leaves = recipe.parallel.tp, kind == "all_reduce"
        splitting = tp > 1 and kind in PRODUCTS
        outside = [i for i in inputs if i == GIVEN or tape.nodes[i].whole]
        if tp > 1 and outside and (splitting or len(outside) < len(inputs)) and not leaves:
            inputs = [self._enter(i) if i in outside else i for i in inputs]
            outside = []
            numbers["in_bytes"] = 0.0
        whole = tp == 1 or leaves or (bool(inputs) and len(outside) == len(inputs))
        if kind == "embedding" and name == "embedding" and tp > 1:
            whole = False
        node = Node(
            name, kind, table.dtypes[row], table.labels[row], numbers, tuple(inputs), whole,
            parts=table.parts.get(row, ()), spread=table.spreads.get(row),
        )  # fmt: skip
        if kind in ATTENTION:
            self._attend(node)
        elif whole and recipe.splits and not leaves:
            _share(node, tp)
        elif leaves and recipe.splits:
            node.numbers["out_bytes"] = node["out_bytes"] / tp
        index = tape.add(node)
        self._keep(index)
        if kind == "softmax" and recipe.dropout and not recipe.fused:
            index = self._dropout("attention_dropout", index, ("attention_core",))
        if kind == "elementwise" and name.endswith("add") and whole and recipe.dropout:
            self._mask(index)
        if recipe.adapter is not None and kind == "gemm":
            index = self._adapt(index, recipe.adapter)
        return index

    def _enter(self, source: int) -> int:
        """Return the node at which a tensor enters tensor parallelism."""
        if source not in self.entered:
            tape, recipe = self.tape, self.recipe
            size = tape.size(source) * (recipe.parallel.tp if recipe.splits else 1)
            self.entered[source] = tape.add(
                Node(
                    f"enter{len(self.entered) or ''}", "enter", recipe.model.precision.activation,
                    frozenset({"train", "collective"}),
                    {"payload": size, "participants": recipe.parallel.tp, "out_bytes": size},
                    (source,),
                )
            )  # fmt: skip
        return self.entered[source]

    def _attend(self, node: Node) -> None:
        """Let the rows of attention be one kernel, or kernels over whole rectangles of scores."""
        node.causal = node["flops"]
        if self.recipe.fused:
            return
        node.labels = (node.labels - {"attention"}) | {"attention_core"}
        if node.kind == "softmax":
            scores = self.tape.nodes[node.inputs[0]]
            node.numbers["out_bytes"] = scores["out_bytes"]
            elements = scores["out_bytes"] / self.recipe.activation
            node.numbers["flops"] = VECTOR_FLOPS["softmax"] * elements
            return
        rectangle = 2.0 * node["m"] * node["n"] * node["k"] * node["groups"]
        node.numbers["flops"] = rectangle
        if node.kind == "score":
            elements = node["groups"] * node["m"] * node["n"]
            node.numbers["out_bytes"] = elements * self.recipe.activation

    # -- what is kept ------------------------------------------------------------------------

    def _keep(self, index: int) -> None:
        tape, recipe = self.tape, self.recipe
        node = tape.nodes[index]
        frozen = recipe.adapter is not None
        if node.kind in PRODUCTS:
            node.trained = not frozen
            if node.trained:
                matrix = node["n"] * node["k"] * node["groups"]
                stored = self._stored(node)
                node.bias = np.maximum((node["weight"] + node["expert"]) / stored - matrix, 0.0)
                if node.kind == "grouped_gemm":
                    node.bias = 0.0
            self._needs(node, node.inputs if node.trained else ())
        elif node.kind in ("norm", "conv", "activation", "router"):
            node.trained = node.kind in ("norm", "conv") and not frozen
            self._needs(node, node.inputs)
        elif node.kind == "elementwise" and any(node.name.endswith(w) for w in _PRODUCTS_OF_TWO):
            self._needs(node, node.inputs)
        elif node.kind == "embedding":
            node.trained = not frozen
        elif node.kind in ATTENTION:
            self._keep_attention(node, index)
        elif node.kind == "cross_entropy" and not recipe.chunked:
            self._needs(node, (index,))

    def _needs(self, node: Node, inputs: tuple[int, ...]) -> None:
        node.needs = tuple(dict.fromkeys(self.tape.source(i) for i in inputs))
        node.keeps = {(i, ""): self.tape.size(i) for i in node.needs}

    def _keep_attention(self, node: Node, index: int) -> None:
        tape = self.tape
        if node.kind == "score":
            (source,) = node.inputs[:1]
            node.needs = (source,)
            node.keeps = {(source, "qkv"): tape.size(source)}
        elif node.kind == "softmax" and not self.recipe.fused:
            node.needs = (index,)
            node.keeps = {(index, ""): node["out_bytes"]}
        elif node.kind == "context":
            score = next(n for n in reversed(tape.nodes[:index]) if n.kind == "score")
            values = next(
                i for i in range(index - 1, -1, -1) if tape.nodes[i].name in ("qkv", "qkv_sum")
            )
            if score.needs != (values,):
                elements = node["groups"] * node["k"] * node["n"]
                node.keeps[values, "qkv"] = elements * self.recipe.activation
            node.inputs = (*node.inputs[:1], values)
            if self.recipe.fused:
                node.keeps[index, ""] = node["out_bytes"]
                node.keeps[index, "lse"] = _LSE * score["groups"] * score["m"]
            else:
                probabilities = node.inputs[0]
                node.keeps[probabilities, ""] = tape.size(probabilities)

    def _stored(self, node: Node) -> float:
        return lookup(node.dtype).bytes_per_element

    # -- what training adds --------------------------------------------------------------------

    def _dropout(self, name: str, source: int, words: tuple[str, ...] = ()) -> int:
        node = self.tape.nodes[source]
        size = node["out_bytes"]
        elements = size / self.recipe.activation
        index = self.tape.add(
            Node(
                name, "dropout", node.dtype, frozenset({"train", "vector", *words}),
                {"flops": elements, "out_bytes": size, "side_bytes": elements * _MASK},
                (source,), node.whole,
            )
        )  # fmt: skip
        self.tape.nodes[index].keeps = {(index, "mask"): elements * _MASK}
        return index

    def _mask(self, index: int) -> None:
        """Let a residual sum drop elements of what it adds, in the same kernel."""
        node = self.tape.nodes[index]
        mask = node["out_bytes"] / self.recipe.activation * _MASK
        node.numbers["side_bytes"] = node["side_bytes"] + mask
        node.keeps = {(index, "mask"): mask}

    def _loss(self) -> None:
        """Add the loss over logits that stay where their columns are."""
        tape, recipe = self.tape, self.recipe
        logits = next(i for i, n in enumerate(tape.nodes) if n.name == "lm_head")
        node = tape.nodes[logits]
        elements, tokens, tp = node["m"] * node["n"], node["m"], recipe.parallel.tp
        words = frozenset({"train", "vector", "head"})
        loss = tape.add(
            Node(
                "loss", "cross_entropy", node.dtype, words,
                {"flops": VECTOR_FLOPS["softmax"] * elements, "out_bytes": elements * _LOSS},
                (logits,),
            )
        )  # fmt: skip
        self._keep(loss)
        if tp > 1:
            # Maxima, sums of exponentials and the label's logits.
            payload = 3.0 * _LOSS * tokens
            tape.add(
                Node(
                    "loss_all_reduce", "all_reduce", node.dtype, frozenset({"train", "collective"}),
                    {"payload": payload, "participants": tp, "out_bytes": payload},
                    (loss,), whole=True,
                )
            )  # fmt: skip

    def _adapt(self, index: int, adapter: Adapter) -> int:
        """Add the adapters of a product's matrices; return the node of the sum."""
        target = self.tape.nodes[index]
        names = _TARGETS.get(target.name, ())
        widths = target.parts or (target["n"],)
        chosen = [
            (name, width)
            for name, width in zip(names, widths, strict=False)
            if name in adapter.targets or "all" in adapter.targets
        ]
        if not chosen:
            return index
        ends = [self._low_rank(target, name, width, adapter) for name, width in chosen]
        added: Number = sum((target["m"] * width for _, width in chosen), 0.0)
        return self.tape.add(
            Node(
                f"{target.name}_sum", "elementwise", target.dtype, frozenset({"train", "vector"}),
                {"flops": added, "out_bytes": target["out_bytes"]}, (index, *ends),
            )
        )  # fmt: skip

    def _low_rank(self, target: Node, name: str, width: Number, adapter: Adapter) -> int:
        """Add the two products of one adapter; return the second."""
        tape, recipe = self.tape, self.recipe
        rank, tokens, inputs = float(adapter.rank), target["m"], target["k"]
        size, stored = recipe.activation, lookup(adapter.dtype).bytes_per_element
        words = frozenset({"train", "adapter", "dense"})

        def product(word: str, n: Number, k: Number, sources: tuple[int, ...]) -> int:
            index = tape.add(
                Node(
                    f"{name}_{word}", "gemm", target.dtype, words,
                    {"m": tokens, "n": n, "k": k, "flops": 2.0 * tokens * n * k,
                     "weight": n * k * stored, "out_bytes": tokens * n * size},
                    sources, trained=True,
                )
            )  # fmt: skip
            self._needs(tape.nodes[index], sources)
            return index

        return product("expand", width, rank, (product("shrink", rank, inputs, target.inputs),))


def _plain(values: object) -> Number:
    array = np.asarray(values, np.float64)
    return float(array[0]) if array.size == 1 else array


def _share(node: Node, parts: int) -> None:
    """Cut a node outside tensor parallelism down to a device's share of the tokens."""
    for column in ("flops", "groups", "in_bytes", "side_bytes", "out_bytes"):
        if column == "groups" and not np.any(node[column] > 1.0):
            continue
        node.numbers[column] = node[column] / parts


def check_adapters(model: Model, adapter: Adapter) -> None:
    """Refuse adapters of matrices that no tape adds them to.

    Raises:
        ConfigError: If the model has no matrix of a target's name.
        UncoveredError: If a target is one of several experts, or none that `_TARGETS` names.
    """
    adapter.parameters(model)
    known = {name for names in _TARGETS.values() for name in names}
    for module in modules_of(model):
        if module.layer < 0 or not adapter.covers(module):
            continue
        names = module.words[-1]
        ffn = not set(names) & {"q_proj", "k_proj", "v_proj", "o_proj"}
        if not set(names) & known or (ffn and model.moe_layers):
            raise UncoveredError(
                f"{model.name}: no model trains adapters of {names[0]}. name targets among "
                f"{', '.join(sorted(known))}, in models with experts those of attention alone"
            )


def adapter_elements(tape: Tape) -> Number:
    """Return the trained elements of a block's adapters on one device."""
    return sum(
        (n["n"] * n["k"] for n in tape.nodes if "adapter" in n.labels and n.kind == "gemm"), 0.0
    )
