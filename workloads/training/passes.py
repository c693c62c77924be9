"""Tables of a training step: forward pass, recomputation and backward pass of one microbatch.

Backward of each node, with dY the gradient of its output (K the tokens of a product):

    product Y = X W      dX = dY W^T, and dW = X^T dY added to the gradients where W is trained
    scores, context      dQ = dS K, dK = dS^T Q; dP = dO V^T, dV = P^T dO
    one attention kernel scores again, then these four: 5 products in place of 2 (Dao, arXiv
                         2307.08691, section 3.1), priced as 2.5 calls of the forward kernel
    norm, activation     read dY and their input, write dX; a norm's gain reads both once more
    short convolution    as a norm, with its taps for the gain; a gate reads dY and both factors
    softmax, dropout     read dY and their output or mask, write dX
    enter, leave         the collectives of `tape`

A tensor that two nodes read gets the sum of two gradients, an elementwise row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from opbyte.core.ops import BlockBuilder, Number, OpTable, OpTableBuilder
from opbyte.workloads.training.nodes import (
    ATTENTION,
    GATES,
    GIVEN,
    PRODUCTS,
    Node,
    Recipe,
    Tape,
    again,
)

#: Products of attention's backward kernel, over those of its forward kernel.
FLASH_BACKWARD = 2.5

_Emit = Callable[[BlockBuilder, Tape], None]


def forward_table(tapes: list[Tape], order: list[int]) -> OpTable:
    """Return the forward pass of one microbatch."""
    table = _table(tapes, order, lambda block, tape: _forward(block, tape, list(tape.nodes)))
    assert table is not None, "a model has operators"
    return table


def recompute_table(tapes: list[Tape], order: list[int], recompute: str) -> OpTable | None:
    """Return what runs once more before the backward pass, None if nothing does.

    Args:
        recompute: `none`, `selective` (attention without its matrices), `dense` (layers without
            attention) or `full` (whole layers).
    """
    if recompute == "none":
        return None

    def emit(block: BlockBuilder, tape: Tape) -> None:
        whole = recompute in ("full", "dense") and tape.is_layer
        chosen = recompute == "selective" and not tape.recipe.fused
        nodes = [n for n in tape.nodes if whole or (chosen and again(n))]
        if recompute == "dense":
            nodes = [n for n in nodes if n.kind not in ATTENTION]
        _forward(block, tape, nodes)

    return _table(tapes, order[::-1], emit)


def backward_table(tapes: list[Tape], order: list[int]) -> OpTable:
    """Return the backward pass of one microbatch."""
    table = _table(tapes, order[::-1], lambda block, tape: _Backward(block, tape).run())
    assert table is not None, "a model has operators"
    return table


def _table(tapes: list[Tape], order: list[int], emit: _Emit) -> OpTable | None:
    builder = OpTableBuilder()
    kept: dict[int, int] = {}
    for i, tape in enumerate(tapes):
        before = len(builder.names)
        with builder.block(tape.name, tape.stage) as block:
            emit(block, tape)
        if len(builder.names) > before:
            kept[i] = block.index
    builder.order = [kept[i] for i in order if i in kept]
    return builder.build() if builder.order else None


def _forward(block: BlockBuilder, tape: Tape, nodes: list[Node]) -> None:
    """Add the forward rows of some of a tape's nodes; what others made comes from outside."""
    index = {id(node): i for i, node in enumerate(tape.nodes)}
    rows: dict[int, int] = {}
    for node in nodes:
        kind = _collective(node, tape.recipe)
        own = index[id(node)]
        if node.kind == "enter" and not kind:
            if node.inputs[0] in rows:
                rows[own] = rows[node.inputs[0]]
            continue
        inputs = [i for i in node.inputs if i in rows]
        absent = [i for i in node.inputs if i not in rows and i != GIVEN]
        numbers = dict(node.numbers)
        if node.kind == "context" and inputs:
            # The values are in `side_bytes`.
            inputs, absent = inputs[:1], []
        outside = sum((tape.size(i) for i in absent), 0.0)
        if GIVEN in node.inputs or (node.kind == "enter" and GIVEN in node.inputs):
            numbers["in_bytes"] = tape.given
        numbers["side_bytes"] = node["side_bytes"] + outside
        if node.kind == "enter":
            numbers["out_bytes"] = node["payload"]
        if node.kind == "softmax" and not tape.recipe.fused:
            kind = "causal_softmax"
        row = block.add(
            node.name, kind or node.kind, dtype=node.dtype, labels=tuple(node.labels),
            inputs=[rows[i] for i in dict.fromkeys(inputs)], **numbers,
        )  # fmt: skip
        rows[own] = row
        if node.spread is not None:
            block.spread(row, node.spread)


def _collective(node: Node, recipe: Recipe) -> str:
    """Return the collective that a node is in the forward pass, if it is one."""
    if node.kind == "enter":
        return "all_gather" if recipe.splits else ""
    if node.kind == "all_reduce":
        loss = node.name == "loss_all_reduce"
        return "reduce_scatter" if recipe.splits and not loss else "all_reduce"
    return ""


@dataclass(slots=True)
class _Backward:
    """Adds the backward rows of one block.

    Attributes:
        grads: Rows that made the gradient of each node's output; None for what the block is given.
    """

    block: BlockBuilder
    tape: Tape
    grads: dict[int, list[int | None]] = field(default_factory=dict)
    gathered: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        """Add the rows, from the last node to the first."""
        tape = self.tape
        users = tape.users()
        last = len(tape.nodes) - 1
        for i in range(last, -1, -1):
            node = tape.nodes[i]
            if node.name == "loss_all_reduce" or node.kind in ("softmax", "score"):
                if node.kind in ATTENTION and not tape.recipe.fused:
                    self._one(i, node)
                continue
            if i not in users and i not in self.grads:
                self.grads[i] = [None]
            self._one(i, node)
        if len(self.grads.get(GIVEN, ())) > 1:
            self._gradient(GIVEN)

    # -- gradients ---------------------------------------------------------------------------

    def _gradient(self, node: int) -> tuple[list[int], Number]:
        """Return the rows that hold a node's gradient, and bytes of it from outside the block."""
        tape = self.tape
        found = self.grads.get(node, [None])
        if node == GIVEN or not _joins(tape.nodes[node]):
            found = self._added(node, found)
            self.grads[node] = found
        rows = [row for row in found if row is not None]
        return rows, tape.size(node) if None in found else 0.0

    def _added(self, node: int, found: list[int | None]) -> list[int | None]:
        """Return one gradient of several, added two at a time."""
        while len(found) > 1:
            size = self.tape.size(node)
            rows = [r for r in found[:2] if r is not None]
            name = "input" if node == GIVEN else self.tape.nodes[node].name
            row = self._vector(
                f"{name}_gradient_sum{len(found) if len(found) > 2 else ''}", "elementwise", rows,
                size * (2 - len(rows)), size,
            )  # fmt: skip
            found = [row, *found[2:]]
        return found

    def _give(self, inputs: tuple[int, ...], row: int | None) -> None:
        for i in dict.fromkeys(inputs):
            self.grads.setdefault(i, []).append(row)

    def _vector(
        self, name: str, kind: str, inputs: list[int], read: Number, written: Number,
        *, flops: Number | None = None, groups: Number = 1.0, weight: Number = 0.0,
    ) -> int:  # fmt: skip
        """Add a row that is no product.

        Args:
            read: Bytes beside those of its inputs.
        """
        size = self.tape.recipe.activation
        return self.block.add(
            name, kind, dtype=self.tape.recipe.model.precision.activation,
            labels=("train", "vector", "backward"), inputs=inputs, side_bytes=read,
            out_bytes=written, flops=written / size if flops is None else flops,
            groups=groups, weight=weight,
        )  # fmt: skip

    # -- one node ----------------------------------------------------------------------------

    def _one(self, i: int, node: Node) -> None:
        if node.kind in PRODUCTS:
            self._product(i, node)
        elif node.kind in ATTENTION:
            self._attention(i, node)
        elif node.kind in ("enter", "all_reduce", "all_to_all"):
            self._exchange(i, node)
        elif node.kind == "embedding":
            self._table_gradient(i, node)
        elif node.kind == "elementwise" and not node.needs:
            self._sum(i, node)
        else:
            self._element(i, node)

    def _product(self, i: int, node: Node) -> None:
        rows, given = self._gradient(i)
        again = self._inputs_again(node) if node.trained else []
        m, n, k = node["m"], node["n"], node["k"]
        groups = node["groups"] if node.kind == "grouped_gemm" else 1.0
        words = (*(node.labels - {node.name, node.kind}), "backward")
        read = self.tape.recipe.activation * m * k * groups
        row = self.block.add(
            f"{node.name}_dx", node.kind, dtype=node.dtype, labels=words, inputs=rows,
            m=m, n=k, k=n, groups=groups, flops=node["flops"], weight=node["weight"],
            expert=node["expert"], in_bytes=given, out_bytes=read,
        )  # fmt: skip
        if node.spread is not None:
            self.block.spread(row, node.spread)
        if node.trained:
            size = self.tape.recipe.gradient * n * k * groups
            self.block.add(
                f"{node.name}_dw", node.kind, dtype=node.dtype, labels=(*words, "gradient"),
                inputs=[*rows, *again], m=k, n=n, k=m, groups=groups, flops=node["flops"],
                in_bytes=given, side_bytes=size + (0.0 if again else read), out_bytes=size,
            )  # fmt: skip
            if np.any(node.bias > 0.0):
                bias = self.tape.recipe.gradient * node.bias
                elements = m * node.bias
                self._vector(f"{node.name}_db", "elementwise", rows, given, bias, flops=elements)
        self._give(node.inputs, row)

    def _inputs_again(self, node: Node) -> list[int]:
        """Return the all-gather of a product's input, of which each device kept its tokens."""
        entered = [i for i in node.inputs if i != GIVEN and self.tape.nodes[i].kind == "enter"]
        if not entered or not self.tape.recipe.splits:
            return []
        at = entered[0]
        if at not in self.gathered:
            source = self.tape.nodes[at]
            self.gathered[at] = self._exchanged("all_gather", f"{source.name}_again", source, [])
        return [self.gathered[at]]

    def _attention(self, i: int, node: Node) -> None:
        if self.tape.recipe.fused:
            self._flash(i, node)
        elif node.kind == "softmax":
            rows, given = self._gradient(i)
            row = self._vector(
                "softmax_dx", "softmax_backward", rows, given + node["out_bytes"],
                node["out_bytes"], flops=node["flops"], groups=node["groups"],
            )  # fmt: skip
            self._give(node.inputs, row)
        else:
            self._batched(i, node)

    def _batched(self, i: int, node: Node) -> None:
        """Add the two products of scores, or of context, over whole rectangles."""
        rows, given = self._gradient(i)
        m, n, k, groups = node["m"], node["n"], node["k"], node["groups"]
        words = ("train", "backward", "attention_core")
        size = self.tape.recipe.activation
        left, right = size * groups * m * k, size * groups * n * k
        add = partial(
            self.block.add, dtype=node.dtype, labels=words, inputs=rows, groups=groups,
            sequences=node["sequences"], in_bytes=given,
        )  # fmt: skip
        first = add(f"{node.name}_da", node.kind, m=m, n=k, k=n, side_bytes=right, out_bytes=left)
        second = add(f"{node.name}_db", node.kind, m=n, n=k, k=m, side_bytes=left, out_bytes=right)
        if node.kind == "score":
            self._give(node.inputs, first)
            self._give(node.inputs, second)
        else:
            self._give(node.inputs[:1], first)
            self._give(node.inputs[1:], second)

    def _flash(self, i: int, node: Node) -> None:
        """Add the backward kernel of attention, at the rate of the forward kernel."""
        tape = self.tape
        softmax = node.inputs[0]
        (score,) = tape.nodes[softmax].inputs
        rows, given = self._gradient(i)
        out = node["out_bytes"]
        delta = self._vector("attention_delta", "elementwise", rows, given + out, out * 0.0 + 1.0)
        first = tape.nodes[score]
        keys = first["side_bytes"]
        queries = first["groups"] * first["m"] * first["k"] * tape.recipe.activation
        last: list[int] = [*rows, delta]
        for part in (first, tape.nodes[softmax], node):
            numbers = dict(part.numbers)
            for column in ("groups", "sequences", "flops"):
                numbers[column] = part[column] * FLASH_BACKWARD
            numbers["in_bytes"] = given if part is first else 0.0
            # Queries, keys, values and the result are read, three gradients written.
            moved = queries + keys + node["side_bytes"]
            numbers["side_bytes"] = moved + out if part is first else 0.0
            numbers["out_bytes"] = moved if part is node else part["out_bytes"]
            row = self.block.add(
                f"{part.name}_dx", part.kind, dtype=part.dtype, labels=(*part.labels, "backward"),
                inputs=last, **numbers,
            )  # fmt: skip
            last = [row]
        self._give((first.inputs[0], node.inputs[1]), last[0])

    def _exchange(self, i: int, node: Node) -> None:
        rows, _ = self._gradient(i)
        splits = self.tape.recipe.splits
        if node.kind == "all_to_all":
            row: int | None = self._exchanged("all_to_all", f"{node.name}_dx", node, rows)
        elif node.kind == "enter":
            kind = "reduce_scatter" if splits else "all_reduce"
            row = self._exchanged(kind, f"{node.name}_dx", node, rows)
        elif splits:
            row = self._exchanged("all_gather", f"{node.name}_dx", node, rows)
        else:
            for one in self.grads[i]:
                self._give(node.inputs, one)
            return
        self._give(node.inputs, row)

    def _exchanged(self, kind: str, name: str, node: Node, rows: list[int]) -> int:
        payload = node["payload"]
        shared = kind == "reduce_scatter"
        return self.block.add(
            name, kind, dtype=node.dtype, labels=("train", "collective", "backward"), inputs=rows,
            flops=0.0, payload=payload, participants=node["participants"],
            out_bytes=payload / node["participants"] if shared else payload,
        )  # fmt: skip

    def _table_gradient(self, i: int, node: Node) -> None:
        """Add the gradients of the rows that a table gave, and pass on what was added to them."""
        if node.trained:
            rows, given = self._gradient(i)
            size = node["out_bytes"] / self.tape.recipe.activation * self.tape.recipe.gradient
            self._vector(f"{node.name}_dw", "embedding", rows, given + size, size)
        for one in self.grads.get(i, [None]):
            self._give(node.inputs, one)

    def _sum(self, i: int, node: Node) -> None:
        """Pass the gradient of a sum on to all that was added, through its mask if it has one."""
        rows, given = self._gradient(i)
        mask = node.keeps.get((i, "mask"))
        if mask is not None:
            size = node["out_bytes"]
            row = self._vector(f"{node.name}_dropout_dx", "dropout", rows, given + mask, size)
            self._give(node.inputs[:1], row)
            rest = node.inputs[1:]
        else:
            rest = node.inputs
        for one in self.grads[i]:
            self._give(rest, one)

    def _element(self, i: int, node: Node) -> None:
        """Add a row that reads dY and what was kept, and writes the gradients of all inputs."""
        loss = node.kind == "cross_entropy"
        rows, given = ([], 0.0) if loss else self._gradient(i)
        kept = node["out_bytes"] if loss else sum(node.keeps.values(), 0.0)
        written = sum((self.tape.size(j) for j in node.inputs), 0.0)
        if node.name in GATES:
            # Two factors as wide as their product; the projection holds three such parts.
            kept = written = 2.0 * node["out_bytes"]
        row = self._vector(
            f"{node.name}_dx", node.kind, rows, given + kept, written, flops=2.0 * node["flops"],
            groups=node["groups"] if node.kind == "norm" else 1.0, weight=node["weight"],
        )  # fmt: skip
        if node.trained:
            gain = node["weight"] / self.tape.recipe.activation * self.tape.recipe.gradient
            self._vector(
                f"{node.name}_dw", "elementwise", rows, given + kept + gain, gain,
                flops=2.0 * node["flops"],
            )  # fmt: skip
        self._give(node.inputs, row)


def _joins(node: Node) -> bool:
    """Return whether the gradients that a node gets are of different parts of its output."""
    joined = ("qkv", "qkv_sum", "qk_norm", "in_proj")
    return node.name in joined or node.kind == "rotary"
