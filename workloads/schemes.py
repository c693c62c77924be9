"""The quantisation methods of checkpoints: which matrices are stored in which format.

Each reads its mapping (`quantization_config`, or `quantization` of `hf_quant_config.json`) into a
rule that gives the storage of a module.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest
from opbyte.workloads.modules import Module, Patterns

Locate = Callable[[tuple[str, ...]], str]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one group of matrices is stored.

    Attributes:
        dtype: Storage; None for the type of the whole model.
        operand: Type in which they multiply, None for the activations'.
        scale_bits: Bits per element for scales and zero points beside the dtype's own.
    """

    dtype: str | None
    operand: str | None = None
    scale_bits: float = 0.0


PLAIN = Scheme(None)
# quant_algo of Model Optimizer: (weights, operands); 4-bit integers come in groups of `group_size`.
_ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    "FP8": ("fp8", "fp8"),
    "FP8_PB_WO": ("fp8", None),
    "FP8_PB_REAL": ("fp8", "fp8"),
    "FP8_BLOCK_SCALES": ("fp8", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "fp8"),
    "NVFP4": ("nvfp4", "nvfp4"),
    "NVFP4_AWQ": ("nvfp4", "nvfp4"),
    "W4A8_NVFP4_FP8": ("nvfp4", "fp8"),
    "MXFP4": ("mxfp4", "mxfp4"),
    "W4A8_MXFP4_FP8": ("mxfp4", "fp8"),
    "MXFP8": ("mxfp8", "mxfp8"),
    "INT8_SQ": ("int8", "int8"),
    "W8A8_SQ_PER_CHANNEL": ("int8", "int8"),
    "W8A16": ("int8", None),
    "W4A16": ("int4", None),
    "W4A16_AWQ": ("int4", None),
    "INT4_AWQ": ("int4", None),
    "W4A8_AWQ": ("int4", "fp8"),
}


@dataclass(slots=True)
class SchemeReader:
    """Reads one quantisation mapping; `at` leads to it in its file."""

    data: Mapping[str, Any]
    at: tuple[str, ...]
    where: Locate

    @property
    def is_plain(self) -> bool:
        """Return whether weights are left as they are (only the KV cache is quantised)."""
        return self.data.get("quant_algo", "") is None or self.data.get("config_groups") == {}

    def fail(self, key: str, rule: str, value: object, remedy: str = "") -> ConfigError:
        """Return the error for a mistake at `key`."""
        path = (*self.at, key) if key else self.at
        return ConfigError.one(self.where(path), ".".join(path), rule, value, remedy)

    def names(self, *keys: str) -> list[str]:
        """Return the lists of module names under several keys, joined."""
        found: list[str] = []
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise self.fail(key, "a list of module names is due", value)
            found += value
        return found

    def number(self, *keys: str, default: int | None = None) -> int:
        """Return a whole number under the first of several keys."""
        key = next((k for k in keys if self.data.get(k) is not None), keys[0])
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, "a whole number is due", value)
        return value

    def integer_dtype(self, bits: int, key: str) -> str:
        """Return the integer type of so many bits."""
        name = f"int{bits}"
        if bits not in (2, 4, 8):
            raise self.fail(key, "weights of 2, 4 or 8 bits are known", bits)
        return name

    def patterns(self, texts: Sequence[str], key: str) -> Patterns:
        """Return patterns over module names."""
        try:
            return Patterns.of(texts)
        except re.error as error:
            raise self.fail(
                key, f"this is no regular expression ({error})", error.pattern
            ) from None


Chooser = Callable[[Module], Scheme]


def _linear(scheme: Scheme, excluded: Patterns, *, head: bool = False) -> Chooser:
    """Return a rule: `scheme` for every linear layer that is not excluded."""

    def choose(module: Module) -> Scheme:
        if module.tensor_class == "head" and (not head or module.words[0][0] != "lm_head"):
            return PLAIN
        return PLAIN if excluded.match(module) else scheme

    return choose


def _fp8(r: SchemeReader) -> Chooser:
    key = "modules_to_not_convert"
    excluded = r.patterns(r.names(key, "ignored_layers", "modules_to_not_save"), key)
    block = r.data.get("weight_block_size")
    scale = 0.0
    if isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block):
        scale = 32.0 / (block[0] * block[1])
    return _linear(Scheme("fp8", "fp8", scale), excluded)


def _mxfp4(r: SchemeReader) -> Chooser:
    excluded = r.patterns(r.names("modules_to_not_convert"), "modules_to_not_convert")

    def choose(module: Module) -> Scheme:
        plain = module.tensor_class != "expert" or excluded.match(module)
        return PLAIN if plain else Scheme("mxfp4")

    return choose


def _grouped(r: SchemeReader) -> Chooser:
    """GPTQ, AWQ, AutoRound: integers with a 16-bit scale and a zero point for each group."""
    if r.data.get("data_type") not in (None, "int"):
        raise r.fail("data_type", "only integers are known", r.data["data_type"])
    group = r.number("group_size", "q_group_size", default=128)
    bits = r.number("bits", "w_bit")
    dtype = r.integer_dtype(bits, "bits")
    scale = (16.0 + bits) / group if group > 0 else 0.0
    key = "modules_to_not_convert"
    excluded = r.patterns([*r.names(key), *_left_alone(r)], key)
    listed = r.data.get("modules_in_block_to_quantize")
    chosen = r.patterns(list(_flat(listed)), "modules_in_block_to_quantize") if listed else None
    choose = _linear(Scheme(dtype, None, scale), excluded, head=r.data.get("lm_head") is True)

    def within(module: Module) -> Scheme:
        return choose(module) if chosen is None or chosen.match(module) else PLAIN

    return within


def _left_alone(r: SchemeReader) -> Iterator[str]:
    """Return the modules that overrides by name leave as they are; other overrides are refused."""
    for key in ("dynamic", "extra_config"):
        overrides = r.data.get(key) or {}
        if not isinstance(overrides, Mapping):
            raise r.fail(key, "a mapping by module is due", overrides)
        for name, change in overrides.items():
            wide = isinstance(change, Mapping) and change.get("bits") in (16, 32)
            if str(name).startswith("-:"):
                yield "re:" + str(name)[2:]
            elif wide:
                yield str(name)
            else:
                raise r.fail(key, "formats that differ by module are not read", str(name))


def _flat(value: object) -> Iterator[str]:
    """Return the texts in nested lists."""
    if isinstance(value, list):
        for entry in value:
            yield from _flat(entry)
    else:
        yield str(value)


def _bitnet(r: SchemeReader) -> Chooser:
    excluded = r.patterns(r.names("modules_to_not_convert"), "modules_to_not_convert")
    return _linear(Scheme("t2", "int8"), excluded)


def bitsandbytes(r: SchemeReader) -> Chooser:
    """bitsandbytes: 8-bit integers, or 4-bit floats with a maximum for each 64 weights."""
    excluded = r.patterns(r.names("llm_int8_skip_modules"), "llm_int8_skip_modules")
    if r.data.get("load_in_4bit") or r.data.get("_load_in_4bit"):
        # One 32-bit maximum for 64 weights; 8-bit maxima in blocks of 256 when quantised twice.
        double = r.data.get("bnb_4bit_use_double_quant") is True
        return _linear(Scheme("int4", None, 8 / 64 + 32 / (64 * 256) if double else 0.5), excluded)
    if r.data.get("load_in_8bit") or r.data.get("_load_in_8bit"):
        return _linear(Scheme("int8", "int8"), excluded)
    raise r.fail("load_in_4bit", "load_in_4bit or load_in_8bit must be true", "neither")


def tensor_dtype(r: SchemeReader, spec: Mapping[str, Any] | None) -> tuple[str | None, float]:
    """Return dtype and scale bits of a tensor in the words of compressed-tensors."""
    if not spec:
        return None, 0.0
    bits, kind, group = spec.get("num_bits"), spec.get("type", "int"), spec.get("group_size")
    wide = group if type(group) is int and group > 0 else 0
    if kind == "float" and bits == 4:
        return ("mxfp4" if wide == 32 else "nvfp4"), 0.0
    if kind == "float" and bits == 8:
        return "fp8", 16.0 / wide if wide else 0.0
    if kind == "int" and type(bits) is int:
        zero = 0 if spec.get("symmetric", True) else bits
        dtype = r.integer_dtype(bits, "config_groups")
        return dtype, (16.0 + zero) / wide if wide else 0.0
    raise r.fail("config_groups", f"this format of {bits} bits is not known", kind)


def compressed(r: SchemeReader) -> Chooser:
    """compressed-tensors: groups of targets, each with a format, and a list to leave alone."""
    excluded = r.patterns(r.names("ignore", "exclude_modules"), "ignore")
    groups = r.data.get("config_groups")
    sparsity = r.data.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") not in ("dense", None):
        raise r.fail("sparsity_config", "sparse weights are not known", sparsity["format"])
    if groups == {} and r.data.get("kv_cache_scheme"):
        return _linear(PLAIN, excluded)
    if not isinstance(groups, Mapping) or not groups:
        raise r.fail("config_groups", "at least one group of targets is due", groups)
    rules: list[tuple[bool, Patterns, Scheme]] = []
    for name, group in groups.items():
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            raise r.fail("config_groups", f"group {name} needs a mapping `weights`", group)
        dtype, scale = tensor_dtype(r, group["weights"])
        operand, _ = tensor_dtype(r, group.get("input_activations"))
        targets = [str(target) for target in group.get("targets") or ["Linear"]]
        patterns = r.patterns([t for t in targets if t != "Linear"], "config_groups")
        rules.append(("Linear" in targets, patterns, Scheme(dtype, operand, scale)))

    def choose(module: Module) -> Scheme:
        is_embedding = module.tensor_class == "head" and module.words[0][0] != "lm_head"
        if is_embedding or excluded.match(module):
            return PLAIN
        named = (scheme for _, patterns, scheme in rules if patterns.match(module))
        every = (scheme for linear, _, scheme in rules if linear)
        return next(named, next(every, PLAIN))

    return choose


def _algorithm(r: SchemeReader, name: object, key: str = "quant_algo") -> Scheme:
    if name not in _ALGORITHMS:
        near = nearest(str(name), _ALGORITHMS)
        hint = f"Did you mean {near!r}? " if near else ""
        known = f"{hint}Known: {', '.join(_ALGORITHMS)}."
        raise r.fail(key, "this quantisation is not known", name, known)
    dtype, operand = _ALGORITHMS[str(name)]
    group = r.number("group_size", default=128) if dtype == "int4" else 0
    return Scheme(dtype, operand, 16.0 / group if group > 0 else 0.0)


def model_optimizer(r: SchemeReader) -> Chooser:
    """NVIDIA Model Optimizer: one algorithm for all, or one for each listed module."""
    algorithm = r.data.get("quant_algo")
    excluded = r.patterns(r.names("exclude_modules", "ignore"), "exclude_modules")
    if algorithm is None:
        return _linear(PLAIN, excluded)
    if algorithm != "MIXED_PRECISION":
        return _linear(_algorithm(r, algorithm), excluded, head=True)
    layers = r.data.get("quantized_layers")
    if not isinstance(layers, Mapping) or not layers:
        raise r.fail("quantized_layers", "formats by module are due", layers)
    by_scheme: dict[Scheme, list[str]] = defaultdict(list)
    for name, spec in layers.items():
        algo = spec.get("quant_algo") if isinstance(spec, Mapping) else spec
        by_scheme[_algorithm(r, algo, "quantized_layers")].append(str(name))
    rules = [(r.patterns(names, "quantized_layers"), s) for s, names in by_scheme.items()]

    def choose(module: Module) -> Scheme:
        return next((scheme for patterns, scheme in rules if patterns.match(module)), PLAIN)

    return choose


METHODS: Mapping[str, Callable[[SchemeReader], Chooser]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "finegrained_fp8": _fp8,
    "mxfp4": _mxfp4,
    "gptq": _grouped,
    "awq": _grouped,
    "auto-round": _grouped,
    "bitnet": _bitnet,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed,
    "modelopt": model_optimizer,
    "modelopt_fp4": model_optimizer,
}
