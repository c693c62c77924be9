"""What a transformer is made of: the sizes that decide its operations and bytes, and nothing else.

A model is a tuple of *distinct* layers and the order in which they run. A layer is a mixer (what
looks along the sequence) followed by a feed-forward part. Every class counts its own parameters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

from opbyte.core.dtypes import bytes_of
from opbyte.workloads.ffn import DenseFfn, Ffn, MoeFfn
from opbyte.workloads.mixers import Attention, LatentAttention, Mamba, Mixer, ShortConv
from opbyte.workloads.precision import TENSOR_CLASSES, Precision, TensorClass

__all__ = [
    "Attention",
    "DenseFfn",
    "Ffn",
    "LatentAttention",
    "Layer",
    "Mamba",
    "Mixer",
    "Model",
    "MoeFfn",
    "Precision",
    "ShortConv",
    "TensorClass",
]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: mixer, optional cross attention, optional feed-forward part.

    Attributes:
        mixer: None for a layer that is a feed-forward part alone (Nemotron-H).
        ffn: None for a layer that is a mixer alone (Nemotron-H).
        norms: Norm operators over the hidden size (Gemma has four in a layer).
        norm_bias: They are layer norms with scale and bias; else RMS norms with a scale.
        cross: Attention to the encoder's output, between mixer and feed-forward part.
        parallel: Mixer and FFN read the same input (Falcon): neither waits for the other.
        per_layer_input: Width of a per-layer embedding that is gated and added at the end of the
            layer (Gemma 4's small models): one matrix hidden -> width, one width -> hidden; 0
            for none.
        extra: Further vector elements that no operator of ours carries (tables, scalars).
    """

    mixer: Mixer | None
    ffn: Ffn | None
    norms: int = 2
    norm_bias: bool = False
    cross: Attention | None = None
    parallel: bool = False
    per_layer_input: int = 0
    extra: int = 0

    def class_parameters(self, hidden: int, *, active: bool = False) -> dict[TensorClass, int]:
        """Return the learned parameters by tensor class, or those that one token uses."""
        mixers = [mixer for mixer in (self.mixer, self.cross) if mixer is not None]
        attention = sum(mixer.matrix_parameters(hidden) for mixer in mixers)
        other = sum(mixer.vector_parameters(hidden) for mixer in mixers) + self.extra
        other += self.norms * hidden * (2 if self.norm_bias else 1)
        dense = 2 * hidden * self.per_layer_input
        expert = 0
        if isinstance(self.ffn, MoeFfn):
            count = self.ffn.top_k if active else self.ffn.experts
            one = self.ffn.expert_matrix_parameters(hidden)
            dense += self.ffn.always_matrix_parameters(hidden)
            expert = count * one
            other += self.ffn.router_parameters(hidden) + self.ffn.extra
            other += count * (self.ffn.expert_parameters(hidden) - one)
        elif self.ffn is not None:
            dense += self.ffn.matrix_parameters(hidden)
            other += self.ffn.vector_parameters(hidden)
        return {"attention": attention, "ffn": dense, "expert": expert, "head": 0, "other": other}

    def parameters(self, hidden: int, *, active: bool = False) -> int:
        """Return the learned parameters, or those that one token uses."""
        return sum(self.class_parameters(hidden, active=active).values())


@dataclass(frozen=True)
class Model:
    """A language model.

    Counted: what one forward pass of the base model uses. Left out: multi-token-prediction layers
    (model cards leave them out too) and the vision and audio towers of multi-modal models; `notes`
    says so.

    Attributes:
        layers: The distinct layers.
        order: Index into `layers` for each layer as it runs.
        encoder: Index into `layers` for each encoder layer (encoder-decoder models); they run
            once over the input, before the decoder.
        position_embeddings: Rows of a learned position table.
        tied: The LM head uses the embedding matrix.
        final_norms: Norm operators after the last layer (two in encoder-decoder models, one of
            them after the encoder).
        embedding_norms: Norm operators after the embedding (BLOOM).
        norm_bias: Norms outside layers have scale and bias.
        embedding_dim: Width of the embedding where it is not the hidden size (OPT-350M): one
            matrix in, one matrix out; 0 for the hidden size.
        per_layer_vocab: Rows of the per-layer embedding table (Gemma 4's small models), which has
            `len(order) * per_layer_width` columns; a token reads one row.
        per_layer_width: Width of one layer's slice of that table; also the columns, per layer,
            of a matrix from the hidden size that runs once per token.
        extra: Parameters outside layers that no operator of ours carries.
        max_context: Longest context, tokens; 0 where it is not known.
        source: Where the sizes come from.
        published_parameters: The model card's count, less what it counts and this model leaves
            out (a vision tower); 0 where there is none.
        published_active: The model card's parameters active per token, 0 where there are none.
        notes: What a reader of the counts should know.
    """

    name: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    order: tuple[int, ...]
    encoder: tuple[int, ...] = ()
    position_embeddings: int = 0
    tied: bool = False
    head_bias: bool = False
    final_norms: int = 1
    embedding_norms: int = 0
    norm_bias: bool = False
    embedding_dim: int = 0
    per_layer_vocab: int = 0
    per_layer_width: int = 0
    extra: int = 0
    max_context: int = 0
    precision: Precision = field(default_factory=Precision)
    source: str = ""
    published_parameters: float = 0.0
    published_active: float = 0.0
    notes: tuple[str, ...] = ()

    @cached_property
    def counts(self) -> dict[int, int]:
        """Return how often each distinct layer runs, decoder and encoder together."""
        return dict(Counter(self.order + self.encoder))

    @property
    def head_parameters(self) -> int:
        """Return the elements of the LM head's matrix (the embedding's, where they are tied)."""
        return self.vocab * (self.embedding_dim or self.hidden)

    def _outside(self, *, active: bool) -> dict[TensorClass, int]:
        width = self.embedding_dim or self.hidden
        skips_rows = active and self.moe_layers > 0
        head = self.vocab * width * (1 if self.tied or skips_rows else 2)
        head += self.position_embeddings * self.hidden
        columns = self.per_layer_width * len(self.order)
        head += 0 if active else self.per_layer_vocab * columns
        dense = self.hidden * columns + (2 * width * self.hidden if width != self.hidden else 0)
        norms = (self.final_norms + self.embedding_norms) * self.hidden
        other = norms * (2 if self.norm_bias else 1) + self.per_layer_width + self.extra
        other += self.head_bias * self.vocab
        return {"attention": 0, "ffn": dense, "expert": 0, "head": head, "other": other}

    def class_parameters(self, *, active: bool = False) -> dict[TensorClass, int]:
        """Return the learned parameters by tensor class, or those that one token uses."""
        total = self._outside(active=active)
        for index, count in self.counts.items():
            layer = self.layers[index].class_parameters(self.hidden, active=active)
            for name in TENSOR_CLASSES:
                total[name] += count * layer[name]
        return total

    @cached_property
    def parameters(self) -> int:
        """Return the number of learned parameters."""
        return sum(self.class_parameters().values())

    @cached_property
    def active_parameters(self) -> int:
        """Return the parameters that one token uses.

        A model without experts uses all. With experts, the matrix of an embedding that is not the
        LM head's does not count, for a token reads one row of it (gpt-oss's model card counts so);
        nor does a per-layer embedding table (Gemma 4's "effective" parameters).
        """
        return sum(self.class_parameters(active=True).values())

    @cached_property
    def weight_bytes_by_class(self) -> dict[TensorClass, float]:
        """Return the bytes of all weights as stored, by tensor class, scales included."""
        stored = self.precision.weight_bytes
        return {name: stored(name, count) for name, count in self.class_parameters().items()}

    @property
    def weight_bytes(self) -> float:
        """Return the bytes of all weights as stored."""
        return sum(self.weight_bytes_by_class.values())

    @property
    def expert_bytes(self) -> float:
        """Return the bytes of one routed expert of one layer, the largest; 0 without experts."""
        moe = [layer.ffn for layer in self.layers if isinstance(layer.ffn, MoeFfn)]
        return max((self._one_expert(ffn) for ffn in moe), default=0.0)

    def _one_expert(self, ffn: MoeFfn) -> float:
        matrices = ffn.expert_matrix_parameters(self.hidden)
        vectors = ffn.expert_parameters(self.hidden) - matrices
        stored = self.precision.weight_bytes
        return stored("expert", matrices) + stored("other", vectors)

    @property
    def moe_layers(self) -> int:
        """Return how many layers have routed experts, encoder included."""
        is_moe = (isinstance(self.layers[i].ffn, MoeFfn) * c for i, c in self.counts.items())
        return sum(is_moe)

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """Return the cache growth per token over all decoder layers, bytes.

        Windows are taken as not yet full. The cache of a cross attention is of the input's length
        and does not grow; `cross_kv_bytes_per_token` has it.
        """
        elements = sum(self._mixer_kv(i) for i in self.order)
        return float(bytes_of(self.precision.kv, elements))

    @cached_property
    def cross_kv_bytes_per_token(self) -> float:
        """Return the bytes of cross-attention cache per input token over all decoder layers."""
        cross = (self.layers[i].cross for i in self.order)
        elements = sum(c.kv_elements_per_token for c in cross if c is not None)
        return float(bytes_of(self.precision.kv, elements))

    def _mixer_kv(self, index: int) -> int:
        mixer = self.layers[index].mixer
        return mixer.kv_elements_per_token if mixer is not None else 0

    def kv_bytes(self, context: int) -> float:
        """Return the cache of one sequence of `context` tokens, bytes: windows are bounded.

        A sliding window keeps its last tokens, chunked attention at most one chunk.
        """
        total = 0.0
        for index in self.order:
            mixer = self.layers[index].mixer
            if isinstance(mixer, Attention | LatentAttention):
                bound = min((b for b in (mixer.window, mixer.chunk) if b), default=context)
                total += mixer.kv_elements_per_token * min(context, bound)
        return float(bytes_of(self.precision.kv, total))

    @cached_property
    def state_bytes(self) -> float:
        """Return the constant state of one sequence over all layers, bytes (Mamba, ShortConv)."""
        mixers = (self.layers[i].mixer for i in self.order)
        elements = sum(m.state_elements for m in mixers if m is not None)
        return float(bytes_of(self.precision.state_dtype, elements))

    def with_precision(self, **dtypes: str | None) -> Model:
        """Return a copy stored otherwise, such as `with_precision(weight="int4", kv="fp8")`.

        Keys: weight, expert, head, attention, ffn, activation, kv, state, operand. `weight` sets
        all classes of matrices that are not named beside it.

        Raises:
            ConfigError: If a key or a dtype is unknown.
        """
        return replace(self, precision=self.precision.override(**dtypes))
