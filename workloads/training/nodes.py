"""Nodes of a tape: one operator each, on one device, with what it keeps for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Number, Spread
from opbyte.core.parallel import Parallel
from opbyte.workloads.model import Model
from opbyte.workloads.model_set import Adapter

#: The block's input, among the inputs of its nodes.
GIVEN = -1
#: Kinds of rows that multiply with a matrix of the model.
PRODUCTS = frozenset({"gemm", "grouped_gemm"})
ATTENTION = ("score", "softmax", "context")
#: Products of two parts of a projection, before and after a short convolution.
GATES = ("gate_in", "gate_out")

#: Bytes of what is kept: by the node that made it, and which part of it or beside it.
Kept = dict["tuple[int, str]", Number]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the tape of a block.

    Attributes:
        fused: Scores, softmax and context are one kernel, which keeps no scores.
        dropout: After softmax, before residual sums and after the embedding.
        adapter: Low-rank adapters; then all other weights are frozen.
        gradient: Bytes of an element of the gradients' buffer.
        chunked: Logits are never there as a whole.
    """

    model: Model
    parallel: Parallel
    fused: bool = True
    dropout: bool = False
    adapter: Adapter | None = None
    gradient: float = 4.0
    chunked: bool = False

    @property
    def activation(self) -> float:
        """Return the bytes of an activation."""
        return lookup(self.model.precision.activation).bytes_per_element

    @property
    def splits(self) -> bool:
        """Return whether devices hold parts of the tokens between `leave` and `enter`."""
        return self.parallel.sequence and self.parallel.tp > 1


@dataclass(slots=True)
class Node:
    """One operator of a tape.

    Attributes:
        numbers: Columns of its forward row on one device.
        inputs: Nodes that it reads, `GIVEN` for the block's input.
        whole: Its output is outside tensor parallelism.
        trained: It has weights that are trained.
        bias: Elements of trained vectors beside its matrix.
        keeps: Bytes of each tensor that the backward pass reads again.
        needs: Tensors (nodes) that `keeps` names, without masks and the like.
        parts: See `OpTable`.
        causal: Operations of score and context rows that the mask lets through.
    """

    name: str
    kind: str
    dtype: str
    labels: frozenset[str]
    numbers: dict[str, Number]
    inputs: tuple[int, ...]
    whole: bool = False
    trained: bool = False
    bias: Number = 0.0
    keeps: Kept = field(default_factory=dict)
    needs: tuple[int, ...] = ()
    parts: tuple[float, ...] = ()
    spread: Spread | None = None
    causal: Number = 0.0

    def __getitem__(self, column: str) -> Number:
        """Return a column of the forward row."""
        return self.numbers.get(column, 0.0)


@dataclass(slots=True)
class Tape:
    """The nodes of one block, in the order in which they run.

    Attributes:
        given: Bytes of the block's input on one device.
    """

    recipe: Recipe
    name: str
    stage: int
    given: Number = 0.0
    nodes: list[Node] = field(default_factory=list)

    def size(self, node: int) -> Number:
        """Return the bytes of a node's output, or of the block's input."""
        return self.given if node == GIVEN else self.nodes[node]["out_bytes"]

    def source(self, node: int) -> int:
        """Return the tensor that is kept where a node's output is needed again."""
        while node != GIVEN and self.nodes[node].kind == "enter":
            (node,) = self.nodes[node].inputs
        return node

    def add(self, node: Node) -> int:
        """Append a node and return its index."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    @property
    def is_layer(self) -> bool:
        """Return whether the block is a layer, which checkpoints go around."""
        return not self.name.startswith(("embed", "head"))

    def kept(self, recompute: str) -> Number:
        """Return the bytes that one microbatch keeps of this block until its backward pass.

        Args:
            recompute: `full` keeps a layer's input alone, `dense` beside it what its attention
                kernel made, `selective` nothing between queries, keys, values and the result of
                attention.
        """
        if recompute in ("full", "dense") and self.is_layer:
            made = {
                key: size
                for i, node in enumerate(self.nodes)
                for key, size in node.keeps.items()
                if recompute == "dense" and node.kind == "context" and key[0] == i
            }
            return self.given + sum(made.values(), 0.0)
        tensors: Kept = {}
        for node in self.nodes:
            if recompute == "selective" and again(node):
                tensors |= {key: size for key, size in node.keeps.items() if key[1] == "qkv"}
            else:
                tensors |= node.keeps
        whole = {node for node, word in tensors if not word}
        return sum(
            (s for (node, word), s in tensors.items() if word != "qkv" or node not in whole), 0.0
        )

    def users(self) -> dict[int, list[int]]:
        """Return the nodes that read each node."""
        found: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for source in node.inputs:
                found.setdefault(source, []).append(i)
        return found


def again(node: Node) -> bool:
    """Return whether selective recomputation runs a node once more: attention without matrices."""
    return "attention_core" in node.labels
