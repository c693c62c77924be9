"""Values that differ from those of a device's file: `--set link.lanes=16`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["read_changes"]


def read_changes(settings: Iterable[str]) -> dict[str, Any]:
    """Read assignments, `nRCD=24` or `link.lanes=16`, into a document of one or two levels.

    Raises:
        ConfigError: If one is no PATH=VALUE, or means what another one sets.
    """
    from opbyte.core.config import parse_assignment
    from opbyte.core.errors import ConfigError

    changes: dict[str, Any] = {}
    for text in settings:
        path, value = parse_assignment(text)
        head, _, field = path.partition(".")
        block = changes.setdefault(head, {}) if field else changes
        if not isinstance(block, dict) or (field or head) in block:
            rule = "sets what another setting sets"
            raise ConfigError.one(f"--set {text}", path, rule, "", "Set it once.")
        block[field or head] = value
    return changes
