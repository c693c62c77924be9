"""JSON schemas of the files that users write."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from opbyte.core.registry import lookup_error

__all__ = ["KINDS", "models", "schema_of"]

KINDS = ("cxl", "experiment", "flash", "machine", "mapping", "memory", "study", "trace")


def schema_of(kind: str | None = None) -> dict[str, Any]:
    """Return the JSON schema of a kind of file; without a kind, one that chooses by `kind`.

    Raises:
        ConfigError: For an unknown kind, with the nearest.
    """
    known = models()
    if kind is None:
        return _any_of({name: model.model_json_schema() for name, model in known.items()})
    if kind not in known:
        raise lookup_error("kind of file with a schema", kind, known)
    return {"$schema": _DIALECT, **known[kind].model_json_schema()}


_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def models() -> dict[str, type[BaseModel]]:
    """Return what a file of each kind is validated as."""
    from opbyte.core.mapping import Mapping
    from opbyte.hw_models.machine_file import MachineConfig
    from opbyte.hw_models.memory.cxl_devices import CxlDevice
    from opbyte.hw_models.memory.flash_devices import FlashDevice
    from opbyte.hw_models.memory.standards import Device
    from opbyte.sweeps.study import Experiment, Study
    from opbyte.workloads.traces import SyntheticTrace

    return dict(
        zip(
            KINDS,
            (
                CxlDevice,
                Experiment,
                FlashDevice,
                MachineConfig,
                Mapping,
                Device,
                Study,
                SyntheticTrace,
            ),
            strict=True,
        )
    )


def _any_of(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one schema for all kinds, their definitions side by side."""
    definitions: dict[str, Any] = {}
    choices = []
    for name, schema in schemas.items():
        definitions |= schema.pop("$defs", {})
        definitions[f"{name} file"] = schema
        choices.append(
            {
                "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{name} file"},
            }
        )
    kinds = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(schemas)}},
    }
    return {"$schema": _DIALECT, **kinds, "allOf": choices, "$defs": definitions}
