"""A real run of vLLM and the profile of its operators, as LLMServingSim 2.0 publishes them.

The files are other people's data and no part of the package. The profile prices steps, so that
what is compared is the scheduler alone.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.sim.serving.prices.grid import GridPrices, GridTable
from opbyte.sim.serving.requests import Request

if TYPE_CHECKING:
    import pandas as pd

RUN = "bench__RTX4090__Llama-3.1-8B__"
PROFILE = "perf__RTX4090__meta-llama__Llama-3.1-8B__bf16__tp1__"
_LAYERS = 32
#: How often a step runs a dense operator; every layer runs those that are not here once.
_RUNS = {"layernorm": 2 * _LAYERS, "embedding": 1, "final_layernorm": 1}
_AXES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")


@dataclass(frozen=True)
class VllmRun:
    """A run.

    Attributes:
        requests: Input and output tokens, and seconds after the first request was queued:
            `queued`, `scheduled`, `first_token`, `last_token`.
        series: Each second: requests running and waiting, share of the KV cache in percent.
        blocks: KV blocks that requests can have; one more is the engine's own.
        block_tokens: Tokens of a block.
        max_sequences, max_batched_tokens: Limits of the scheduler.
    """

    requests: pd.DataFrame
    series: pd.DataFrame
    blocks: int
    block_tokens: int
    max_sequences: int
    max_batched_tokens: int

    def arriving(self) -> list[Request]:
        """Return the requests before anything happened, in the order in which they were queued."""
        rows = self.requests.sort_values("queued", kind="stable")
        columns = (rows[name].to_numpy() for name in ("queued", "input", "output"))
        return [
            Request(int(index), float(queued), int(given), int(produced))
            for index, queued, given, produced in zip(rows.index, *columns, strict=True)
        ]


def read_run(folder: Path) -> VllmRun:
    """Return the run in a folder."""
    import pandas as pd

    with gzip.open(folder / f"{RUN}requests.jsonl.gz", "rt") as file:
        rows = pd.DataFrame([json.loads(line) for line in file])
    meta = json.loads((folder / f"{RUN}meta.json").read_text())
    start = rows["queued_ts"].min()
    times = {name: rows[f"{name}_ts"] - start for name in ("queued", "scheduled", "first_token")}
    engine, cache = meta["engine_kwargs"], meta["kv_cache"]
    return VllmRun(
        pd.DataFrame(
            {
                "input": rows["input_toks"],
                "output": rows["output_toks"],
                **times,
                "last_token": rows["last_token_ts"] - start,
            }
        ),
        pd.read_csv(folder / f"{RUN}timeseries.csv"),
        # vLLM keeps block 0 for itself.
        cache["num_gpu_blocks"] - 1,
        cache["block_size"],
        engine["max_num_seqs"],
        engine["max_num_batched_tokens"],
    )


def read_profile(folder: Path) -> GridPrices:
    """Return the prices of steps by the profile in a folder."""
    import pandas as pd

    dense = pd.read_csv(folder / f"{PROFILE}dense.csv.gz")
    head = pd.read_csv(folder / f"{PROFILE}per_sequence.csv.gz")
    rows = pd.read_csv(folder / f"{PROFILE}attention.csv.gz")
    axes = [np.sort(rows[name].unique()).astype(float) for name in _AXES]
    grid = np.full([len(axis) for axis in axes], np.nan)
    at = tuple(np.searchsorted(a, rows[name]) for a, name in zip(axes, _AXES, strict=True))
    grid[at] = rows["time_us"] * (1e-6 * _LAYERS)
    _fill(grid)
    padded = np.array([np.pad(a, (0, max(map(len, axes)) - len(a)), mode="edge") for a in axes])
    sizes = np.array([len(a) for a in axes], float)
    return GridPrices(
        GridTable(
            _summed(dense, "tokens", _RUNS, _LAYERS), _summed(head, "sequences", {}, 1),
            padded, sizes, grid,
        )
    )  # fmt: skip


def _fill(grid: Array) -> None:
    """Fill points that no profile has: without a piece its past does not matter, and so on."""
    grid[0, 1:] = grid[0, :1]
    grid[:, :, 0, 1:] = grid[:, :, 0, :1]
    grid[0, :, 0] = 0.0
    # Decodes have a context.
    grid[:, :, 1:, 0] = grid[:, :, 1:, 1]
    for many in range(1, grid.shape[2]):
        # A step of so many tokens has no room for so many decodes: those before cost as much more.
        missing = np.isnan(grid[:, :, many])
        grid[:, :, many][missing] = grid[:, :, many - 1][missing]


def _summed(rows: pd.DataFrame, by: str, runs: dict[str, int], otherwise: int) -> Array:
    """Return seconds of all operators together by a whole number from 0, linear between rows."""
    counts: Any = np.arange(int(rows[by].max()) + 1)
    total = np.zeros(len(counts))
    for name, layer in rows.groupby("layer"):
        each = np.interp(counts, layer[by], layer["time_us"])
        total += runs.get(str(name), otherwise) * 1e-6 * each
    total[0] = 0.0
    return total
