"""Reads in which number formats a checkpoint is stored.

`torch_dtype`, `quantization_config`, and the `hf_quant_config.json` that NVIDIA's Model Optimizer
writes beside a config.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest
from opbyte.workloads.model import Model, Precision, TensorClass
from opbyte.workloads.modules import modules_of
from opbyte.workloads.precision import MATRIX_CLASSES
from opbyte.workloads.schemes import (
    METHODS,
    Chooser,
    Locate,
    SchemeReader,
    bitsandbytes,
    compressed,
    model_optimizer,
    tensor_dtype,
)

_FLOATS = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float64")


def read_precision(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    model: Model,
    beside: Mapping[str, Any] | None,
    where: Locate,
    path: tuple[str, ...],
) -> tuple[Precision, list[str]]:
    """Return the storage of a model's tensors, and notes on what was assumed.

    Args:
        config: The whole config.
        text: Its text part, perhaps the same.
        model: The model, for the sizes of its modules.
        beside: Mapping of `hf_quant_config.json`, or None.
        where: Returns `file:line:col` of a path.
        path: Keys that lead to `config`.

    Raises:
        ConfigError: If a type or a method is unknown.
    """
    base, notes = _base(config, text, where, path)
    state = text.get("mamba_ssm_cache_dtype")
    state_dtype = lookup(str(state)).name if state is not None and state != "auto" else None
    found = _quantisation(config, text, beside, where, path)
    if found is None:
        return Precision(base, base, base, state=state_dtype), notes
    reader, chooser = found
    precision = _summed(model, chooser, base, _kv_dtype(reader, base), state_dtype)
    stored = {precision.dtype(name) for name in MATRIX_CLASSES}
    if stored == {base} and not precision.mixed and not reader.is_plain:
        rule = "no matrix of this model is quantised by these words"
        raise reader.fail("", rule, reader.data.get("quant_method"), "Check the module names.")
    return precision, notes


def _base(
    config: Mapping[str, Any], text: Mapping[str, Any], where: Locate, path: tuple[str, ...]
) -> tuple[str, list[str]]:
    for data in (text, config):
        for key in ("torch_dtype", "dtype"):
            value = data.get(key)
            if value is None or value == "auto":
                continue
            name = str(value).removeprefix("torch.")
            if name not in _FLOATS:
                known = f"Known: {', '.join(_FLOATS)}."
                at = (*path, key)
                raise ConfigError.one(where(at), ".".join(at), "no known type", value, known)
            return lookup(name).name, []
    return "bf16", ["the config names no torch_dtype: bf16 is assumed"]


def _quantisation(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    beside: Mapping[str, Any] | None,
    where: Locate,
    path: tuple[str, ...],
) -> tuple[SchemeReader, Chooser] | None:
    """Return the reader of the quantisation and its rule, None for plain checkpoints."""
    if beside is not None:
        inner = beside.get("quantization")
        at = ("hf_quant_config.json", "quantization")
        if not isinstance(inner, Mapping):
            rule = "a mapping `quantization` is due"
            raise ConfigError.one("hf_quant_config.json", "quantization", rule, inner)
        reader = SchemeReader(inner, at, lambda _: "hf_quant_config.json")
        return reader, model_optimizer(reader)
    for data in (config, text):
        for key in ("quantization_config", "compression_config"):
            inner = data.get(key)
            if inner is None or inner == {}:
                continue
            reader = SchemeReader(inner, (*path, key), where)
            if not isinstance(inner, Mapping):
                raise ConfigError.one(where((*path, key)), key, "a mapping is due", inner)
            return reader, _method(reader)
    return None


def _method(r: SchemeReader) -> Chooser:
    method = r.data.get("quant_method")
    known = f"Known: {', '.join(sorted(METHODS))}."
    if method is None:
        if r.data.get("load_in_4bit") or r.data.get("load_in_8bit"):
            return bitsandbytes(r)
        raise r.fail("quant_method", "a quantisation method is due", method, known)
    name = str(method).replace("compressed_tensors", "compressed-tensors")
    if name not in METHODS:
        near = nearest(name, METHODS)
        hint = f"Did you mean {near!r}? " if near else ""
        raise r.fail("quant_method", "this quantisation is not known", method, hint + known)
    if name == "modelopt" and r.data.get("quant_algo") is None:
        return compressed(r)
    return METHODS[name](r)


def _kv_dtype(r: SchemeReader, base: str) -> str:
    """Return the KV cache's type: a checkpoint may ask for a narrower one."""
    name = r.data.get("kv_cache_quant_algo") or r.data.get("kv_cache_scheme")
    if isinstance(name, Mapping):
        return tensor_dtype(r, name)[0] or base
    if name is None:
        return base
    known = {"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4", "NONE": base}
    if str(name).upper() not in known:
        raise r.fail("kv_cache_quant_algo", "this KV cache type is not known", name)
    return known[str(name).upper()]


def _summed(model: Model, chooser: Chooser, base: str, kv: str, state: str | None) -> Precision:
    """Sum the stored formats over all modules of each class."""
    counts: dict[TensorClass, dict[str, int]] = {c: defaultdict(int) for c in MATRIX_CLASSES}
    operands: dict[str, int] = defaultdict(int)
    scales: dict[str, float] = {}
    for module in modules_of(model):
        scheme = chooser(module)
        counts[module.tensor_class][scheme.dtype or base] += module.elements
        if scheme.dtype is not None:
            operands[scheme.operand or ""] += module.elements
            if scheme.scale_bits:
                scales[scheme.dtype] = scheme.scale_bits
    main: dict[TensorClass, str | None] = dict.fromkeys(counts)
    mixed: list[tuple[TensorClass, str, float]] = []
    totals: dict[str, int] = defaultdict(int)
    for name, by_dtype in counts.items():
        total = sum(by_dtype.values())
        if not total:
            continue
        main[name] = max(by_dtype, key=lambda d: by_dtype[d])
        for dtype, count in by_dtype.items():
            totals[dtype] += count if name != "head" else 0
            if dtype != main[name] and count:
                mixed.append((name, dtype, count / total))
    return Precision(
        weight=max(totals, key=lambda d: totals[d]),
        activation=base,
        kv=kv,
        expert=main["expert"],
        head=main["head"],
        attention=main["attention"],
        ffn=main["ffn"],
        state=state,
        operand=(max(operands, key=lambda o: operands[o]) or None) if operands else None,
        scales=tuple(sorted(scales.items())),
        mixed=tuple(mixed),
    )
