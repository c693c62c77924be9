"""Rows of AttAcc's simulator against ours: kernels in memory, and whole systems.

The rows are read from the folder that `OPBYTE_REFERENCE` names. They are another simulator's:
agreeing with them is conformity. Of systems the layers are compared, as that tool has no embedding
and no head, and it prices what does not fit, so capacities are lifted. Its defects are repeated
(`pim.artifact`), so that like is compared with like.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.mapping import load_mapping
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.attention import attention_clocks
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.result import Result
from opbyte.sim.simulate import simulate
from opbyte.sweeps.bands import Band
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.phases import Decode

if TYPE_CHECKING:
    import pandas as pd

KERNELS, SYSTEMS = "attacc_kernel_reference.csv", "attacc_system_reference.csv"
ORIGIN = "AttAcc simulator (MIT; its Ramulator for kernels), commit c600051"
LEVELS = {"bank": "bank", "bg": "bank-group", "buffer": "buffer"}
#: Mapping by head-level pipelining and feed-forward co-processing.
MAPPINGS = {
    ("False", "False"): "decode",
    ("True", "False"): "head",
    ("False", "True"): "decode_assisted",
    ("True", "True"): "head_assisted",
}
#: Without the power limit MACs of all banks follow each other after 4 clocks instead of 6.
FREE = {
    "attacc.gemv.pim.power_limited": False,
    "attacc.hbm.macs.bandwidth": "53.27 TB/s",
    "attacc.gemv.peak.fp16": "53.27 TFLOP/s",
    "attacc.gemv.peak.bf16": "53.27 TFLOP/s",
}
Row = Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """Rows of one file with the errors of ours, percent."""

    operator: str
    machine: str
    file: str
    bands: tuple[Band, ...]


def compared(folder: Path) -> Iterator[Compared | str]:
    """Yield what was compared, or the name of a file that is not there.

    Raises:
        ConfigError: If a file lacks a column.
    """
    for name, compare in ((KERNELS, _kernels), (SYSTEMS, _systems)):
        path = folder / name
        if not path.is_file():
            yield name
            continue
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            yield from compare(rows)
        except (KeyError, ValueError) as error:
            rule = f"can not be read: {error}"
            raise ConfigError.one(str(path), "", rule, "", "copy it again") from None


def _kernels(rows: Sequence[Row]) -> Iterator[Compared]:
    for level, name in LEVELS.items():
        found: dict[str, list[float]] = {"limited": [], "not limited": []}
        for row in rows:
            if row["pim_type"] == level:
                error = kernel_clocks(row) / float(row["cycles"]) - 1.0
                limited = row["power_constraint"] == "True"
                found["limited" if limited else "not limited"].append(100.0 * error)
        if any(found.values()):
            bands = _bands({f"power {k}": v for k, v in found.items()})
            yield Compared("attention kernel", f"dgx-attacc-{name}", KERNELS, bands)


def _systems(rows: Sequence[Row]) -> Iterator[Compared]:
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["model"] != "GPT-175B":
            continue
        name, mapping = system(row)
        band = found.setdefault(name, {}).setdefault(mapping, [])
        band.append(100.0 * (layer_seconds(run(row)) / (float(row["g_time (ms)"]) / 1e3) - 1.0))
    for name, bands in found.items():
        yield Compared("decode step of GPT-3 175B", name, SYSTEMS, _bands(bands))


def _bands(found: Mapping[str, list[float]]) -> tuple[Band, ...]:
    each = {name: np.array(errors) for name, errors in found.items() if errors}
    whole = np.concatenate(list(each.values()))
    return (Band.of("all", whole), *(Band.of(n, e) for n, e in each.items() if len(each) > 1))


def kernel_clocks(row: Row) -> float:
    """Return our clocks of a row of the kernel file."""
    machine = _machine(f"dgx-attacc-{LEVELS[row['pim_type']]}", row["power_constraint"] == "True")
    device = PimDevice.of(UnitView(machine, "attacc.gemv"), "fp16")
    assert device is not None, "these machines have the block"
    heads, tokens, width = (float(row[x]) for x in ("nhead_per_hbm", "L", "dhead"))
    return float(attention_clocks(replace(device, instances=1.0), heads, tokens, width, 1.0))


def system(row: Row) -> tuple[str, str]:
    """Return the machine, and the mapping, of a row of the system file."""
    if row["pim"]:
        mapping = MAPPINGS[row["pipe_level"], row["is parallel"]]
        return f"dgx-attacc-{LEVELS[row['pim']]}", mapping
    if row["system"] == "dgx-cpu":
        return "dgx-cpu", "decode"
    return f"attacc-dgx-{row['gpu'].lower()}", "default"


def run(row: Row, mapping: str | None = None) -> Result:
    """Return our decode step of a row of the system file, of mean length."""
    name, usual = system(row)
    machine = _machine(name, row["power constraint"] == "True" or row["pim"] != "bank")
    work = Decode(_gpt(), int(row["bs"]), int(row["Lin"]) + int(row["Lout"]) / 2)
    count = int(row["ngpu"])
    chosen = machine.mapping(mapping or usual)
    if count != machine.counts["gpu"]:
        machine = machine.replace({"gpu.count": count})
        written = chosen.model_dump(by_alias=True, exclude_none=True)
        written["parallel"]["all"]["tp"] = count
        chosen = load_mapping(written)
    return simulate(machine, work, mapping=chosen)


def layers(result: Result) -> pd.DataFrame:
    """Return the rows of the breakdown that belong to layers."""
    frame = result.breakdown
    return frame[frame.block.str.startswith("layer")]


def layer_seconds(result: Result) -> float:
    """Return the step without embedding and head, seconds; heads may overlap in the layers."""
    return float(result.tpot - result.breakdown.seconds.sum() + layers(result).seconds.sum())


@functools.cache
def _machine(name: str, limited: bool) -> Machine:
    machine = load_machine(name)
    changes = {f"{tier}.capacity": "1 PB" for tier in machine.memories if "l2" not in tier}
    if name.removeprefix("dgx-attacc-") in LEVELS.values():
        changes["attacc.gemv.pim.artifact"] = "attacc"
    machine = machine.replace(changes)
    return machine if limited else machine.replace(FREE)


@functools.cache
def _gpt() -> Model:
    return replace(load_model("gpt-3-175b"), max_context=0)
