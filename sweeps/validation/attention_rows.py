"""Rows of the FuseMax artifact against ours: five designs of attention, and the linear layers.

The rows are read from the folder that `OPBYTE_REFERENCE` names. They are another simulator's
(Timeloop and Accelergy under the authors' scripts): agreeing with them is conformity.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.sim.attention_plan import attention_plan
from opbyte.sim.simulate import simulate
from opbyte.sweeps.bands import Band

ORIGIN = "FuseMax artifact (FPSG-UIUC/micro24-fusemax-artifact)"
#: Design of a file -> machine and mapping.
DESIGNS = {
    "unfused": ("flat-cloud", "unfused"),
    "flat": ("flat-cloud", "default"),
    "cascade": ("fusemax-cascade-cloud", "default"),
    "arch": ("fusemax-cloud", "serial"),
    "binding": ("fusemax-cloud", "default"),
}
#: Design of the files of the six linear layers -> machine.
LINEAR = {"flat": "flat-cloud", "proposal": "fusemax-cloud"}
#: Model -> heads, width of a head, of the model, of its feed-forward network (as FuseMax has them).
MODELS = {
    "BERT": (12, 64, 768, 3072),
    "TrXL": (16, 64, 1024, 4096),
    "T5": (8, 64, 512, 2048),
    "XLM": (16, 128, 2048, 8192),
}
BATCH = 64
#: Column of a row -> what is compared, and its tolerance in percent.
COLUMNS = {
    "latency": 2.0, "traffic": 5.0, "energy": 15.0, "util_2d": 2.0, "util_1d": 2.0,
}  # fmt: skip
_SIZES = {"K": 1024, "M": 1024**2}


@dataclass(frozen=True)
class Compared:
    """Rows of one file: errors of ours by column, percent, and row by row.

    Attributes:
        errors: Column -> (rows,).
        rows: Model and length of each row.
    """

    design: str
    machine: str
    mapping: str
    file: str
    errors: Mapping[str, np.ndarray]
    rows: tuple[tuple[str, str], ...]

    def bands(self) -> Iterator[Band]:
        """Yield the errors of each column."""
        for column, error in self.errors.items():
            yield Band.of(column, error)


def compared(folder: Path) -> Iterator[Compared | str]:
    """Yield what was compared, or the name of a file that is not there.

    Raises:
        ConfigError: If a file lacks a column, or names an unknown model or length.
    """
    files = {f"fusemax_attn-{d}.csv": (d, *DESIGNS[d]) for d in DESIGNS}
    files |= {
        f"fusemax_end2end-{d}.csv": (f"linear, {d}", machine, "default")
        for d, machine in LINEAR.items()
    }
    for name, (design, machine, mapping) in files.items():
        path = folder / name
        if not path.is_file():
            yield name
            continue
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            yield _compared(rows, design, machine, mapping, name)
        except (KeyError, ValueError) as error:
            rule = f"can not be read: {error}"
            raise ConfigError.one(str(path), "", rule, "", "copy it again") from None


def _compared(
    rows: list[dict[str, str]], design: str, machine: str, mapping: str, name: str
) -> Compared:
    ours = linear if design.startswith("linear") else attention
    found: dict[str, list[float]] = {}
    for row in rows:
        values = ours(machine, mapping, row["model"], tokens(row["seq_len"]))
        for column, value in values.items():
            found.setdefault(column, []).append(100.0 * (value / float(row[column]) - 1.0))
    errors = {column: np.array(error) for column, error in found.items()}
    places = tuple((row["model"], row["seq_len"]) for row in rows)
    return Compared(design, machine, mapping, name, errors, places)


def tokens(text: str) -> int:
    """Return a length such as `16K` as a number.

    Raises:
        ValueError: If it is none.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _SIZES or not number.isdigit():
        raise ValueError(f"a length such as 16K is due, got {text!r}")
    return int(number) * _SIZES[unit]


def attention_work(model: str, length: int) -> dict[str, object]:
    """Return the attention of a row as a work: an encoder's, of a batch of 64."""
    heads, width, _, _ = MODELS[model]
    return {
        "kind": "attention_prefill", "batch": BATCH, "q_tokens": length, "kv_tokens": length,
        "heads": heads, "kv_heads": heads, "head_dim": width, "dtype": "fp16", "causal": False,
    }  # fmt: skip


def attention(machine: str, mapping: str, model: str, length: int) -> dict[str, float]:
    """Return our values of a row of attention, in the units of the files (pJ for energy)."""
    row = attention_plan(machine, attention_work(model, length), mapping)[0].row()
    return {
        "latency": row["seconds"], "traffic": row["dram_bytes"], "energy": 1e12 * row["joules"],
        "util_2d": row["utilisation_2d"], "util_1d": row["utilisation_1d"],
    }  # fmt: skip


def linear(machine: str, mapping: str, model: str, length: int) -> dict[str, float]:
    """Return our values of a row of the linear layers of one block."""
    _, _, hidden, inner = MODELS[model]
    shapes = [*[(hidden, hidden)] * 4, (inner, hidden), (hidden, inner)]
    results = [
        simulate(
            machine,
            {"kind": "gemm", "m": BATCH * length, "n": n, "k": k, "dtype": "fp16"},
            mapping,
        )
        for n, k in shapes
    ]
    ports = [r.breakdown["chip.dram.phy_bytes"].sum() for r in results]
    return {
        "latency": sum(r.seconds for r in results),
        "traffic": float(sum(ports)),
        "energy": 1e12 * sum(r.joules for r in results),
    }
