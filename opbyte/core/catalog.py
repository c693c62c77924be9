"""Folders of shipped files that can be asked for by name."""

from __future__ import annotations

import os
from pathlib import Path

from opbyte.core.errors import ConfigError
from opbyte.core.registry import lookup_error, nearest

__all__ = ["SUFFIXES", "Catalog", "missing_file"]

SUFFIXES = (".yaml", ".yml", ".json")
_MOST_NEIGHBOURS = 2000


class Catalog:
    """The files of one kind in one folder; a file's name without its suffix is its entry's name."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Name the `folder`; nothing is read yet. `kind` is what errors call an entry."""
        self.kind = kind
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Return the names of all entries, sorted; none where the folder is absent."""
        return sorted(self._entries())

    def path(self, name: str) -> Path:
        """Return the file of the entry called `name`.

        Raises:
            ConfigError: If there is none; the message has the nearest name and all names.
        """
        entries = self._entries()
        if name not in entries:
            raise lookup_error(self.kind, name, entries)
        return entries[name]

    def find(self, name_or_path: str | os.PathLike[str]) -> Path:
        """Return the file of a catalog name, or of a path to a file of the user's own.

        A text with a folder separator or one of the suffixes `.yaml .yml .json` is a path.

        Raises:
            ConfigError: If there is no such entry or no such file.
        """
        given: object = name_or_path
        if not isinstance(given, str | os.PathLike):
            rule = "must be a name of the catalog or the path of a file"
            raise ConfigError.one("", self.kind, rule, given)
        text = os.fspath(name_or_path)
        if not is_path(name_or_path):
            return self.path(text)
        path = Path(text).expanduser()
        if not path.exists():
            raise missing_file(path)
        return path

    def _entries(self) -> dict[str, Path]:
        if not self.folder.is_dir():
            return {}
        files = (f for f in sorted(self.folder.iterdir()) if f.suffix in SUFFIXES and f.is_file())
        return {file.name.removesuffix(file.suffix): file for file in files}


def is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Return whether this is the path of a file rather than a catalog name."""
    if not isinstance(name_or_path, str):
        return True
    separators = {"/", os.sep, os.altsep or os.sep}
    return name_or_path.endswith(SUFFIXES) or any(s in name_or_path for s in separators)


def missing_file(path: Path) -> ConfigError:
    """Return the error for a file that does not exist, with the nearest name in its folder."""
    folder = path.parent
    if not folder.is_dir():
        rule = "the file does not exist"
        return ConfigError.one(str(path), "", rule, "", f"There is no folder {str(folder)!r}.")
    neighbours: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                neighbours.append(entry.name)
                if len(neighbours) >= _MOST_NEIGHBOURS:
                    break
    except OSError:
        neighbours = []
    near = nearest(path.name, neighbours)
    remedy = f"Did you mean {str(folder / near)!r}?" if near else "Check the name and the folder."
    return ConfigError.one(str(path), "", "the file does not exist", "", remedy)
