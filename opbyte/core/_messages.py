"""What pydantic's verdicts mean, in words of somebody who wrote a file."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

from opbyte.core.errors import show
from opbyte.core.registry import nearest

__all__ = ["Message", "explain"]


class Message(NamedTuple):
    """A broken rule, what was found (may be empty), and what to do (may be empty)."""

    rule: str
    value: str = ""
    remedy: str = ""


_MAPPING = ("must be a mapping", "Write lines of `key: value`.")
_LIST = ("must be a list", "")
_WHOLE = ("must be a whole number", "")
_NUMBER = ("must be a number", "")
_TRUTH = ("must be true or false", "")

_PLAIN: Mapping[str, tuple[str, str]] = {
    "string_type": ("must be text", ""),
    "string_unicode": ("must be text", ""),
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": ("has too many digits", ""),
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": ("must be finite", ""),
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "none_required": ("must be null", ""),
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dataclass_type": _MAPPING,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "frozen_set_type": _LIST,
    "iterable_type": _LIST,
    "invalid_key": ("must be text", 'Write it in quotes, such as "1".'),
}

_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("must be above", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be below", "lt"),
    "less_than_equal": ("must be at most", "le"),
    "multiple_of": ("must be a multiple of", "multiple_of"),
    "string_too_short": ("must be a text of at least", "min_length"),
    "string_too_long": ("must be a text of at most", "max_length"),
    "string_pattern_mismatch": ("must match the pattern", "pattern"),
}


def explain(kind: str, message: str, context: Mapping[str, Any], given: object) -> Message:
    """Return what one of pydantic's errors means.

    Args:
        kind: Its type, such as `int_parsing`.
        message: pydantic's own message, used where we know no better.
        context: Its context.
        given: The value found.
    """
    value = show(given)
    if kind in _PLAIN:
        rule, remedy = _PLAIN[kind]
        return Message(rule, value, remedy or _hint(kind, given))
    if kind in _BOUNDS:
        rule, key = _BOUNDS[kind]
        unit = " characters" if key.endswith("length") else ""
        return Message(f"{rule} {context.get(key)}{unit}", value)
    if kind in ("literal_error", "enum"):
        return _choice(str(context.get("expected", "")), given)
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        bound = context.get("min_length" if least else "max_length")
        return Message(f"must have at {'least' if least else 'most'} {bound} entries", value)
    if kind in ("value_error", "assertion_error"):
        reason = str(context.get("error", message)) or message
        return Message(_uncapped(reason.rstrip(".")), value if _is_short(given) else "")
    text = message.replace("Input should be a valid", "must be a").replace("Input should", "must")
    return Message(_uncapped(text), value)


def _hint(kind: str, given: object) -> str:
    """Return what to do about a value of the wrong type."""
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return f'Write it in quotes: "{show(given)}".'
    if kind in ("list_type", "tuple_type", "set_type", "frozen_set_type"):
        return f"Write [{given}]." if isinstance(given, str) and len(given) <= 40 else ""
    return ""


def _choice(expected: str, given: object) -> Message:
    """Return the message for a value that is none of a few known ones."""
    try:
        known = [str(k) for k in ast.literal_eval(f"[{expected.replace(' or ', ', ')}]")]
    except (ValueError, SyntaxError):
        known = []
    near = nearest(given, known) if isinstance(given, str) else None
    remedy = f"Did you mean {near!r}?" if near else ""
    return Message(f"must be {expected}", show(given), remedy)


def _is_short(given: object) -> bool:
    return isinstance(given, (str, int, float, bool))


def _uncapped(text: str) -> str:
    """Return a sentence's beginning in lower case, names and acronyms excepted."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
