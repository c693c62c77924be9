"""What `opbyte memory` is asked about: a DRAM channel, a flash device or a CXL expander."""

from __future__ import annotations

from pathlib import Path

__all__ = ["kind_of"]


def kind_of(technology: str) -> str:
    """Return `memory`, `flash` or `cxl` for a name of the catalogs or a file."""
    from opbyte.core.catalog import SUFFIXES
    from opbyte.core.config import load_document
    from opbyte.hw_models.memory import cxl_devices, flash_devices, standards

    catalogs = {"flash": flash_devices.CATALOG, "cxl": cxl_devices.CATALOG}

    def find(name: str) -> Path:
        """Return the file that another one extends, of whichever catalog has it."""
        own = next((c for c in catalogs.values() if name in c.names()), standards.CATALOG)
        return own.path(name)

    if technology.endswith(SUFFIXES):
        path = Path(technology)
        found = load_document(path, find=find).data.get("kind") if path.is_file() else None
        return str(found) if found in catalogs else "memory"
    return next((kind for kind, c in catalogs.items() if technology in c.names()), "memory")
