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
    """A matrix of one layer, or one of the same size in each expert of it.

    Attributes:
        tensor_class: What it counts as.
        layer: Number of its layer, -1 outside layers.
        words: Its name inside the layer.
        inputs: Width that it reads.
        outputs: Width that it gives.
        copies: How many there are (experts).
    """

    tensor_class: TensorClass
    layer: int
    words: tuple[Word, ...]
    inputs: int
    outputs: int
    copies: int = 1

    @property
    def elements(self) -> int:
        """Return the elements of all copies."""
        return self.inputs * self.outputs * self.copies

    @property
    def path(self) -> tuple[Word, ...]:
        """Return the words of its whole name."""
        if self.layer < 0:
            return self.words
        return (("layers", "h"), (str(self.layer),), *self.words)

    def spellings(self) -> Iterator[str]:
        """Return every name that it may have."""
        for prefix, words in product(_PREFIXES, product(*self.path)):
            yield prefix + ".".join(words)


def modules_of(model: Model) -> list[Module]:
    """Return the matrices of the decoder's and encoder's layers, embedding and LM head."""
    vocab, width = model.vocab, model.embedding_dim or model.hidden
    names: Word = ("embed_tokens", "embeddings", "wte", "word_embeddings")
    found = [Module("head", -1, (names,), width, vocab)]
    if not model.tied:
        found.append(Module("head", -1, (("lm_head", "output"),), width, vocab))
    inside = [list(_inside(layer, model.hidden)) for layer in model.layers]
    for number, index in enumerate(model.order + model.encoder):
        found += [
            Module(cls, number, words, inputs, outputs, copies)
            for cls, words, inputs, outputs, copies in inside[index]
        ]
    return found


# Class, name, width in, width out, copies.
Inside = tuple[TensorClass, tuple[Word, ...], int, int, int]


def _inside(layer: Layer, hidden: int) -> Iterator[Inside]:
    """Return the matrices of a layer."""
    for mixer in (layer.mixer, layer.cross):
        if mixer is not None:
            yield from _mixer(mixer, hidden)
    if layer.per_layer_input:
        yield "ffn", (("per_layer_input_gate",),), hidden, layer.per_layer_input, 1
        yield "ffn", (("per_layer_projection",),), layer.per_layer_input, hidden, 1
    if isinstance(layer.ffn, MoeFfn):
        yield from _experts(layer.ffn, hidden)
    elif layer.ffn is not None:
        yield from _dense(layer.ffn, hidden, (_FFN,))


def _mixer(mixer: Mixer, hidden: int) -> Iterator[Inside]:
    if isinstance(mixer, Attention):
        yield "attention", (_ATTENTION, ("q_proj", "qkv_proj")), hidden, mixer.query_width, 1
        if mixer.key_width:
            yield "attention", (_ATTENTION, ("k_proj", "qkv_proj")), hidden, mixer.key_width, 1
        if mixer.value_width:
            yield "attention", (_ATTENTION, ("v_proj", "qkv_proj")), hidden, mixer.value_width, 1
        yield "attention", (_ATTENTION, ("o_proj", "out_proj")), mixer.out_width, hidden, 1
    elif isinstance(mixer, LatentAttention):
        for name, inputs, outputs in _latent(mixer, hidden):
            words = ((word,) for word in name.split("."))
            yield "attention", (_ATTENTION, *words), inputs, outputs, 1
    elif isinstance(mixer, Mamba):
        yield "attention", (_ATTENTION, ("in_proj",)), hidden, mixer.in_width, 1
        yield "attention", (_ATTENTION, ("out_proj",)), mixer.inner, hidden, 1
    else:
        yield "attention", (("conv",), ("in_proj",)), hidden, 3 * mixer.width, 1
        yield "attention", (("conv",), ("out_proj",)), mixer.width, hidden, 1


def _latent(mixer: LatentAttention, hidden: int) -> Iterator[tuple[str, int, int]]:
    if mixer.q_lora_rank:
        yield "q_a_proj", hidden, mixer.q_lora_rank
        yield "q_b_proj", mixer.q_lora_rank, mixer.query_width
    else:
        yield "q_proj", hidden, mixer.query_width
    yield "kv_a_proj_with_mqa", hidden, mixer.down_width
    yield "kv_b_proj", mixer.kv_lora_rank, mixer.heads * (mixer.nope_dim + mixer.v_dim)
    yield "o_proj", mixer.heads * mixer.v_dim, hidden
    if mixer.index_topk and mixer.index_heads:
        source = mixer.q_lora_rank or hidden
        yield "indexer.wq_b", source, mixer.index_heads * mixer.index_dim
        yield "indexer.wk", hidden, mixer.index_dim
        yield "indexer.weights_proj", hidden, mixer.index_heads


def _dense(
    ffn: DenseFfn,
    hidden: int,
    at: tuple[Word, ...],
    tensor_class: TensorClass = "ffn",
    copies: int = 1,
) -> Iterator[Inside]:
    for word in (_GATE, _UP, _DOWN)[3 - ffn.matrices :]:
        inputs, outputs = (ffn.width, hidden) if word is _DOWN else (hidden, ffn.width)
        yield tensor_class, (*at, word), inputs, outputs, copies


def _experts(ffn: MoeFfn, hidden: int) -> Iterator[Inside]:
    one = DenseFfn(ffn.width, ffn.matrices)
    at = (_FFN, ("experts",), ("0",))
    yield from _dense(one, ffn.latent or hidden, at, "expert", ffn.experts)
    if ffn.shared_width:
        shared = DenseFfn(ffn.shared_width, ffn.matrices)
        yield from _dense(shared, hidden, (_FFN, ("shared_experts", "shared_expert")))
    if ffn.dense_width:
        yield from _dense(DenseFfn(ffn.dense_width, ffn.matrices), hidden, (_FFN,))
    if ffn.latent:
        yield "ffn", (_FFN, ("fc1_latent_proj",)), hidden, ffn.latent, 1
        yield "ffn", (_FFN, ("fc2_latent_proj",)), ffn.latent, hidden, 1


@dataclass(slots=True)
class Patterns:
    """Patterns over module names, sorted so that those of one layer are tried there only."""

    everywhere: list[list[str]] = field(default_factory=list)
    by_layer: dict[int, list[list[str]]] = field(default_factory=dict)
    expressions: list[re.Pattern[str]] = field(default_factory=list)
    _answers: dict[tuple[Word, ...], bool] = field(default_factory=dict)

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
        return bool(self.expressions) and self._expressed(module)

    def _expressed(self, module: Module) -> bool:
        """Return whether a regular expression names the module.

        Expressions without a digit can not tell layers apart: their answer is kept.
        """
        if any(character.isdigit() for e in self.expressions for character in e.pattern):
            return any(e.match(name) for name in module.spellings() for e in self.expressions)
        if module.words not in self._answers:
            names = list(module.spellings())
            found = any(e.match(name) for name in names for e in self.expressions)
            self._answers[module.words] = found
        return self._answers[module.words]


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
