"""simulate_batch(): many single operators in one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import CapacityError, ConfigError, WorkloadError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.registry import lookup_error, nearest
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.phases import overflow
from opbyte.sim.result import Outcome
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.workloads.works import WORKS, Work

if TYPE_CHECKING:
    import pandas as pd

#: Rows that are priced at once: their columns together stay in a core's cache.
CHUNK = 32768
_NOT_COLUMNS = ("sources", "ranges")


def simulate_batch(
    machine: str | Path | Mapping[str, Any] | Machine,
    frame: pd.DataFrame,
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
) -> pd.DataFrame:
    """Price many single operators: one row in, one row out.

    Rows are priced alone, as on an idle device.

    Args:
        machine: As for `simulate`.
        frame: One row for each operator: `kind` and the fields of that kind of work, for example
            gemm (m, n, k, dtype), attention_prefill and attention_decode (batch, q_tokens,
            kv_tokens, heads, kv_heads, head_dim, dtype, kv_dtype), mla_decode (batch, kv_tokens,
            heads, dtype), moe (tokens, hidden, ffn, experts, top_k, routing, dtype, tp_size,
            ep_size), softmax, norm, activation, gated_activation, rotary and add (rows, width,
            dtype), all_reduce, all_gather, reduce_scatter and all_to_all (bytes, participants).
            An empty cell of a field that has a default takes it; other columns are passed through.
        mapping: As for `simulate`.
    Returns:
        The frame with `seconds` and `joules` added.
    Raises:
        CapacityError: If the tensors of a row do not fit in the machine.
        ConfigError: If a column is missing, or a kind or dtype is unknown.
        UncoveredError: If no model covers a row.
        WorkloadError: If a size makes no sense.
    """
    loaded = load_machine(machine)
    software = None if mapping is None else resolve_mapping(loaded, mapping)
    found = {name: np.full(len(frame), np.nan) for name in ("seconds", "joules")}
    for rows, work in _all_works(frame):
        outcome = _outcome(loaded, work, software)
        for name, values in found.items():
            values[rows] = outcome.metrics[name]
    return frame.assign(**found)


@dataclass(frozen=True)
class Batch:
    """Rows of `simulate_batch` that are priced again and again, on other values of a machine.

    What depends on the rows alone, works and their operators, is made once.

    Attributes:
        variants: How many sets of values are priced at once.
    """

    works: tuple[tuple[npt.NDArray[np.int64], Work], ...]
    rows: int
    variants: int

    @classmethod
    def of(cls, frame: pd.DataFrame, variants: int = 1) -> Batch:
        """Return the batch of a frame.

        Raises:
            ConfigError, WorkloadError: As `simulate_batch` does of a frame.
        """
        return cls(tuple(_all_works(frame, variants)), len(frame), variants)

    def seconds(
        self,
        machine: Machine,
        changes: Mapping[str, Any],
        mapping: SoftwareMapping | None = None,
    ) -> Array:
        """Return the seconds of each row, (variants, rows).

        Args:
            changes: Short path -> value, or one for each variant, (variants,).
            mapping: By default the machine's own for the kind of a row.
        Raises:
            CapacityError: If the tensors of a row do not fit in the machine.
            UncoveredError: If no model covers a row.
        """
        seconds = np.empty((self.variants, self.rows))
        for rows, work in self.works:
            wide = {p: np.repeat(v, len(rows)) if np.ndim(v) else v for p, v in changes.items()}
            found = _outcome(machine.with_values(wide), work, mapping).metrics["seconds"]
            shape = (self.variants, len(rows))
            seconds[:, rows] = np.broadcast_to(found, shape[0] * shape[1]).reshape(shape)
        return seconds


def _all_works(
    frame: pd.DataFrame, variants: int = 1
) -> Iterator[tuple[npt.NDArray[np.int64], Work]]:
    """Yield works, and the rows of the frame that each stands for, `variants` times in turn."""
    _check(frame)
    for kind, rows in frame.groupby("kind", sort=False).indices.items():
        mine = frame if len(rows) == len(frame) else frame.iloc[rows]
        for chosen, work in _works(_single(str(kind)), mine, variants):
            yield np.asarray(rows, np.int64)[chosen], work


def _outcome(machine: Machine, work: Work, mapping: SoftwareMapping | None) -> Outcome:
    outcome = evaluate(machine, work, resolve_mapping(machine, mapping, work.kind))
    if outcome.infeasible is not None and np.any(outcome.infeasible):
        raise CapacityError(*overflow(outcome))
    return outcome


def _check(frame: pd.DataFrame) -> None:
    """Check what no kind of operator can say of its own rows.

    Raises:
        ConfigError: If it is no frame, a column is there twice, or a row has no kind.
    """
    if not hasattr(frame, "groupby"):
        remedy = "Write pandas.DataFrame([{'kind': 'gemm', 'm': 16, 'n': 4096, 'k': 4096}])."
        raise ConfigError.one("", "frame", "a DataFrame is due", type(frame).__name__, remedy)
    if "kind" not in frame:
        raise ConfigError.one("", "frame", "a column `kind` is due", list(frame.columns), "")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ConfigError.one("", "frame", "a column may be there once", str(twice[0]), "")
    empty = frame["kind"].isna()
    if empty.any():
        row = frame.index[empty][0]
        raise ConfigError.one("", f"frame.kind, row {row}", "every row needs a kind", "", "")


def _single(kind: str) -> type[Work]:
    """Return the class of a kind of work that is one operator."""
    single = [name for name in WORKS.names() if WORKS.lookup(name).alone]
    if kind not in single:
        raise lookup_error("single operator", kind, single, "frame")
    return WORKS.lookup(kind)


def _works(
    cls: type[Work], frame: pd.DataFrame, variants: int
) -> Iterator[tuple[npt.NDArray[np.int64], Work]]:
    """Yield works of equal structure, and the rows of the frame that each stands for."""
    own = {f.name: f for f in fields(cls) if f.name not in _NOT_COLUMNS}
    needed = [n for n, f in own.items() if f.default is f.default_factory is MISSING]
    missing = [n for n in needed if n not in frame or frame[n].isna().any()]
    if missing:
        raise ConfigError.one(
            "", "frame", f"a {cls.kind} row needs {', '.join(needed)}; empty or missing",
            ", ".join(missing), _guess(missing[0], frame),
        )  # fmt: skip
    given = [n for n in own if n in frame]
    sizes = {n: _numbers(cls, n, own[n].default, frame) for n in given if n in cls.vector_fields}
    structure = [n for n in given if n not in sizes]
    for values, rows in _groups(frame, structure):
        plain = {n: _plain(v) for n, v in zip(structure, values, strict=True) if not _empty(v)}
        step = max(CHUNK // variants, 1)
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            numbers = {n: np.tile(v[chosen], variants) for n, v in sizes.items()}
            fields_of: dict[str, Any] = {**plain, **numbers}
            try:
                yield chosen, cls(**fields_of)
            except WorkloadError as error:
                raise WorkloadError(f"frame: {error}") from None


def _guess(name: str, frame: pd.DataFrame) -> str:
    near = nearest(name, [str(c) for c in frame.columns])
    return f"Did you mean the column '{near}' to be '{name}'?" if near and near != name else ""


def _numbers(
    cls: type[Work], name: str, default: Any, frame: pd.DataFrame
) -> npt.NDArray[np.float64]:
    column = frame[name]
    try:
        if np.iscomplexobj(column):
            raise TypeError
        values = column.to_numpy(np.float64)
    except (TypeError, ValueError):
        where = f"frame.{name}"
        raise ConfigError.one(
            "", where, f"a {cls.kind} row needs numbers", column.iloc[0]
        ) from None
    if default is not MISSING and np.isnan(values).any():
        values = np.where(np.isnan(values), float(default), values)
    return values


def _groups(
    frame: pd.DataFrame, structure: list[str]
) -> Iterator[tuple[tuple[Any, ...], npt.NDArray[np.int64]]]:
    """Yield the values of the structural columns, and the rows that have them."""
    varying = [n for n in structure if (frame[n] != frame[n].iloc[0]).any()]
    if not varying:
        yield tuple(frame[n].iloc[0] for n in structure), np.arange(len(frame))
        return
    for rows in frame.groupby(varying, sort=False, dropna=False).indices.values():
        chosen = np.asarray(rows, np.int64)
        yield tuple(frame[n].iloc[chosen[0]] for n in structure), chosen


def _empty(value: Any) -> bool:
    import pandas as pd

    return not hasattr(value, "__len__") and bool(pd.isna(value))


def _plain(value: Any) -> Any:
    """Return a cell as plain Python; whole floats, which a column with gaps has, as int."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
