"""Measured training steps against ours: Megatron-LM on A100 (Korthikanti et al., table 5).

The rows are read from the folder that `OPBYTE_REFERENCE` names. No parameter was fitted to them:
products, collectives and vector kernels are those of the catalog's A100, with which inference is
priced. Attention is not fused, and dropout is on, as in the paper; `seqsel` rows have sequence
parallelism and recompute attention, `full` rows recompute whole layers without it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from opbyte.core.errors import ConfigError
from opbyte.sim.result import Result
from opbyte.sim.simulate import simulate
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.train import TrainStep

__all__ = ["BAR", "FILE", "MACHINE", "ORIGIN", "Compared", "compared", "step"]

FILE = "megatron_a100.csv"
ORIGIN = "Megatron-LM on A100 (Korthikanti et al., table 5)"
MACHINE = "dgx-a100-64x8"
#: Mean absolute error that is acceptable, percent.
BAR = 8.0
Row = Mapping[str, str]
_RECOMPUTE = {"full": "full", "seqsel": "selective", "none": "none"}


@dataclass(frozen=True)
class Compared:
    """A row and our step."""

    row: Row
    result: Result

    @property
    def measured(self) -> float:
        """Return the measured seconds of a step."""
        return float(self.row["iteration_s"])

    @property
    def error(self) -> float:
        """Return the signed error of ours, percent."""
        return 100.0 * (self.result.seconds / self.measured - 1.0)


def compared(folder: Path) -> Iterator[Compared | str]:
    """Yield what was compared, or the name of a file that is not there.

    Raises:
        ConfigError: If the file lacks a column, or a value is no number.
    """
    path = folder / FILE
    if not path.is_file():
        yield FILE
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            one = Compared(row, step(row))
            assert one.measured > 0.0
        except (KeyError, ValueError, AssertionError) as error:
            rule = f"can not be read: {error!r:.200}"
            raise ConfigError.one(str(path), "", rule, "", "copy it again") from None
        yield one


def step(row: Row) -> Result:
    """Return our step of a row."""
    split = {
        "group": "gpus",
        "tp": int(row["tensor_parallel"]),
        "pp": int(row["pipeline_parallel"]),
        "dp": int(row["data_parallel"]),
        "interleave": int(row["interleave"]),
        "sequence": row["recompute"] == "seqsel",
    }
    work = TrainStep(
        _model(row),
        batch=int(row["global_batch"]),
        sequence=int(row["seq"]),
        micro_batch=int(row["microbatch"]),
        recompute=_RECOMPUTE[row["recompute"]],
        dropout=True,
    )
    mapping = {
        "name": "megatron",
        "groups": {"gpus": "node.gpu"},
        "parallel": {"all": split},
        "run": [{"ops": "all", "unit": "node.gpu.sm"}],
        "fusion": "none",
        "launch": "graph",
    }
    return simulate(MACHINE, work, mapping)


def _model(row: Row) -> Model:
    config = {
        "model_type": "gpt2",
        "torch_dtype": row["dtype"],
        "n_embd": int(row["hidden"]),
        "n_layer": int(row["layers"]),
        "n_head": int(row["heads"]),
        "n_positions": int(row["seq"]),
        "vocab_size": int(row["vocab"]),
    }
    return load_model({"kind": "model", "name": row["model"], "config": config})
