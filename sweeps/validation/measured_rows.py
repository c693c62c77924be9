"""Measured rows of real devices as frames for the batch call, one table for each file.

The rows are other people's data and no part of the package. Who measured them, how, and which of
them our parameters were fitted on, is said here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opbyte.sweeps.aiconfigurator import read_file

if TYPE_CHECKING:
    import pandas as pd

SYSTEM = "NVIDIA aiconfigurator"
#: Vidur's names of the four products of a layer.
_LAYER_PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
#: Seconds of the host around one call from Python, measured by LLMCompass's authors on operators
#: of one element (LLMCompass, hardware_model/compute_module.py, overheads of the A100).
_HOST = {"gemm": 21e-6, "softmax": 12e-6, "norm": 45e-6, "activation": 45e-6}


@dataclass(frozen=True)
class Table:
    """Measured rows of one operator on one machine.

    Attributes:
        file: Below the reference folder.
        band: Column by which errors are reported, and the upper ends of its bands.
        origin: Who measured, with what.
        read: Returns the batch frame with `measured` seconds. `host`: seconds of the host that are
            in them, in which launches hide; `calls`: how often the operator ran in them.
        fitted: Our parameters were fitted on samples of these rows. The samples are left out,
            unless too few rows would be left.
        sum: The rows are one layer: their sum is compared as well.
        mapping: That they were measured under; by default the machine's own.
    """

    operator: str
    machine: str
    file: str
    band: str
    ends: tuple[float, ...]
    origin: str
    read: Callable[[Path], pd.DataFrame]
    fitted: bool = False
    sum: bool = False
    mapping: str | None = None

    @property
    def by(self) -> str:
        """Return the program whose kernels, or whose measurements, the rows are."""
        return self.origin.partition(" (")[0].partition(",")[0]


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


def _matmul(path: Path) -> pd.DataFrame:
    import pandas as pd

    x = pd.read_csv(path, names=["m", "n", "k", "took", "rate"])
    seconds = 1e-3 * x["took"].str.strip().str.removesuffix("ms").astype(float)
    return x[["m", "n", "k"]].assign(
        kind="gemm", dtype="fp16", host=_HOST["gemm"], measured=seconds
    )


def _passes(kind: str) -> Callable[[Path], pd.DataFrame]:
    """Return a reader of rows, width and 10^9 elements/s; of elements and that rate."""

    def read(path: Path) -> pd.DataFrame:
        import pandas as pd

        x = pd.read_csv(path, header=None)
        width, rate = x[x.columns[-2]], x[x.columns[-1]]
        rows = x[0] if x.shape[1] == 3 else 1
        return pd.DataFrame(
            {
                "kind": kind,
                "rows": rows,
                "width": width,
                "dtype": "fp16",
                "host": _HOST[kind],
                "measured": rows * width / (rate * 1e9),
            }
        )

    return read


def _layer(new: int, context: int) -> Callable[[Path], pd.DataFrame]:
    """Return a reader of one GPT-3 175B layer on 4 devices, batch 8, in the authors' order.

    As they ran it: query, key and value are three products, scores have no mask, sums of the
    residual and the cache write are left out (LLMCompass, software_model/transformer.py).
    """
    batch, hidden, heads, head_dim, tp = 8, 12288, 96, 128, 4
    tokens, groups, own = batch * new, batch * heads // tp, hidden // tp

    def read(path: Path) -> pd.DataFrame:
        import pandas as pd

        product = {"kind": "gemm", "m": tokens, "n": hidden, "k": hidden, "groups": 1}
        norm = {"kind": "norm", "rows": tokens, "width": hidden}
        reduce = {"kind": "all_reduce", "bytes": 2 * tokens * hidden, "participants": tp}
        operators = [
            product | {"n": own, "calls": 3},
            product | {"m": new, "n": context, "k": head_dim, "groups": groups},
            product | {"m": new, "n": head_dim, "k": context, "groups": groups},
            product | {"k": own},
            product,
            product,
            {"kind": "softmax", "rows": groups * new, "width": context},
            norm,
            norm,
            {"kind": "activation", "rows": tokens, "width": hidden},
            reduce,
            reduce,
        ]
        frame = pd.DataFrame(operators).assign(dtype="fp16")
        measured = pd.read_csv(path, header=None)[0]
        # Their collectives are timed on the devices.
        host = frame["kind"].map(_HOST).fillna(0.0)
        calls = frame["calls"].fillna(1.0)
        return frame.assign(calls=calls, host=host, context=context, measured=measured)

    return read


_M = (1, 16, 64, 256, 1024)
_VIDUR = "Vidur (MIT), medians of whole microseconds"
_COMPASS = "LLMCompass (BSD-3), wall clock around calls from Python, host time included"
_VLLM = f"vLLM 0.14, {SYSTEM} (Apache-2.0)"
TABLES = (
    Table("gemm", "a100-sxm-80gb", "a100_gemm.parquet", "m", _M, _VLLM, read_file, fitted=True),
    Table("gemm", "a100-sxm-80gb", "a100__Meta-Llama-3-8B__mlp.csv.gz", "m", _M, _VIDUR, _layers),
    Table("gemm", "h100-sxm-80gb", "h100__Llama-2-7b-hf__mlp.csv.gz", "m", _M, _VIDUR, _layers),
    Table("gemm", "a40", "a40__Llama-2-7b-hf__mlp.csv.gz", "m", _M, _VIDUR, _layers),
    Table("gemm", "a100-sxm-80gb", "ab__matmul_A100.csv", "m", _M, _COMPASS, _matmul),
    Table("prefill attention", "a100-sxm-80gb", "a100_attention_prefill.parquet", "q_tokens",
          (128, 1024, 4096), _VLLM, read_file, fitted=True),
    Table("decode attention", "a100-sxm-80gb", "a100_attention_decode.parquet", "kv_tokens",
          (128, 1024, 8192), _VLLM, read_file, fitted=True),
    Table("MLA decode", "a100-sxm-80gb", "a100_mla_decode.parquet", "kv_tokens",
          (128, 1024, 8192), _VLLM, read_file, fitted=True, mapping="mla_benchmark"),
    Table("MoE layer", "a100-sxm-80gb", "a100_moe.parquet", "tokens", (16, 128, 1024),
          _VLLM, read_file, fitted=True),
    Table("collectives", "a100-sxm-80gb", "a100_nccl.parquet", "bytes", (2**16, 2**20, 2**24),
          f"NCCL 2.27, {SYSTEM} (Apache-2.0)", read_file, fitted=True),
    Table("all-reduce", "a100-sxm-80gb", "a100_dgx__all_reduce.csv.gz", "bytes",
          (2**16, 2**20, 2**24), _VIDUR, _vidur_all_reduce),
    Table("softmax", "a100-sxm-80gb", "cf__softmax_A100.csv", "width", (1024,), _COMPASS,
          _passes("softmax")),
    Table("norm", "a100-sxm-80gb", "de__layernorm_A100.csv", "width", (1024,), _COMPASS,
          _passes("norm")),
    Table("activation", "a100-sxm-80gb", "g__gelu_A100.csv", "width", (2**20,), _COMPASS,
          _passes("activation")),
    Table("GPT-3 layer, prefill", "a100-sxm-80gb", "ijkl__transformer_A100.csv", "context", (),
          _COMPASS, _layer(2048, 2048), sum=True),
    Table("GPT-3 layer, decode", "a100-sxm-80gb", "ijkl__transformerAR_A100.csv", "context", (),
          _COMPASS, _layer(1, 3073), sum=True),
)  # fmt: skip
