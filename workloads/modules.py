"""The matrices of a model under the names that checkpoints use, and patterns over such names.

Quantised checkpoints name the modules that they leave alone: whole (`lm_head`), by wildcard
(`model.layers.*.self_attn`), by regular expression (`re:.*mlp.gate$`), or in parts (`self_attn`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product

from opbyte.workloads.model import (
    Attention,
    DenseFfn,
    LatentAttention,
    Layer,
    Mamba,
    Mixer,
    Model,
    MoeFfn,
    TensorClass,
)

# A word of a module's name: the alternatives that families use for it.
Word = tuple[str, ...]
_PREFIXES = ("", "model.", "model.language_model.", "language_model.model.", "backbone.")
_LEADING = frozenset(("model", "language_model", "backbone", "transformer", "base_model", "*", ""))
_ATTENTION: Word = ("self_attn", "mixer", "attention", "attn", "self_attention", "linear_attn")
_FFN: Word = ("mlp", "feed_forward", "block_sparse_moe", "mixer", "moe")
_GATE: Word = ("gate_proj", "gate_up_proj", "w1", "linear")
_UP: Word = ("up_proj", "gate_up_proj", "w3", "fc1", "dense_h_to_4h")
_DOWN: Word = ("down_proj", "w2", "fc2", "dense_4h_to_h")


@dataclass(frozen=True, slots=True)
class Module:
    """One matrix: where it stands and how many elements it has.

    Attributes:
        layer: Number of its layer, -1 outside layers.
        words: Its name inside the layer.
        elements: Elements over all experts.
    """

    tensor_class: TensorClass
    layer: int
    words: tuple[Word, ...]
    elements: int

    @property
    def path(self) -> tuple[Word, ...]:
        """Return the words of its whole name."""
        if self.layer < 0:
            return self.words
        return (("layers", "h", "block", "blocks"), (str(self.layer),), *self.words)

    def spellings(self) -> Iterator[str]:
        """Return every name that it may have."""
        for prefix, words in product(_PREFIXES, product(*self.path)):
            yield prefix + ".".join(words)


def modules_of(model: Model) -> list[Module]:
    """Return all matrices that quantisation may shrink."""
    found = [
        Module("head", -1, (("embed_tokens", "embeddings", "wte", "word_embeddings"),), e)
        for e in [model.head_parameters]
    ]
    if not model.tied:
        found.append(Module("head", -1, (("lm_head", "output"),), model.head_parameters))
    inside = [list(_inside(layer, model.hidden)) for layer in model.layers]
    for number, index in enumerate(model.order):
        found += [Module(cls, number, words, count) for cls, words, count in inside[index]]
    return found


Inside = tuple[TensorClass, tuple[Word, ...], int]


def _inside(layer: Layer, hidden: int) -> Iterator[Inside]:
    """Return the matrices of a layer as (class, name, elements)."""
    if layer.mixer is not None:
        yield from _mixer(layer.mixer, hidden)
    for name in ("per_layer_input_gate", "per_layer_projection"):
        if layer.per_layer_input:
            yield "ffn", ((name,),), hidden * layer.per_layer_input
    if isinstance(layer.ffn, MoeFfn):
        yield from _experts(layer.ffn, hidden)
    elif layer.ffn is not None:
        yield from _dense(layer.ffn, hidden, (_FFN,), "ffn")


def _mixer(mixer: Mixer, hidden: int) -> Iterator[Inside]:
    at: tuple[Word, ...] = (_ATTENTION,)
    if isinstance(mixer, Attention):
        yield "attention", (*at, ("q_proj", "qkv_proj")), hidden * mixer.query_width
        yield "attention", (*at, ("k_proj", "qkv_proj")), hidden * mixer.key_width
        yield "attention", (*at, ("v_proj", "qkv_proj")), hidden * mixer.value_width
        yield "attention", (*at, ("o_proj", "out_proj")), hidden * mixer.out_width
    elif isinstance(mixer, LatentAttention):
        for name, elements in _latent(mixer, hidden):
            yield "attention", (*at, *((word,) for word in name.split("."))), elements
    else:
        if not isinstance(mixer, Mamba):
            at = (("conv",),)
        inner = hidden * (mixer.in_width if isinstance(mixer, Mamba) else 3 * mixer.width)
        outer = hidden * (mixer.inner if isinstance(mixer, Mamba) else mixer.width)
        yield "attention", (*at, ("in_proj",)), inner
        yield "attention", (*at, ("out_proj",)), outer


def _latent(mixer: LatentAttention, hidden: int) -> Iterator[tuple[str, int]]:
    if mixer.q_lora_rank:
        yield "q_a_proj", hidden * mixer.q_lora_rank
        yield "q_b_proj", mixer.q_lora_rank * mixer.query_width
    else:
        yield "q_proj", hidden * mixer.query_width
    yield "kv_a_proj_with_mqa", hidden * mixer.down_width
    yield "kv_b_proj", mixer.kv_lora_rank * mixer.heads * (mixer.nope_dim + mixer.v_dim)
    yield "o_proj", mixer.heads * mixer.v_dim * hidden
    if mixer.index_topk and mixer.index_heads:
        source = mixer.q_lora_rank or hidden
        yield "indexer.wq_b", source * mixer.index_heads * mixer.index_dim
        yield "indexer.wk", hidden * mixer.index_dim
        yield "indexer.weights_proj", hidden * mixer.index_heads


def _dense(
    ffn: DenseFfn, hidden: int, at: tuple[Word, ...], tensor_class: TensorClass
) -> Iterator[Inside]:
    for word in (_GATE, _UP, _DOWN)[3 - ffn.matrices :]:
        yield tensor_class, (*at, word), hidden * ffn.width


def _experts(ffn: MoeFfn, hidden: int) -> Iterator[Inside]:
    one = DenseFfn(ffn.width, ffn.matrices)
    for cls, words, count in _dense(
        one, ffn.latent or hidden, (_FFN, ("experts",), ("0",)), "expert"
    ):
        yield cls, words, count * ffn.experts
    if ffn.shared_width:
        at = (_FFN, ("shared_experts", "shared_expert"))
        yield from _dense(DenseFfn(ffn.shared_width, ffn.matrices), hidden, at, "ffn")
    if ffn.dense_width:
        yield from _dense(DenseFfn(ffn.dense_width, ffn.matrices), hidden, (_FFN,), "ffn")
    for name in ("fc1_latent_proj", "fc2_latent_proj"):
        if ffn.latent:
            yield "ffn", (_FFN, (name,)), hidden * ffn.latent


@dataclass(slots=True)
class Patterns:
    """Patterns over module names, sorted so that those of one layer are tried there only."""

    everywhere: list[list[str]] = field(default_factory=list)
    by_layer: dict[int, list[list[str]]] = field(default_factory=dict)
    expressions: list[re.Pattern[str]] = field(default_factory=list)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Patterns:
        """Sort patterns.

        Raises:
            re.error: If a regular expression is none.
        """
        sorted_ = cls()
        for text in texts:
            if text.startswith("re:"):
                sorted_.expressions.append(re.compile(text[3:]))
                continue
            words = [word for word in text.split(".") if word]
            while words and words[0] in _LEADING:
                words.pop(0)
            while words and words[-1] in ("*", "weight"):
                words.pop()
            if len(words) > 1 and words[0] == "layers" and words[1].isdecimal():
                sorted_.by_layer.setdefault(int(words[1]), []).append(words)
            elif words:
                sorted_.everywhere.append(words)
        return sorted_

    def match(self, module: Module) -> bool:
        """Return whether a pattern names the module, or a part of the model that holds it."""
        path = module.path
        candidates = (*self.everywhere, *self.by_layer.get(module.layer, ()))
        if any(_contains(path, words) for words in candidates):
            return True
        if not self.expressions:
            return False
        return any(e.match(name) for name in module.spellings() for e in self.expressions)


def _contains(path: tuple[Word, ...], words: list[str]) -> bool:
    """Return whether the words of a pattern stand in a row in a module's name."""
    span = len(words)
    return any(
        all(_same(path[start + i], words[i]) for i in range(span))
        for start in range(len(path) - span + 1)
    )


def _same(word: Word, pattern: str) -> bool:
    if pattern in word:
        return True
    return any(c in pattern for c in "*?[") and any(fnmatchcase(w, pattern) for w in word)
