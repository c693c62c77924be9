"""What results belong to: the resolved study, the package's sources, and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import opbyte
from opbyte.core.catalog import is_path
from opbyte.core.errors import OpbyteError
from opbyte.sweeps.study import Random, Sobol

if TYPE_CHECKING:
    from opbyte.sweeps.design import Side
    from opbyte.sweeps.plan import Plan

__all__ = ["code_version", "digest", "id_of", "keyed", "resolved", "seed_of", "study_key"]

#: Endings of files that hold data: requests, operators.
_DATA = (".jsonl", ".csv", ".gz", ".parquet")
_ROOMS = ("core", "workloads", "hw_models", "sim", "sweeps")


def digest(data: Any) -> str:
    """Return a hash of plain data; equal data have equal hashes, whatever the order of keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return a hash of the package's sources and of the models that it ships."""
    state = hashlib.blake2b(digest_size=16)
    root = Path(opbyte.__file__).parent
    for room in _ROOMS:
        folder = root / room
        files = [f for f in folder.rglob("*") if f.suffix == ".py" or _is_model(f, folder)]
        for file in sorted(files):
            state.update(f"{room}/{file.relative_to(folder)}\0".encode())
            state.update(file.read_bytes())
    return state.hexdigest()


def _is_model(file: Path, room: Path) -> bool:
    return room.name == "workloads" and file.suffix in (".yaml", ".json")


def resolved(plan: Plan) -> dict[str, Any]:
    """Return everything that decides the points' results, as plain data."""
    study = plan.study.model_dump(mode="json", exclude_defaults=True)
    kept = (
        "base",
        "fidelity",
        "axes",
        "derive",
        "constraints",
        "baseline",
        "seed",
        "objectives",
        "budget",
    )
    data: dict[str, Any] = {key: study[key] for key in kept if key in study}
    data["fidelity"] = plan.study.fidelity
    data["strategy"] = study.get("strategy", {"kind": "grid"})
    machines = {str(k): v for k, v in _machines(plan.side, plan)}
    if plan.baseline is not None:
        machines |= {f"baseline {k}": v for k, v in _machines(plan.baseline, plan)}
    data["machines"] = machines
    data["files"] = dict(_files(data, plan.side))
    return data


def _machines(side: Side, plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yield every machine of the study as it is read, by name or file."""
    axis = plan.by_path.get("machine")
    moved = side is plan.baseline and plan.study.baseline and plan.study.baseline.machine
    sources = axis.written if axis is not None and not moved else None
    for source in sources or [side.machine]:
        name = source if isinstance(source, str) else digest(source)
        yield name, side.machine_of({"machine": source}).document.data


def _files(data: Any, side: Side) -> Iterator[tuple[str, str]]:
    """Yield the hash of every file that a value names, but machines, which stand there in full."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key != "machines":
                yield from _files(value, side)
    elif isinstance(data, list):
        for value in data:
            yield from _files(value, side)
    elif isinstance(data, str) and len(data) < 1000 and _names_file(data):
        try:
            beside = Path(side.document.name).parent / data
            path = beside if beside.is_file() else Path(data).expanduser()
            if path.is_file():
                yield data, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except (OSError, OpbyteError, ValueError):
            return


def _names_file(text: str) -> bool:
    """Return whether a value may be a file's name: a config, or the data of a trace."""
    return is_path(text) or text.endswith(_DATA)


def keyed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a resolved study decides whether stored points are its own.

    The points of a grid and of a search over it are the same; objectives and a budget only choose
    among them.
    """
    relevant = {k: v for k, v in data.items() if k not in ("objectives", "budget")}
    strategy = data.get("strategy", {})
    if strategy.get("kind") in ("grid", "optuna", None):
        relevant["strategy"] = "grid"
    return relevant


def study_key(data: Mapping[str, Any]) -> str:
    """Return the hash of a resolved study that says whether stored points are its own."""
    return digest(keyed(data))


def samples(plan: Plan) -> bool:
    """Return whether the points depend on the strategy's own numbers."""
    return isinstance(plan.study.strategy, Random | Sobol)


def seed_of(key: str, point: object) -> int:
    """Return the seed of one point of a study, in [0, 2**63)."""
    state = hashlib.blake2b(f"{key}|{point}".encode(), digest_size=8)
    return int.from_bytes(state.digest(), "big") >> 1


def id_of(values: bytes) -> int:
    """Return the id of a point of a space that can not be counted, from its values."""
    return int.from_bytes(hashlib.blake2b(values, digest_size=8).digest(), "big") >> 1
