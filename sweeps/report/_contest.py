"""What a page says of a study's budget: who does most within it, and what that means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from opbyte.core.errors import OpbyteError
from opbyte.sweeps.console import counted
from opbyte.sweeps.plots._quantities import show
from opbyte.sweeps.store import Results

__all__ = ["contested"]

_WITHIN = {
    "price_usd": "Money", "area_m2": "Die area", "tdp_w": "Design power", "all": "All three",
}  # fmt: skip
_HEADS = (
    ("Within", "word"), ("Machine", "word"), ("Copies", "number"), ("Tokens/s", "number"),
    ("5 to 95 %", "number"), ("Best in", "number"), ("Best design", "word"), ("Evidence", "word"),
)  # fmt: skip


def contested(results: Results, work: str) -> dict[str, Any] | None:
    """Return what the page shows of a study's budget, None where it has none.

    Parameters are drawn anew, which takes seconds.

    Args:
        results: The store.
        work: What is done, in words.
    """
    from opbyte.sweeps.budget import contest

    study = results.meta["study"]
    if "budget" not in study or not results.counts.get("ok"):
        return None
    about: dict[str, Any] = {"problem": "", "heads": _HEADS, "rows": [], "winners": [],
                             "aside": [], "meaning": ""}  # fmt: skip
    try:
        found = contest(results)
    except OpbyteError as error:
        return {**about, "problem": " ".join(str(error).split())}
    rows: list[dict[str, Any]] = [dict(row) for _, row in found.iterrows()]
    spent = found.attrs["budget"]
    return {
        **about,
        "meaning": _meaning(study["budget"], spent, work, found.attrs["draws"]),
        "winners": [
            _winner(_limit(within, spent), here)
            for within in _WITHIN
            if (here := [row for row in rows if row["within"] == within])
        ],
        "rows": [
            _cells(row, first=i == 0 or row["within"] != rows[i - 1]["within"])
            for i, row in enumerate(rows)
        ],
        "aside": list(_aside(found)),
    }


def _limit(within: str, spent: Mapping[str, float]) -> str:
    word = _WITHIN[within]
    return f"{word}, {show(spent[within], within)}" if within in spent else word


def _meaning(budget: Mapping[str, Any], spent: Mapping[str, float], work: str, draws: int) -> str:
    """Return what an equal budget is, and where the shares come from."""
    money, area, power = (show(spent[name], name) for name in ("price_usd", "area_m2", "tdp_w"))
    return (
        f"The work is {work}, with what the axes change. An equal budget is what "
        f"{budget['count']} of {budget['machine']} cost: {money} of money, {area} of logic dies, "
        f"{power} of design power, or all three at once. Each machine is "
        "bought whole, as often as that pays for; its copies serve requests of their own, n times "
        "the tokens per second of one at the latency of one. Of each machine the point counts "
        "that does most and keeps every constraint. "
        f"In each of {counted(draws, 'draw')} all parameters, those of {budget['machine']} too, "
        "take values from their ranges: 5 to 95 % is where a machine's tokens per second lie, "
        "\N{LEFT DOUBLE QUOTATION MARK}best in\N{RIGHT DOUBLE QUOTATION MARK} the share of the "
        "draws in which no other machine does more. Equal machines are both best. "
        "Evidence: what a machine's cost per token rests on, and how many of the parameters that "
        "move it are so."
    )


def _winner(limit: str, rows: list[dict[str, Any]]) -> str:
    """Return who does most within a budget, and who is best in more draws where that is another."""
    first = rows[0]
    often = max(rows, key=lambda row: row["wins"])
    text = (
        f"{limit}: {_name(first)} does most, {show(first['tokens_per_s'], 'tokens_per_s')} "
        f"({_band(first)}), best in {_share(first)} of the draws"
    )
    if often["wins"] > first["wins"]:
        text += f"; {_name(often)} is best in {_share(often)}"
    return f"{text}."


def _cells(row: Mapping[str, Any], *, first: bool) -> list[str]:
    """Return a row of the table; the first of each budget says which it is."""
    return [
        _WITHIN[row["within"]] if first else "", _name(row), f"{row['copies']:,}",
        _rate(row["tokens_per_s"]), _band(row), _share(row), row["design"], row["evidence"],
    ]  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
    return str(row["machine"]) if row["built"] else f"{row['machine']} (not built)"


def _rate(value: float) -> str:
    return show(value, "tokens_per_s").removesuffix(" tokens/s")


def _band(row: Mapping[str, Any]) -> str:
    return f"{_rate(row['low'])} to {_rate(row['high'])}"


def _share(row: Mapping[str, Any]) -> str:
    return f"{100.0 * row['wins']:.0f} %"


def _aside(found: pd.DataFrame) -> Iterator[str]:
    """Yield who takes no part and why, and what no model covers."""
    for name, reason in found.attrs["refused"].items():
        yield f"{name} takes no part: {reason}."
    for name, count in found.attrs["uncovered"].items():
        yield f"{name}: no model covers {count:,} of its points."
