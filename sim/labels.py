"""Labels of a mapping against the operators that there are: a word that none has is a mistake."""

from __future__ import annotations

from opbyte.core.errors import ConfigError, OpbyteError, Problem
from opbyte.core.labels import CLASSES, LABELS, is_label
from opbyte.core.mapping import Mapping
from opbyte.core.registry import nearest
from opbyte.workloads.work import Work

__all__ = ["check_labels"]


def check_labels(mapping: Mapping, work: Work) -> None:
    """Refuse labels that neither a work that ships nor this one has operators of.

    Raises:
        ConfigError: With the place of each and the nearest label.
    """
    unknown = [(place, word) for place, word in mapping.words if not is_label(word)]
    if not unknown:
        return
    own = _labels_of(work, mapping)
    known = ", ".join(sorted(own or CLASSES))
    whose = "this work has" if own else "among all"
    problems = []
    for place, word in (pair for pair in unknown if pair[1] not in own):
        guess = nearest(word, LABELS | own)
        hint = f"Did you mean '{guess}'? " if guess else ""
        rule, remedy = "no operator has this label", f"{hint}Labels, {whose}: {known}"
        problems.append(Problem("", f"mapping.{place}", rule, word, remedy))
    if problems:
        raise ConfigError(problems)


def _labels_of(work: Work, mapping: Mapping) -> frozenset[str]:
    """Return the labels of a work's operators; of one that has none before it runs, none."""
    # The optimizer's passes are in no table.
    own = frozenset({"optimizer"} if work.kind == "train" else ())
    try:
        tables = [phase.table for phase in work.lowered(mapping.degrees)]
    except OpbyteError:
        return own
    return own.union(*(words for table in tables for words in table.labels))
