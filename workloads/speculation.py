"""How tokens are guessed ahead, and how many of the guesses hold, in closed form.

A draft proposes a chain of tokens, or a tree of them; the model verifies all of them in one pass
and keeps the longest path that holds, and one token of its own behind it (Leviathan et al., arXiv
2211.17192; trees: SpecInfer, arXiv 2305.09781). Whether a guess holds is a chance that is given:

- one number, or one for each depth: every guess holds with it, independently of all others. Of b
  siblings one holds with 1 - (1 - a)^b;
- for a depth a list by rank: the chance that the first, second, .. sibling is the one that holds,
  which excludes the others (Sequoia, arXiv 2402.12374, positional acceptance). They add up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.config import Document, validate
from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.workloads.mixers import Mamba, ShortConv
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.numeric import maximum

#: Most guesses of one step: an engine's trees have tens.
MOST = 1024

_Chance = Annotated[float, Field(ge=0.0, le=1.0)]
_AtDepth = _Chance | tuple[_Chance, ...]


def _draft(given: object) -> Model | None:
    if given is None or given == "none":
        return None
    if not isinstance(given, str | os.PathLike | Mapping | Model):
        raise ValueError("must name a model, or none")
    return load_model(given)


class Speculation(Block):
    """What guesses, how many tokens, and how many hold."""

    draft: Annotated[Model | None, BeforeValidator(_draft)]
    """Model that guesses; none where guesses cost nothing (n-grams of the prompt)."""
    tokens: int | None = Field(None, ge=1, le=64)
    """Tokens guessed one after the other; by default as many as `tree` or `acceptance` lists."""
    acceptance: _Chance | tuple[_AtDepth, ...]
    """Chance that a guess holds if all before it do: one, or one for each depth, which may be a
    list by rank."""
    tree: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1, max_length=64)
    """Guesses behind each guess, by depth; by default one: a chain."""

    @model_validator(mode="after")
    def _fits(self) -> Speculation:
        given, depth = self.acceptance, self.depth
        if depth == 0:
            raise ValueError("give tokens, a tree, or a list of acceptances")
        if self.tree is not None and len(self.tree) != depth:
            raise ValueError(f"tree has {len(self.tree)} depths for {depth} tokens")
        if isinstance(given, tuple) and len(given) != depth:
            raise ValueError(f"acceptance has {len(given)} depths for {depth} tokens")
        for chance, branches in zip(self._by_depth, self._branching, strict=True):
            if isinstance(chance, tuple):
                if len(chance) < branches:
                    raise ValueError(f"acceptance lists {len(chance)} of {branches} siblings")
                if sum(chance) > 1.0 + 1e-9:
                    raise ValueError(f"chances of siblings add up to {sum(chance):g}, above 1")
        if self.guesses > MOST:
            raise ValueError(f"a step has {self.guesses} guesses, more than {MOST}")
        return self

    @property
    def depth(self) -> int:
        """Return the most tokens that can hold."""
        listed = self.acceptance if isinstance(self.acceptance, tuple) else ()
        return self.tokens or len(self.tree or listed)

    @property
    def _by_depth(self) -> tuple[_AtDepth, ...]:
        given = self.acceptance
        return given if isinstance(given, tuple) else (given,) * self.depth

    @property
    def _branching(self) -> tuple[int, ...]:
        return self.tree or (1,) * self.depth

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the guesses of each depth."""
        return tuple(accumulate(self._branching, mul))

    @property
    def guesses(self) -> int:
        """Return all guesses of one sequence."""
        return sum(self.widths)

    @property
    def passes(self) -> tuple[int, ...]:
        """Return the tokens of one sequence in each pass of the draft.

        The first reads the last token that is known, each later one the guesses of one depth.
        """
        return (1, *self.widths[:-1])

    @property
    def chances(self) -> tuple[float, ...]:
        """Return for each depth the chance that one guess holds, if one did before it."""
        return tuple(
            min(sum(chance[:branches]), 1.0)
            if isinstance(chance, tuple)
            else 1.0 - (1.0 - chance) ** branches
            for chance, branches in zip(self._by_depth, self._branching, strict=True)
        )

    @property
    def tokens_per_step(self) -> float:
        """Return the expected tokens of one step.

        1 + c1 + c1 c2 + ..: the model's own token, and each depth that is reached. A chain of k
        equal chances gives (1 - a^(k+1)) / (1 - a) (arXiv 2211.17192, equation 1).
        """
        return float(1.0 + sum(accumulate(self.chances, mul)))


def speculation_of(kind: str, given: object, model: Model) -> Speculation:
    """Return a block that may be given as a mapping.

    Raises:
        ConfigError: If the mapping has a mistake.
        ConfigError: If the draft has another vocabulary.
        UncoveredError: If guesses can not be taken back in one of the models.
        WorkloadError: If it is no mapping.
    """
    if isinstance(given, Mapping):
        given = validate(Speculation, Document(dict(given), {}, "speculate"))
    if not isinstance(given, Speculation):
        raise WorkloadError(f"{kind}: speculate must be a mapping, got {given!r:.80}")
    for one in (model, given.draft):
        if one is not None:
            _check(kind, one)
    draft = given.draft
    if draft is not None and draft.vocab != model.vocab:
        raise ConfigError.one(
            "", "speculate.draft",
            f"must have the vocabulary of {model.name}, {model.vocab} tokens: guesses are tokens "
            "that the model looks up", f"{draft.name} with {draft.vocab}",
            "name a draft of the same family, or none",
        )  # fmt: skip
    return given


def _check(kind: str, model: Model) -> None:
    if model.encoder:
        raise WorkloadError(f"{kind}: {model.name} has an encoder, nothing verifies its guesses")
    if any(isinstance(layer.mixer, Mamba | ShortConv) for layer in model.layers):
        raise UncoveredError(
            f"{kind}: {model.name} has recurrent layers, whose state a guess that fails has "
            "changed; no model says what taking it back costs. use models without"
        )


def longest_context(model: Model, speculation: Speculation | None) -> int:
    """Return the most tokens of a sequence that model and draft allow, 0 for any."""
    draft = speculation.draft if speculation else None
    return min((m.max_context for m in (model, draft) if m and m.max_context), default=0)


def together(*footprints: Mapping[str, Any]) -> dict[str, Any]:
    """Return what models that run one after the other hold: activations only of the largest."""
    held: dict[str, Any] = {}
    for footprint in footprints:
        for name, size in footprint.items():
            if name not in held:
                held[name] = size
            elif name == "activation":
                held[name] = maximum(held[name], size)
            else:
                held[name] = held[name] + size
    return held
