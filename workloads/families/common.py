"""What most decoder-only families share: head sizes, windows, and the assembly of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opbyte.workloads.families.fields import LONGEST_CONTEXT, MOST_LAYERS, Fields
from opbyte.workloads.model import Layer, Model

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that every decoder has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


def read_sizes(
    f: Fields,
    *,
    head_dim: int | None = None,
    head_dim_keys: Sequence[str] = ("head_dim",),
    layers: int | None = None,
) -> Sizes:
    """Read the sizes under the names that most families use.

    Args:
        f: The config.
        head_dim: The family's width of a head where the config names none; None for hidden / heads.
        head_dim_keys: Names of that field.
        layers: Number of layers, where another field decides it.
    """
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads", most=100_000)
    kv_heads = f.size("num_key_value_heads", default=heads, most=100_000)
    width = f.size(*head_dim_keys, default=head_dim or 0, most=1_000_000)
    if not width:
        width = divided(f, "hidden_size", hidden, "num_attention_heads", heads)
    check_groups(f, ("num_key_value_heads", "num_attention_heads"), heads, kv_heads)
    depth = layers or f.size("num_hidden_layers", most=MOST_LAYERS)
    return Sizes(hidden, depth, heads, kv_heads, width, f.size("vocab_size"))


def divided(f: Fields, whole_key: str, whole: int, part_key: str, parts: int) -> int:
    """Return `whole / parts`; it must be a whole number."""
    if whole % parts and f.sound(whole_key, part_key):
        rule = f"{whole_key} must be a multiple of {part_key}, {parts}, where no head_dim is given"
        f.fault(whole_key, rule, whole, "Add head_dim or correct one of them.")
    return max(whole // parts, 1)


def check_groups(f: Fields, keys: tuple[str, str], heads: int, kv_heads: int) -> None:
    """Check that each KV head (first key) serves the same number of query heads (second key)."""
    if heads % kv_heads and f.sound(*keys):
        rule = f"the number of query heads, {heads}, must be a multiple of the KV heads"
        f.fault(keys[0], rule, kv_heads, "Correct one of them.")


def distinct(stack: Sequence[Layer]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """Return the distinct layers of a stack, and the index of each layer among them."""
    index: dict[Layer, int] = {}
    order = tuple(index.setdefault(layer, len(index)) for layer in stack)
    return tuple(index), order


def assemble(
    f: Fields, stack: Sequence[Layer], hidden: int, vocab: int, *, tied: bool, **outside: Any
) -> Model:
    """Return a decoder-only model of a stack of layers.

    Args:
        f: The config.
        stack: The layers as they run.
        hidden: Hidden size.
        vocab: Rows of the embedding.
        tied: The family's default of `tie_word_embeddings`.
        outside: Further fields of `Model`.
    """
    layers, order = distinct(stack)
    if "max_context" not in outside:
        keys = ("max_position_embeddings", "n_positions")
        outside["max_context"] = f.size(*keys, default=0, most=LONGEST_CONTEXT)
    return Model(
        name=f.family,
        hidden=hidden,
        vocab=vocab,
        layers=layers,
        order=order,
        tied=f.flag("tie_word_embeddings", default=tied),
        **outside,
    )


def kinds_of_layers(f: Fields, layers: int, default: Sequence[str]) -> list[str]:
    """Return the kind of each layer from `layer_types`, or a default pattern."""
    return f.words("layer_types", (SLIDING, FULL), layers) or list(default)


def window_of(f: Fields, kinds: Sequence[str], default: int | None = None) -> int:
    """Return the sliding window, 0 where no layer slides; it is due where one does."""
    if SLIDING not in kinds:
        f.ignore("sliding_window", "sliding_window_size")
        return 0
    return f.size("sliding_window", "sliding_window_size", default=default)
