"""Quantities with units: `1.8 TB/s` in files, SI floats in code.

GB is 10**9 and GiB 2**30 bytes; b is a bit, B a byte. Numbers are converted exactly (rationals)
and rounded once, so that `3.352 TB/s` is the float 3.352e12.
"""

from __future__ import annotations

import decimal
import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from opbyte.core.errors import ConfigError
from opbyte.core.registry import lookup_error, nearest

__all__ = ["DIMENSIONS", "Dimension", "dimension", "format_quantity", "is_number", "parse"]

# Exponents of (byte, second, operation, joule, square metre, dollar, transfer, kilogram).
_Powers = tuple[int, ...]
_Unit = tuple[Fraction, _Powers]
_NONE: _Powers = (0,) * 8

_DECIMAL = {
    "f": -15, "p": -12, "n": -9, "u": -6, "m": -3, "": 0,
    "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18,
}  # fmt: skip
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def is_number(value: object) -> bool:
    """Return whether a value is a number; a truth value is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Dimension:
    """A kind of quantity.

    Attributes:
        noun: What an error calls it ("bandwidth").
        example: How a user would write one.
        display: Units that `format_quantity` chooses from, small to large.
        bare: Whether a number without a unit is how it is written (ratios and counts).
        base: What 1 in code is, in bytes, seconds, operations, joules, kg: 8 for J/bit.
    """

    noun: str
    example: str
    display: tuple[str, ...]
    bare: bool = False
    base: int | Fraction = 1


def _scaled(base: str, prefixes: str) -> tuple[str, ...]:
    return tuple(f"{'' if prefix == '-' else prefix}{base}" for prefix in prefixes.split())


DIMENSIONS: Mapping[str, Dimension] = MappingProxyType(
    {
        "bytes": Dimension(
            "size", "64 GiB", _scaled("B", "- k M G T P E") + _scaled("B", "Ki Mi Gi Ti Pi Ei")
        ),
        "bytes_per_s": Dimension("bandwidth", "1.8 TB/s", _scaled("B/s", "- k M G T P E")),
        "seconds": Dimension("time", "250 ns", _scaled("s", "f p n u m -")),
        "ops_per_s": Dimension(
            "rate of operations", "638 TFLOP/s", _scaled("FLOP/s", "- k M G T P E")
        ),
        # What a metric such as flops counts in.
        "ops": Dimension("number of operations", "2 GFLOP", _scaled("FLOP", "- k M G T P E")),
        "hertz": Dimension("frequency", "1.6 GHz", _scaled("Hz", "- k M G T")),
        "watts": Dimension("power", "700 W", _scaled("W", "p n u m - k M G")),
        "joules": Dimension("energy", "12 nJ", _scaled("J", "f p n u m - k M G")),
        "joules_per_bit": Dimension(
            "energy per bit", "3.5 pJ/bit", _scaled("J/bit", "f p n u"), base=8
        ),
        "joules_per_op": Dimension(
            "energy per operation", "0.4 pJ/FLOP", _scaled("J/FLOP", "f p n u")
        ),
        "area": Dimension("area", "814 mm2", ("um2", "mm2")),
        "dollars": Dimension("price", "12 USD", ("USD",)),
        "dollars_per_byte": Dimension("price per byte", "12 USD/GB", ("USD/GB",)),
        "dollars_per_area": Dimension("price per area", "0.005 USD/mm2", ("USD/mm2",)),
        "dollars_per_joule": Dimension("price of energy", "0.1 USD/kWh", ("USD/kWh",)),
        "kilograms": Dimension("mass", "12 kg", _scaled("g", "u m - k M")),
        # What a metric such as carbon_g_per_mtoken counts in; parameters are in kilograms.
        "grams": Dimension("mass", "12 g", _scaled("g", "u m - k M"), base=Fraction(1, 1000)),
        "kilograms_per_byte": Dimension("mass per byte", "65 g/GB", ("g/GB",)),
        "kilograms_per_joule": Dimension("mass per energy", "480 g/kWh", ("g/kWh",)),
        "area_per_byte": Dimension("area per byte", "0.3 mm2/MiB", ("mm2/MiB",)),
        "area_per_rate": Dimension("area per bandwidth", "11 mm2/(TB/s)", ("mm2/(TB/s)",)),
        "area_per_ops": Dimension(
            "area per rate of operations", "0.5 mm2/(TFLOP/s)", ("mm2/(TFLOP/s)",)
        ),
        "ratio": Dimension("ratio", "0.85 or 85 %", ("%",), bare=True),
        "factor": Dimension("factor", "1.5", ("",), bare=True),
        "count": Dimension("count", "64", ("",), bare=True),
    }
)

_POWERS: Mapping[_Powers, tuple[str, ...]] = MappingProxyType(
    {
        (1, 0, 0, 0, 0, 0, 0, 0): ("bytes",),
        (1, -1, 0, 0, 0, 0, 0, 0): ("bytes_per_s",),
        (0, 1, 0, 0, 0, 0, 0, 0): ("seconds",),
        (0, -1, 1, 0, 0, 0, 0, 0): ("ops_per_s",),
        (0, 0, 1, 0, 0, 0, 0, 0): ("ops",),
        (0, -1, 0, 0, 0, 0, 0, 0): ("hertz",),
        (0, -1, 0, 1, 0, 0, 0, 0): ("watts",),
        (0, 0, 0, 1, 0, 0, 0, 0): ("joules",),
        (-1, 0, 0, 1, 0, 0, 0, 0): ("joules_per_bit",),
        (0, 0, -1, 1, 0, 0, 0, 0): ("joules_per_op",),
        (0, 0, 0, 0, 1, 0, 0, 0): ("area",),
        (0, 0, 0, 0, 0, 1, 0, 0): ("dollars",),
        (-1, 0, 0, 0, 0, 1, 0, 0): ("dollars_per_byte",),
        (0, 0, 0, 0, -1, 1, 0, 0): ("dollars_per_area",),
        (-1, 0, 0, 0, 1, 0, 0, 0): ("area_per_byte",),
        (-1, 1, 0, 0, 1, 0, 0, 0): ("area_per_rate",),
        (0, 1, -1, 0, 1, 0, 0, 0): ("area_per_ops",),
        (0, 0, 0, -1, 0, 1, 0, 0): ("dollars_per_joule",),
        (0, 0, 0, 0, 0, 0, 0, 1): ("kilograms", "grams"),
        (-1, 0, 0, 0, 0, 0, 0, 1): ("kilograms_per_byte",),
        (0, 0, 0, -1, 0, 0, 0, 1): ("kilograms_per_joule",),
        _NONE: ("ratio", "factor", "count"),
    }
)

_BYTE, _SECOND, _OP, _JOULE, _METRE2, _DOLLAR, _TRANSFER, _KILOGRAM = (
    tuple(int(i == axis) for i in range(8)) for axis in range(8)
)
_HERTZ: _Powers = (0, -1, 0, 0, 0, 0, 0, 0)
_WATT: _Powers = (0, -1, 0, 1, 0, 0, 0, 0)
_BYTE_RATE: _Powers = (1, -1, 0, 0, 0, 0, 0, 0)
_OP_RATE: _Powers = (0, -1, 1, 0, 0, 0, 0, 0)


def _symbols() -> dict[str, _Unit]:
    """Return every unit symbol that a file may use, with its factor to SI and its powers."""
    table: dict[str, _Unit] = {}

    def add(names: str, factor: Fraction, powers: _Powers, prefixes: str) -> None:
        for name in names.split():
            for prefix in ["", *prefixes.split()]:
                scale = (
                    Fraction(2) ** _BINARY[prefix]
                    if prefix in _BINARY
                    else Fraction(10) ** _DECIMAL[prefix]
                )
                table[prefix + name] = (factor * scale, powers)

    one, eighth = Fraction(1), Fraction(1, 8)
    large, binary, small = "k M G T P E", " ".join(_BINARY), "f p n u m"
    add("B byte bytes", one, _BYTE, f"{large} {binary}")
    add("b bit bits", eighth, _BYTE, f"{large} {binary}")
    add("Bps", one, _BYTE_RATE, large)
    add("bps", eighth, _BYTE_RATE, large)
    add("s", one, _SECOND, small)
    table["min"] = (Fraction(60), _SECOND)
    table["h"] = (Fraction(3600), _SECOND)
    table["day"] = table["days"] = (Fraction(86400), _SECOND)
    table["year"] = table["years"] = (Fraction(36525 * 864), _SECOND)
    add("g", Fraction(1, 1000), _KILOGRAM, "u m k M")
    add("FLOP FLOPs flop flops OP OPs op ops", one, _OP, large)
    add("FLOPS OPS", one, _OP_RATE, large)
    add("J", one, _JOULE, f"{small} k M G")
    add("Wh", Fraction(3600), _JOULE, "k M")
    add("W", one, _WATT, f"{small} k M G")
    add("Hz", one, _HERTZ, "k M G T")
    add("T", one, _TRANSFER, "k M G")
    for name, metres in (("nm2", -9), ("um2", -6), ("mm2", -3), ("cm2", -2), ("m2", 0)):
        table[name] = (Fraction(10) ** (2 * metres), _METRE2)
    table["USD"] = table["$"] = (one, _DOLLAR)
    table["%"] = (Fraction(1, 100), _NONE)
    return table


_SYMBOLS: Mapping[str, _Unit] = MappingProxyType(_symbols())
_SPELLINGS = (("µ", "u"), ("μ", "u"), ("²", "2"), ("^2", "2"), ("·", "*"))
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)
_TOKEN = re.compile(r"\s*([A-Za-z$%]+2?|[()/*])")
_LONGEST_TEXT = 100
_LARGEST_EXPONENT = 400
_DEEPEST = 4


def dimension(name: str) -> Dimension:
    """Return the dimension called `name`.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return DIMENSIONS[name]
    except KeyError:
        raise lookup_error("dimension", name, DIMENSIONS) from None


def parse(value: object, dimension_name: str) -> float:
    """Return a quantity as an SI float.

    Args:
        value: A text such as "1.8 TB/s"; for ratios, factors and counts also a number.
        dimension_name: One of `DIMENSIONS`, such as "bytes_per_s".

    Raises:
        ConfigError: If it is no quantity, has no unit where one is due, or one of another kind.
    """
    due = dimension(dimension_name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not due.bare:
            raise _wrong(due, "needs a unit", value)
        try:
            return float(value)
        except OverflowError:
            raise _wrong(due, "is out of range", value) from None
    if not isinstance(value, str):
        raise _wrong(due, "must be a number with a unit", value)
    text = value.strip()
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise _wrong(due, "must start with a number", value)
    number, unit = match.groups()
    if abs(int(number.lower().partition("e")[2] or "0")) > _LARGEST_EXPONENT:
        raise _wrong(due, "is out of range", value)
    if not unit and not due.bare:
        raise _wrong(due, "needs a unit", value)
    factor, powers = _parse_unit(unit, due, value)
    if dimension_name not in _POWERS.get(powers, ()):
        raise _mismatch(unit, powers, due, value)
    try:
        return float(Fraction(number) * factor / due.base)
    except OverflowError:
        raise _wrong(due, "is out of range", value) from None


def _wrong(due: Dimension, rule: str, value: object, hint: str = "") -> ConfigError:
    remedy = f"{hint} Write for example {due.example}.".strip()
    article = "an" if due.noun[0] in "aeiou" else "a"
    return ConfigError.one(rule=f"{article} {due.noun} {rule}", value=_got(value), remedy=remedy)


def _got(value: object) -> object:
    return repr(value) if isinstance(value, str) else value


def _parse_unit(text: str, due: Dimension, value: object) -> _Unit:
    """Return factor and powers of a unit expression such as `mm2/(TB/s)`."""
    for odd, plain in _SPELLINGS:
        text = text.replace(odd, plain)
    tokens: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _wrong(due, f"has the unit {text!r}, which can not be read", value)
        tokens.append(match.group(1))
        position = match.end()
    tokens.reverse()
    unit = _product(tokens, due, value, 0) if tokens else (Fraction(1), _NONE)
    if tokens:
        raise _wrong(due, f"has the unit {text!r}, which can not be read", value)
    return unit


def _product(tokens: list[str], due: Dimension, value: object, depth: int) -> _Unit:
    """Consume `a / b * c` from the reversed `tokens`."""
    factor, powers = _atom(tokens, due, value, depth)
    while tokens and tokens[-1] in "/*":
        sign = -1 if tokens.pop() == "/" else 1
        other, more = _atom(tokens, due, value, depth)
        factor = factor * other**sign
        powers = tuple(a + sign * b for a, b in zip(powers, more, strict=True))
    return factor, powers


def _atom(tokens: list[str], due: Dimension, value: object, depth: int) -> _Unit:
    token = tokens.pop() if tokens else ""
    if token == "(" and depth < _DEEPEST:
        unit = _product(tokens, due, value, depth + 1)
        if tokens and tokens.pop() == ")":
            return unit
        raise _wrong(due, "has a '(' in its unit that is not closed", value)
    if token in _SYMBOLS:
        return _SYMBOLS[token]
    raise _wrong(due, f"has the unknown unit {token!r}", value, _unit_hint(token))


def _unit_hint(token: str) -> str:
    """Return what somebody who wrote the unknown unit `token` probably meant."""
    if token.startswith("K") and ("k" + token[1:]) in _SYMBOLS:
        meant = "k" + token[1:]
        binary = "Ki" + token[1:]
        if binary in _SYMBOLS:
            return f"{token} is 1000 to some and 1024 to others: {meant} is 1000, {binary} 1024."
        return f"Did you mean {meant!r}?"
    if token.upper().endswith(("MAC", "MACS")):
        return "A multiply-accumulate counts as 2 operations here: write FLOP or OP."
    same = sorted(name for name in _SYMBOLS if name.casefold() == token.casefold())
    bits = [name for name in same if name.endswith("b")]
    if bits and len(same) > 1:
        return f"B is a byte, b a bit: {' or '.join(same)}."
    near = same[0] if same else nearest(token, _SYMBOLS)
    return f"Did you mean {near!r}?" if near else ""


def _mismatch(unit: str, powers: _Powers, due: Dimension, value: object) -> ConfigError:
    if powers[6]:
        hint = "A transfer has no size: multiply by the bytes of one transfer (the bus width)."
        return _wrong(due, "can not be in transfers (T)", value, hint)
    if due.noun == "rate of operations" and powers == _OP:
        return _wrong(due, f"must be per second, {unit} is a number of operations", value)
    kinds = _POWERS.get(powers)
    is_a = f"{unit} is a {DIMENSIONS[kinds[0]].noun}" if kinds else f"{unit} is something else"
    if not unit:
        return _wrong(due, "needs a unit", value)
    return _wrong(due, f"is due here, {is_a}", value)


def format_quantity(x: float, dimension_name: str, digits: int = 6) -> str:
    """Return an SI float as text that `parse` reads back to `digits` significant digits.

    Args:
        x: The quantity, SI (bytes, bytes/s, J/bit, m^2 ..).
        dimension_name: One of `DIMENSIONS`.
        digits: Significant digits; 17 give every float back to within one rounding.
    """
    due = dimension(dimension_name)
    units = due.display
    if not math.isfinite(x):
        return f"{x} {units[-1]}".strip()
    if dimension_name == "bytes":
        units = _size_units(x)
    best = min(units, key=lambda u: abs(math.log10(_factor(u, due)))) if x == 0.0 else units[0]
    for unit in units:
        if abs(x) >= _factor(unit, due) * (1 - 0.5 * 10.0**-digits):
            best = unit
    return f"{_rounded(Fraction(x) / _factor(best, due), digits)} {best}".strip()


def _size_units(x: float) -> tuple[str, ...]:
    """Return binary units for sizes that are whole in them, decimal units for all others."""
    decimal, binary = _scaled("B", "- k M G T P E"), _scaled("B", "- Ki Mi Gi Ti Pi Ei")
    whole = x != 0.0 and abs(x) >= 1024 and x % 1024 == 0 and x % 1000 != 0
    return binary if whole else decimal


def _factor(unit: str, due: Dimension) -> Fraction:
    """Return what one `unit` is in code."""
    return _parse_unit(unit, due, unit)[0] / due.base


def _rounded(x: Fraction, digits: int) -> str:
    """Return `x` correctly rounded, with an exponent only where it is out of all prefixes."""
    context = decimal.Context(prec=digits, Emin=-9999, Emax=9999)
    number = context.divide(decimal.Decimal(x.numerator), decimal.Decimal(x.denominator))
    number = number.normalize(context)
    return f"{number:f}" if -6 <= number.adjusted() < max(digits, 15) else f"{number:e}"
