"""Measured rows of NVIDIA's aiconfigurator as frames for the batch call.

Its Parquet files hold one operator each, latency in milliseconds. Which one is found by columns, so
a file may have any name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TIME", "read_file"]

#: Column of the time, milliseconds.
TIME = "latency"
_ATTENTION = {"context_attention": "attention_prefill", "generation_attention": "attention_decode"}
_LATENT = {"generation_mla": "mla_decode"}
_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
_DEFAULT_DTYPE = "bf16"


@dataclass(frozen=True)
class _Reader:
    """How the rows of one file are read.

    Attributes:
        columns: What tells the file.
        fields: Returns the columns of the batch frame.
    """

    what: str
    columns: tuple[str, ...]
    fields: Callable[[pd.DataFrame], dict[str, Any]]


def read_file(path: Path) -> pd.DataFrame:
    """Return the rows of a file: `kind`, the fields of that kind, `measured` seconds.

    Raises:
        ConfigError: If the file can not be read, its columns are those of no operator that it is
            read for, or it holds an operator or number format that is not known.
    """
    import pandas as pd

    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ConfigError.one(str(path), "", f"can not be read: {error}", "", "") from None
    for reader in _READERS:
        if {*reader.columns, TIME} <= set(rows):
            try:
                found = pd.DataFrame(reader.fields(rows), index=rows.index)
            except ConfigError as error:
                problem = error.problems[0]
                raise ConfigError.one(
                    str(path), problem.path, problem.rule, problem.value, problem.remedy
                ) from None
            except TypeError as error:
                raise ConfigError.one(str(path), "", f"holds texts for sizes: {error}") from None
            return found.assign(measured=pd.to_numeric(rows[TIME], errors="coerce") * 1e-3)
    known = "; ".join(f"{r.what} ({', '.join((*r.columns, TIME))})" for r in _READERS)
    raise ConfigError.one(
        str(path), "", f"has the columns {', '.join(map(str, rows))}, which are no operator's", "",
        f"Known: {known}.",
    )  # fmt: skip


def _kinds(rows: pd.DataFrame, names: dict[str, str]) -> pd.Series[str]:
    """Return the kind of work of each row.

    Raises:
        ConfigError: For an operator that is not among the names.
    """
    found = rows["op_name"].map(names)
    if found.isna().any():
        raise ConfigError.one(
            "", "op_name", "is an operator that is not read from such a file",
            str(rows["op_name"][found.isna()].iloc[0]), f"Known: {', '.join(names)}.",
        )  # fmt: skip
    return found


def _dtype(rows: pd.DataFrame, column: str) -> pd.Series[str] | str:
    """Return the number format of each row; that of most files where the column is absent."""
    if column not in rows:
        return _DEFAULT_DTYPE
    return rows[column].map({d: lookup(str(d)).name for d in rows[column].unique()})


def _products(rows: pd.DataFrame) -> dict[str, Any]:
    column = "dtype" if "dtype" in rows else "gemm_dtype"
    return {"kind": "gemm", **{c: rows[c] for c in "mnk"}, "dtype": _dtype(rows, column)}


def _attention(rows: pd.DataFrame) -> dict[str, Any]:
    kinds = _kinds(rows, _ATTENTION)
    return {
        "kind": kinds,
        "batch": rows["batch_size"],
        # A decode row has one new token, whatever the step that it was measured at.
        "q_tokens": rows["isl"].where(kinds == "attention_prefill", 1),
        "kv_tokens": rows["isl"] + rows["step"],
        "heads": rows["num_heads"],
        "kv_heads": rows["num_key_value_heads"],
        "head_dim": rows["head_dim"],
        "dtype": _dtype(rows, "attn_dtype"),
        "kv_dtype": _dtype(rows, "kv_cache_dtype"),
    }


def _latent(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "kind": _kinds(rows, _LATENT),
        # Its host is slower than most calls.
        "benchmark": "mla_benchmark",
        "batch": rows["batch_size"],
        "kv_tokens": rows["isl"] + rows["step"],
        "heads": rows["num_heads"],
        "dtype": _dtype(rows, "mla_dtype"),
        "kv_dtype": _dtype(rows, "kv_cache_dtype"),
    }


def _experts(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "kind": "moe",
        "tokens": rows["num_tokens"],
        "hidden": rows["hidden_size"],
        "ffn": rows["inter_size"],
        "experts": rows["num_experts"],
        "top_k": rows["topk"],
        "routing": rows["distribution"],
        "dtype": _dtype(rows, "moe_dtype"),
        "tp_size": rows["moe_tp_size"],
        "ep_size": rows["moe_ep_size"],
    }


def _collectives(rows: pd.DataFrame) -> dict[str, Any]:
    """Return calls; sizes are elements of the largest buffer of each participant."""
    width = rows["nccl_dtype"].map(lambda d: lookup(str(d)).bytes_per_element)
    return {
        "kind": _kinds(rows, _COLLECTIVES),
        "bytes": rows["message_size"] * width,
        "participants": rows["num_gpus"],
    }


_CACHE = ("op_name", "batch_size", "isl", "step", "num_heads")
_READERS = (
    _Reader("products", ("m", "n", "k"), _products),
    _Reader("attention", (*_CACHE, "num_key_value_heads", "head_dim"), _attention),
    _Reader("latent attention", _CACHE, _latent),
    _Reader(
        "experts",
        ("num_tokens", "hidden_size", "inter_size", "num_experts", "topk", "distribution",
         "moe_tp_size", "moe_ep_size"),
        _experts,
    ),
    _Reader(
        "collectives", ("op_name", "nccl_dtype", "message_size", "num_gpus"), _collectives
    ),
)  # fmt: skip
