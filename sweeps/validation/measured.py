"""Measured operators against ours: rows of real devices, through the public batch call.

The rows are other people's data and no part of the package: they are read from the folder that
`OPBYTE_REFERENCE` names. What is said of each file, who measured it and which of its rows our
parameters were fitted on, is said here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "OPBYTE_REFERENCE"
#: Seeds of the samples that the catalog's parameters are medians over, and rows of each.
SEEDS, FITTED_ROWS = range(5), 300
#: Where fewer rows are left, all are compared, those that were fitted too.
FEWEST_ROWS = 100
SYSTEM = "NVIDIA aiconfigurator"
#: Vidur's names of the four products of a layer.
_LAYER_PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")


@dataclass(frozen=True)
class Table:
    """Measured rows of one operator on one machine.

    Attributes:
        file: Below the reference folder.
        band: Column by which errors are reported, and the upper ends of its bands.
        origin: Who measured, with what.
        read: Returns the batch frame with `measured` seconds.
        fitted: Our parameters were fitted on samples of these rows. The samples are left out,
            unless too few rows would be left.
    """

    operator: str
    machine: str
    file: str
    band: str
    ends: tuple[float, ...]
    origin: str
    read: Callable[[Path], pd.DataFrame]
    fitted: bool = False


def _gemm(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows = pd.read_parquet(path)
    return rows[["m", "n", "k"]].assign(kind="gemm", dtype="bf16", measured=rows["latency"] * 1e-3)


def _layers(path: Path) -> pd.DataFrame:
    """Return the four products of a layer by tokens and tensor-parallel degree."""
    import pandas as pd

    x = pd.read_csv(path)
    keys = ["num_tokens", "num_tensor_parallel_workers"]
    x = x.groupby(keys, as_index=False).mean(numeric_only=True)
    hidden, tp, ffn = x["n_embd"], x["num_tensor_parallel_workers"], x["n_expanded_embd"]
    heads = x["n_head"] + 2 * x["n_kv_head"]
    shapes = (
        (heads * (hidden // x["n_head"]) // tp, hidden),
        (hidden, hidden // tp),
        (2 * ffn // tp, hidden),
        (hidden, ffn // tp),
    )
    parts = [
        pd.DataFrame(
            {"m": x["num_tokens"], "n": n, "k": k, "measured": 1e-3 * x[f"time_stats.{op}.median"]}
        )
        for op, (n, k) in zip(_LAYER_PRODUCTS, shapes, strict=True)
    ]
    return pd.concat(parts, ignore_index=True).dropna().assign(kind="gemm", dtype="fp16")


def _attention(path: Path) -> pd.DataFrame:
    import pandas as pd

    x = pd.read_parquet(path)
    prefill = x["op_name"].iloc[0] == "context_attention"
    return pd.DataFrame(
        {
            "kind": "attention_prefill" if prefill else "attention_decode",
            "batch": x["batch_size"],
            "q_tokens": x["isl"] if prefill else 1,
            "kv_tokens": x["isl"] + x["step"],
            "heads": x["num_heads"],
            "kv_heads": x["num_key_value_heads"],
            "head_dim": x["head_dim"],
            "dtype": "bf16",
            "kv_dtype": "bf16",
            "measured": x["latency"] * 1e-3,
        }
    )


def _latent(path: Path) -> pd.DataFrame:
    import pandas as pd

    x = pd.read_parquet(path)
    return pd.DataFrame(
        {
            "kind": "mla_decode",
            "batch": x["batch_size"],
            "kv_tokens": x["isl"] + x["step"],
            "heads": x["num_heads"],
            "dtype": "bf16",
            "measured": x["latency"] * 1e-3,
        }
    )


def _moe(path: Path) -> pd.DataFrame:
    import pandas as pd

    x = pd.read_parquet(path)
    return pd.DataFrame(
        {
            "kind": "moe",
            "tokens": x["num_tokens"],
            "hidden": x["hidden_size"],
            "ffn": x["inter_size"],
            "experts": x["num_experts"],
            "top_k": x["topk"],
            "routing": x["distribution"],
            "dtype": "bf16",
            "tp_size": x["moe_tp_size"],
            "ep_size": x["moe_ep_size"],
            "measured": x["latency"] * 1e-3,
        }
    )


def _nccl(path: Path) -> pd.DataFrame:
    import pandas as pd

    x = pd.read_parquet(path)
    width = x["nccl_dtype"].map({"half": 2, "int8": 1})
    return pd.DataFrame(
        {
            "kind": x["op_name"].replace({"alltoall": "all_to_all"}),
            "bytes": x["message_size"] * width,
            "participants": x["num_gpus"],
            "measured": x["latency"] * 1e-3,
        }
    )


def _vidur_all_reduce(path: Path) -> pd.DataFrame:
    import pandas as pd

    x = pd.read_csv(path)
    x = x[x["num_workers"] == x["devices_per_node"]]
    return pd.DataFrame(
        {
            "kind": "all_reduce",
            "bytes": x["size"],
            "participants": x["num_workers"],
            "measured": x["time_stats.all_reduce.median"] * 1e-3,
        }
    )


_M = (1, 16, 64, 256, 1024)
_VIDUR = "Vidur (MIT), medians of whole microseconds"
_VLLM = f"vLLM 0.14, {SYSTEM} (Apache-2.0)"
TABLES = (
    Table("gemm", "a100-sxm-80gb", "a100_gemm.parquet", "m", _M, _VLLM, _gemm, fitted=True),
    Table("gemm", "a100-sxm-80gb", "a100__Meta-Llama-3-8B__mlp.csv.gz", "m", _M, _VIDUR, _layers),
    Table("gemm", "h100-sxm-80gb", "h100__Llama-2-7b-hf__mlp.csv.gz", "m", _M, _VIDUR, _layers),
    Table("prefill attention", "a100-sxm-80gb", "a100_attention_prefill.parquet", "q_tokens",
          (128, 1024, 4096), _VLLM, _attention, fitted=True),
    Table("decode attention", "a100-sxm-80gb", "a100_attention_decode.parquet", "kv_tokens",
          (128, 1024, 8192), _VLLM, _attention, fitted=True),
    Table("MLA decode", "a100-sxm-80gb", "a100_mla_decode.parquet", "kv_tokens",
          (128, 1024, 8192), _VLLM, _latent, fitted=True),
    Table("MoE layer", "a100-sxm-80gb", "a100_moe.parquet", "tokens", (16, 128, 1024),
          _VLLM, _moe, fitted=True),
    Table("collectives", "dgx-a100", "a100_nccl.parquet", "bytes", (2**16, 2**20, 2**24),
          f"NCCL 2.27, {SYSTEM} (Apache-2.0)", _nccl, fitted=True),
    Table("all-reduce", "dgx-a100", "a100_dgx__all_reduce.csv.gz", "bytes",
          (2**16, 2**20, 2**24), _VIDUR, _vidur_all_reduce),
)  # fmt: skip


@dataclass(frozen=True)
class Band:
    """Errors of the rows of one band of a table, percent.

    Attributes:
        band: Text of the band, `all` for the whole table.
        bias: Mean signed error; above 0 where we are slower than the device.
    """

    band: str
    rows: int
    mape: float
    bias: float
    median: float
    p95: float


@dataclass(frozen=True)
class Compared:
    """A table with our seconds.

    Attributes:
        rows: Columns of the batch frame, `measured` and `seconds`.
        seen: What the fit knew of these rows: `never` (another file), `left out`, or `fitted`.
    """

    table: Table
    rows: pd.DataFrame
    seen: str

    def bands(self) -> Iterator[Band]:
        """Yield the errors of all rows, then of each band."""
        error = 100.0 * (self.rows["seconds"] / self.rows["measured"] - 1.0).to_numpy()
        table = self.table
        inside = np.searchsorted(table.ends, self.rows[table.band].to_numpy())
        yield _band("all", error)
        for i in range(len(table.ends) + 1):
            if (inside == i).any():
                yield _band(f"{table.band} {_span(table.ends, i)}", error[inside == i])


def reference_folder() -> Path:
    """Return the folder of measured rows.

    Raises:
        ConfigError: If there is none.
    """
    folder = Path(os.environ.get(FOLDER, "../shared")) / "reference" / "gpu"
    if not folder.is_dir():
        raise ConfigError.one(
            "", FOLDER, "names the folder whose reference/gpu/ holds measured rows", str(folder),
            "The rows are not part of the package; without them there is nothing to compare with.",
        )  # fmt: skip
    return folder


def compare(table: Table, folder: Path) -> Compared | None:
    """Simulate a table's rows; None where the file is absent.

    Raises:
        OpbyteError: If our machine can not run a row.
    """
    from opbyte.sim.batch import simulate_batch

    path = folder / table.file
    if not path.is_file():
        return None
    rows, seen = table.read(path), "never"
    if table.fitted:
        count = len(rows)
        drawn = [np.random.default_rng(s).permutation(count)[:FITTED_ROWS] for s in SEEDS]
        kept = rows.drop(rows.index[np.unique(np.concatenate(drawn))])
        rows, seen = (kept, "left out") if len(kept) >= FEWEST_ROWS else (rows, "fitted")
    return Compared(table, simulate_batch(table.machine, rows.reset_index(drop=True)), seen)


def _span(ends: tuple[float, ...], i: int) -> str:
    if i == len(ends):
        return f"> {ends[-1]:,g}"
    low = ends[i - 1] + 1 if i else 1
    return f"{low:,g}" if low == ends[i] else f"{low:,g} to {ends[i]:,g}"


def _band(band: str, error: Array) -> Band:
    size = np.abs(error)
    return Band(
        band, len(error), float(size.mean()), float(error.mean()), float(np.median(size)),
        float(np.percentile(size, 95)),
    )  # fmt: skip
