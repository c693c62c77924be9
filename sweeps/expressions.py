"""Arithmetic that a study file may hold: linked parameters and constraints, over numpy arrays.

Names are dotted paths (`machine.rdu.hbm.phy.bandwidth`) or metrics (`tpot`); a path with other
characters than letters, digits and `_` stands in backticks. There are `+ - * / **`, brackets and
the functions of `FUNCTIONS`; nothing else is evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest

__all__ = ["FUNCTIONS", "Expression"]

FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "min": lambda *values: _fold(np.minimum, values),
        "max": lambda *values: _fold(np.maximum, values),
        "ceil": np.ceil,
        "floor": np.floor,
        "log2": np.log2,
        "sqrt": np.sqrt,
    }
)
_LEAST_ARGUMENTS = {"min": 2, "max": 2}
_OPERATORS: Mapping[type[ast.operator], Callable[..., Any]] = MappingProxyType(
    {
        ast.Add: np.add,
        ast.Sub: np.subtract,
        ast.Mult: np.multiply,
        ast.Div: np.divide,
        ast.Pow: np.float_power,
    }
)
_QUOTED = re.compile(r"`([^`]*)`")
_LONGEST = 1000
_DEEPEST = 50


def _fold(function: Any, values: tuple[Any, ...]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: As written.
        names: The names that it reads, in order of appearance.
    """

    text: str
    names: tuple[str, ...]
    tree: ast.expr
    quoted: Mapping[str, str]

    @classmethod
    def parse(cls, text: object, where: str = "", path: str = "") -> Expression:
        """Return the expression that `text` writes.

        Raises:
            ConfigError: If it is not arithmetic over numbers and paths; `where` and `path` locate
                it.
        """
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            text = repr(float(text))
        if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST:
            remedy = "Write for example `350 * machine.rdu.hbm.phy.bandwidth`."
            rule = f"an expression must be a text of at most {_LONGEST} characters"
            raise ConfigError.one(where, path, rule, text, remedy)
        quoted: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            key = f"quoted_{len(quoted)}_"
            quoted[key] = match.group(1)
            return key

        plain = _QUOTED.sub(hide, text.strip())
        try:
            tree = ast.parse(plain, mode="eval").body
            names = tuple(dict.fromkeys(_names(tree, quoted, 0)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            rule = f"this is not an expression ({reason or 'nested too deep'})"
            remedy = f"It may hold numbers, paths, + - * / ** ( ) and {', '.join(FUNCTIONS)}."
            raise ConfigError.one(where, path, rule, text, remedy) from None
        return cls(text.strip(), names, tree, quoted)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Return the value, float or array, given a float or array for each name."""
        with np.errstate(all="ignore"):
            return _value(self.tree, self.quoted, values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to worker processes as text."""
        return (Expression.parse, (self.text,))


def _path(node: ast.expr, quoted: Mapping[str, str]) -> str:
    """Return the dotted path that a chain of attributes writes."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("a path must be names joined by dots")
    words.append(quoted.get(node.id, node.id))
    return ".".join(reversed(words))


def _names(node: ast.expr, quoted: Mapping[str, str], depth: int) -> list[str]:
    """Return the names in an expression, and refuse everything that is not arithmetic."""
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if not np.isfinite(_float(value)):
                raise ValueError("a number is out of range")
            return []
        case ast.Name() | ast.Attribute():
            return [_path(node, quoted)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _names(left, quoted, depth + 1) + _names(right, quoted, depth + 1)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _names(operand, quoted, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            if name not in FUNCTIONS:
                near = nearest(name, FUNCTIONS)
                hint = f", did you mean {near!r}?" if near else ""
                raise ValueError(f"no function is called {name!r}{hint}")
            least = _LEAST_ARGUMENTS.get(name, 1)
            if len(arguments) < least or (least == 1 and len(arguments) > 1):
                raise ValueError(f"{name} takes {least}{' or more' if least > 1 else ''} values")
            return [n for a in arguments for n in _names(a, quoted, depth + 1)]
    raise ValueError(f"{type(node).__name__} has no meaning here")


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _value(node: ast.expr, quoted: Mapping[str, str], values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, quoted, values), _value(right, quoted, values))
        case ast.UnaryOp(op=op, operand=operand):
            inner = _value(operand, quoted, values)
            return -inner if isinstance(op, ast.USub) else inner
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_value(a, quoted, values) for a in arguments))
    return values[_path(node, quoted)]
