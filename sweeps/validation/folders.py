"""Where reference rows lie: files that the package does not contain."""

from __future__ import annotations

import os
from pathlib import Path

from opbyte.core.errors import ConfigError

__all__ = ["FOLDER", "rows_folder"]

#: Environment variable that names the folder above `reference`.
FOLDER = "OPBYTE_REFERENCE"


def rows_folder(kind: str) -> Path:
    """Return the folder of reference rows of a kind: gpu, pim, attention, ssd or training.

    Raises:
        ConfigError: If there is none.
    """
    folder = Path(os.environ.get(FOLDER, "../shared")) / "reference" / kind
    if not folder.is_dir():
        raise ConfigError.one(
            "", FOLDER, f"names the folder whose reference/{kind}/ holds reference rows",
            str(folder), "The rows are not part of the package; without them there is nothing to "
            "compare with.",
        )  # fmt: skip
    return folder
