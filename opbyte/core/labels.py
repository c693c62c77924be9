"""The words by which mappings select operators: of classes and formats, kinds, names.

Every work that ships makes operators of these words alone. A mapping may name what one work lacks,
such as experts on a machine for all models; a word that no work has is a mistake
(`opbyte.sim.labels`).
"""

from __future__ import annotations

import re

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError

__all__ = ["CLASSES", "LABELS", "is_label"]

#: What operators are part of, the usual words of rules.
CLASSES = frozenset({
    "all", "dense", "expert", "vector", "collective", "attention", "attention_prefill",
    "attention_decode", "attention_mixed", "mixer", "ffn", "head", "embedding", "window",
    "index", "spread", "prefill", "decode", "mixed", "train", "backward", "gradient", "optimizer",
    "adapter", "attention_core", "replicas", "loss", "stream", "fft", "ifft", "filter", "chakra",
})  # fmt: skip
#: What operators compute.
KINDS = frozenset({
    "gemm", "grouped_gemm", "score", "softmax", "causal_softmax", "softmax_backward", "context",
    "norm", "activation", "gated_activation", "rotary", "elementwise", "router", "kv_append",
    "conv", "scan", "dropout", "cross_entropy", "all_reduce", "all_gather", "reduce_scatter",
    "all_to_all", "send", "enter",
})  # fmt: skip
_NETWORK = ("gate_up", "up", "down", "activation", "sub_norm")
#: What operators are called, without the endings of `_END`.
NAMES = frozenset({
    "qkv", "out", "qk_norm", "output_gate", "cross_q", "cross_kv", "cross_out", "cross_qk_norm",
    "cross_append", "q", "q_down", "q_norm", "q_up", "kv_down", "kv_norm", "kv_up", "absorb",
    "value_up", "index_q", "index_k", "index_norm", "index_weight", "index_append", "index_score",
    "index_topk", "in_proj", "gate_in", "gate_out", "gated_norm",
    *(f"{of}{name}" for of in ("", "expert_", "shared_", "dense_") for name in _NETWORK),
    "top_k", "dispatch", "return", "combine", "shared_gate", "shared_scale", "sum_experts",
    "latent_down", "latent_up", "align", "clear",
    *(f"{of}{name}" for of in ("", "cross_", "ffn_")
      for name in ("norm", "norm_input", "post_norm", "add", "all_reduce")),
    "input", "parallel_add", "position", "embedding_in", "embedding_out", "embedding_norm",
    "embedding_all_reduce", "encoder_norm", "final_norm", "lm_head", "logits_all_gather",
    *(f"per_layer_{name}"
      for name in ("embedding", "in", "norm", "gate", "activation", "up", "add")),
    "attention_delta", "loss_all_reduce", "mul", "real", "transpose",
    *(f"{of}_{name}" for of in ("fft", "ifft") for name in ("gemm", "twiddle", "transpose")),
})  # fmt: skip
LABELS = CLASSES | KINDS | NAMES

#: What names of operators end with: a segment (`score.decode0`), a number, and in training what of
#: an operator's backward pass it is.
_END = re.compile(r"(\.[a-z]+[0-9]*|[0-9]+|_(dx|dw|da|db|again|gradient_sum|sum|dropout))$")
#: Operators of adapters are called after the modules of a model.
_ADAPTER = re.compile(r".+[._](shrink|expand)[0-9]*(_d[xw])?$")


def is_label(word: str) -> bool:
    """Return whether some work that ships has operators of this label."""
    prefix, dash, dtype = word.partition("-")
    if dash and prefix in ("weight", "kv"):
        return _is_format(dtype)
    while word not in LABELS:
        shorter = _END.sub("", word)
        if shorter == word:
            return _ADAPTER.match(word) is not None
        word = shorter
    return True


def _is_format(dtype: str) -> bool:
    try:
        return lookup(dtype).name == dtype
    except ConfigError:
        return False
