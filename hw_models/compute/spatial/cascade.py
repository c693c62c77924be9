"""Attention as cascades of Einsums: how often a cascade walks over the keys, and what must live.

An Einsum computes one tensor from others over the ranks that it walks. A rank is walked in
*passes*: an Einsum that needs a result of the whole rank (a maximum over all keys) and walks the
rank itself has to begin again after the last element. What one pass makes and a later one reads
lives for the whole rank: this alone decides whether a cascade streams or must hold whole rows of
scores. The analysis and the three cascades are those of FuseMax (Nayak et al., MICRO 2024, sections
III and IV); FLAT and most frameworks take three passes, FlashAttention-2 takes one.

Ranks: `P` queries, `E` and `F` width of keys and of values, `M` keys; where keys are walked in
tiles, `M1` tiles of `M0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest

#: Ranks of the inputs, which come from memory.
INPUTS = {"Q": "E P", "K": "E M", "V": "F M", "BK": "E M1 M0", "BV": "F M1 M0"}
#: What an Einsum may do for each of its points.
OPERATIONS = ("mac", "add", "max", "exp", "div")


@dataclass(frozen=True)
class Einsum:
    """One tensor's definition.

    Attributes:
        name: The tensor that it makes.
        ranks: Ranks of that tensor.
        walks: Ranks that it walks: its points are their product.
        reads: Tensors that it reads. A tensor that it does not walk a rank of is read where that
            rank is complete; one that is made later, or by itself, is what the tile before left.
        does: Operations of each point, in turn.
    """

    name: str
    ranks: frozenset[str]
    walks: frozenset[str]
    reads: tuple[str, ...]
    does: tuple[str, ...]

    @cached_property
    def product(self) -> bool:
        """Return whether it is a matrix product: its points are multiplied and summed up."""
        return self.does == ("mac",) and self.walks > self.ranks


def _einsum(name: str, ranks: str, walks: str, reads: str, does: str) -> Einsum:
    split = [frozenset(words.split()) for words in (ranks, walks)]
    return Einsum(name, split[0], split[1], tuple(reads.split()), tuple(does.split()))


@dataclass(frozen=True)
class Cascade:
    """Einsums in the order of their dependencies.

    Attributes:
        keys: The rank over which passes are counted: `M`, or `M1` where tiles follow each other.
    """

    name: str
    keys: str
    einsums: tuple[Einsum, ...]

    @cached_property
    def pass_of(self) -> dict[str, int]:
        """Return the pass over the keys in which each tensor is made, counted from 1."""
        made = {e.name: e for e in self.einsums}
        found: dict[str, int] = {}
        for e in self.einsums:
            walks = self.keys in e.walks
            number = 1 if walks else 0
            for name in e.reads:
                if name not in made or name == e.name or name not in found:
                    continue
                # What lacks the rank is complete only when its pass has ended.
                complete = self.keys not in made[name].ranks and found[name] > 0
                number = max(number, found[name] + (1 if walks and complete else 0))
            found[e.name] = number
        return found

    @cached_property
    def passes(self) -> int:
        """Return how often the keys are walked from first to last."""
        return max(self.pass_of[e.name] for e in self.einsums if self.keys in e.walks)

    def readers(self, name: str) -> tuple[Einsum, ...]:
        """Return the Einsums that read a tensor, its own recurrence aside."""
        return tuple(e for e in self.einsums if name in e.reads and e.name != name)

    def fed(self, name: str) -> frozenset[str]:
        """Return the tensors that depend on one, within one tile of the keys."""
        found = {name}
        for e in self.einsums:
            if e.name != name and found & set(e.reads):
                found.add(e.name)
        return frozenset(found - {name})

    @cached_property
    def scores(self) -> tuple[Einsum, ...]:
        """Return the Einsums of a value for each pair of query and key."""
        return tuple(e for e in self.einsums if "P" in e.ranks and e.ranks & {"M", "M0"})

    @cached_property
    def rows_kept(self) -> int:
        """Return how many values of each pair must live at once from one pass into the next."""
        return max(
            sum(
                self.pass_of[e.name]
                <= end
                < max(self.pass_of[r.name] for r in self.readers(e.name))
                for e in self.scores
                if self.readers(e.name)
            )
            for end in range(1, self.passes + 1)
        )

    @cached_property
    def running(self) -> tuple[Einsum, ...]:
        """Return what is carried from tile to tile of the keys, for each query."""
        known: set[str] = set()
        early: set[str] = set()
        for e in self.einsums:
            early |= set(e.reads) - known
            known.add(e.name)
        return tuple(e for e in self.einsums if e.name in early)


CASCADES: dict[str, Cascade] = {
    c.name: c
    for c in (
        Cascade(
            "three-pass", "M",
            (
                _einsum("QK", "M P", "E M P", "Q K", "mac"),
                _einsum("GM", "P", "M P", "QK", "max"),
                _einsum("SN", "M P", "M P", "QK GM", "add exp"),
                _einsum("SD", "P", "M P", "SN", "add"),
                _einsum("A", "M P", "M P", "SN SD", "div"),
                _einsum("AV", "F P", "F M P", "A V", "mac"),
            ),
        ),
        # The division waits until all values are summed: one for each output, not for each score.
        Cascade(
            "two-pass", "M",
            (
                _einsum("QK", "M P", "E M P", "Q K", "mac"),
                _einsum("GM", "P", "M P", "QK", "max"),
                _einsum("SN", "M P", "M P", "QK GM", "add exp"),
                _einsum("SD", "P", "M P", "SN", "add"),
                _einsum("SNV", "F P", "F M P", "SN V", "mac"),
                _einsum("AV", "F P", "F P", "SNV SD", "div"),
            ),
        ),
        # A running maximum, denominator and output, corrected at each tile by exp(old - new).
        Cascade(
            "one-pass", "M1",
            (
                _einsum("BQK", "M1 M0 P", "E M1 M0 P", "Q BK", "mac"),
                _einsum("LM", "M1 P", "M1 M0 P", "BQK", "max"),
                _einsum("RM", "M1 P", "M1 P", "RM LM", "max"),
                _einsum("SLN", "M1 M0 P", "M1 M0 P", "BQK RM", "add exp"),
                _einsum("SLD", "M1 P", "M1 M0 P", "SLN", "add"),
                _einsum("SLNV", "F M1 P", "F M1 M0 P", "SLN BV", "mac"),
                _einsum("PRM", "M1 P", "M1 P", "RM", "add exp"),
                _einsum("SPD", "M1 P", "M1 P", "RD PRM", "mac"),
                _einsum("RD", "M1 P", "M1 P", "SLD SPD", "add"),
                _einsum("SPNV", "F M1 P", "F M1 P", "RNV PRM", "mac"),
                _einsum("RNV", "F M1 P", "F M1 P", "SLNV SPNV", "add"),
                _einsum("AV", "F P", "F P", "RNV RD", "div"),
            ),
        ),
    )
}  # fmt: skip


def cascade(name: str) -> Cascade:
    """Return a cascade by name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    if name in CASCADES:
        return CASCADES[name]
    guess = nearest(name, CASCADES)
    text = f"did you mean '{guess}'?" if guess else f"known: {', '.join(CASCADES)}"
    raise ConfigError.one("", "cascade", "no cascade has this name", name, text)
