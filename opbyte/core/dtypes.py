"""Number formats: what an element occupies in memory, and which arithmetic it uses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from opbyte.core.errors import ConfigError
from opbyte.core.registry import lookup_error

__all__ = ["DTYPES", "DType", "bytes_of", "lookup"]

Elements = TypeVar("Elements", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class DType:
    """A storage format.

    Attributes:
        name: Its name in files.
        bits: Bits of one element without what its block shares.
        block_overhead: Bits per element for the shared scale or exponent.
        fallbacks: Peaks to look for on a unit, best first; the first is the format itself.
        compute: The arithmetic of a unit that has no native peak for this format.
        source: Where bits and block size are defined.
    """

    name: str
    bits: float
    block_overhead: float
    fallbacks: tuple[str, ...]
    source: str

    @property
    def compute(self) -> str:
        """Return the dtype whose peak counts where the unit has none for this format."""
        return self.fallbacks[1] if self._is_storage and len(self.fallbacks) > 1 else self.name

    @property
    def bits_per_element(self) -> float:
        """Return the bits that one element occupies, its share of the block included."""
        return self.bits + self.block_overhead

    @property
    def bytes_per_element(self) -> float:
        """Return the bytes that one element occupies, its share of the block included."""
        return self.bits_per_element / 8.0

    @property
    def _is_storage(self) -> bool:
        """Return whether elements are packed in blocks, so that most units unpack them first."""
        mean = _MEAN.fullmatch(self.name) is not None
        return self.block_overhead > 0.0 or self.bits < 4.0 or mean


_IEEE = "IEEE 754-2019"
_MX = "OCP Microscaling Formats (MX) v1.0: 32 elements share an 8-bit scale"
_NVFP4 = "NVIDIA NVFP4: E2M1, 16 elements share an FP8 (E4M3) scale"
_XDNA = "AMD XDNA 2 BFP16: 8 elements of 8 bits share an 8-bit exponent"
_BFP8 = "Tenstorrent BFP8: 16 elements of 8 bits share an 8-bit exponent"
_HALF = ("bf16", "fp16")
_BITMOD = "BitMoD (HPCA 2025): 128 weights share an 8-bit scale"
#: Mean width of what several formats store, such as q4.5: bits with at most three decimals.
_MEAN = re.compile(r"q(\d{1,2}(?:\.\d{1,3})?)")
_MEAN_BITS = (1.0, 16.0)


def _table() -> dict[str, DType]:
    """Return all formats by name; see `DType.source` for where each is defined."""
    rows: list[tuple[str, float, float, tuple[str, ...], str]] = [
        ("fp64", 64, 0, (), _IEEE),
        ("fp32", 32, 0, (), _IEEE),
        ("tf32", 32, 0, ("fp32",), "NVIDIA A100 white paper: 19 bits used, stored as 32"),
        ("bf16", 16, 0, ("fp16", "fp32"), "upper half of IEEE 754 binary32"),
        ("fp16", 16, 0, ("bf16", "fp32"), _IEEE),
        ("fp8", 8, 0, _HALF, "OCP 8-bit Floating Point (OFP8) v1.0, E4M3 and E5M2"),
        ("int32", 32, 0, (), "two's complement"),
        ("int16", 16, 0, ("int32",), "two's complement"),
        ("int8", 8, 0, _HALF, "two's complement"),
        ("int4", 4, 0, ("int8", *_HALF), "two's complement"),
        ("int2", 2, 0, ("int4", "int8", *_HALF), "two's complement"),
        ("mxfp8", 8, 8 / 32, ("bf16", "fp8", "fp16"), _MX),
        ("mxint8", 8, 8 / 32, ("bf16", "int8", "fp16"), _MX),
        ("mxfp6", 6, 8 / 32, ("bf16", "mxfp8", "fp16"), _MX),
        ("mxfp4", 4, 8 / 32, ("bf16", "mxfp8", "fp16"), _MX),
        ("nvfp4", 4, 8 / 16, ("bf16", "mxfp8", "fp16"), _NVFP4),
        ("bfp16", 8, 8 / 8, _HALF, _XDNA),
        ("bfp8", 8, 8 / 16, _HALF, _BFP8),
        ("bitmod3", 3, 8 / 128, _HALF, _BITMOD),
        ("bitmod4", 4, 8 / 128, _HALF, _BITMOD),
        ("bitmod6", 6, 8 / 128, _HALF, f"{_BITMOD}; INT6, without loss"),
        ("t2", 2, 0, ("int8", *_HALF), "BitNet b1.58: one ternary weight in 2 bits (I2)"),
        ("t1.75", 7 / 4, 0, ("int8", *_HALF), "keys of tables of 4 ternary weights: 7 bits"),
        ("t1.71", 12 / 7, 0, ("int8", *_HALF), "keys of tables of 7 ternary weights: 12 bits"),
        ("t1.67", 5 / 3, 0, ("int8", *_HALF), "bitnet.cpp TL2: 3 ternary weights in 5 bits"),
        ("t1.6", 8 / 5, 0, ("int8", *_HALF), "3^5 = 243 <= 256: 5 ternary weights in 8 bits"),
        ("t1.25", 5 / 4, 0, ("int8", *_HALF), "Sherry: 4 weights, 3 of them non-zero, in 5 bits"),
    ]
    return {
        name: DType(name, float(bits), float(block), (name, *after), source)
        for name, bits, block, after, source in rows
    }


DTYPES: Mapping[str, DType] = MappingProxyType(_table())

_ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "float64": ("fp64",),
        "double": ("fp64",),
        "float32": ("fp32",),
        "float": ("fp32",),
        "single": ("fp32",),
        "tensorfloat32": ("tf32",),
        "bfloat16": ("bf16",),
        "float16": ("fp16",),
        "half": ("fp16",),
        "float8": ("fp8",),
        "e4m3": ("fp8",),
        "e5m2": ("fp8",),
        "fp8_e4m3": ("fp8",),
        "fp8_e5m2": ("fp8",),
        "float8_e4m3": ("fp8",),
        "float8_e5m2": ("fp8",),
        "float8_e4m3fn": ("fp8",),
        "float8_e4m3fnuz": ("fp8",),
        "float8_e5m2fnuz": ("fp8",),
        "uint8": ("int8",),
        "uint4": ("int4",),
        "fp6": ("mxfp6",),
        "t2.00": ("t2",),
        "t1.60": ("t1.6",),
        "fp4": ("mxfp4", "nvfp4"),
        "float4": ("mxfp4", "nvfp4"),
        "e2m1": ("mxfp4", "nvfp4"),
        "ternary": ("t2", "t1.75", "t1.71", "t1.67", "t1.6", "t1.25"),
        "bfp": ("bfp8", "bfp16"),
    }
)


def lookup(name: str) -> DType:
    """Return the format called `name` (or by a common alias, such as `bfloat16`).

    Raises:
        ConfigError: If it is unknown, or stands for several formats of different size.
    """
    found = DTYPES.get(name) or _mean_width(name)
    if found is not None:
        return found
    meant = _ALIASES.get(name.strip().removeprefix("torch.").lower(), ())
    if len(meant) == 1:
        return DTYPES[meant[0]]
    if meant:
        sizes = [f"{m} ({DTYPES[m].bits_per_element:.4g} bits a weight)" for m in meant]
        raise ConfigError.one(
            rule=f"{name!r} stands for several number formats",
            remedy=f"Write {', '.join(sizes[:-1])} or {sizes[-1]}.",
        )
    folded = name.strip().removeprefix("torch.").lower()
    if folded in DTYPES:
        return DTYPES[folded]
    raise lookup_error("number format", name, DTYPES)


def _mean_width(name: str) -> DType | None:
    """Return the format of that mean width, None for any other name.

    Raises:
        ConfigError: If it has fewer than 1 or more than 16 bits.
    """
    match = _MEAN.fullmatch(name)
    if match is None:
        return None
    bits = float(match[1])
    if not _MEAN_BITS[0] <= bits <= _MEAN_BITS[1]:
        raise ConfigError.one(
            rule=f"{name!r} is a mean width of {bits:g} bits",
            remedy="Give 1 to 16 bits, such as q4.5.",
        )
    return DType(name, bits, 0.0, (name, *_HALF), "mean width of weights stored in several formats")


def bytes_of(name: str, elements: Elements) -> Elements:
    """Return the bytes of `elements` numbers in the format `name`.

    Args:
        name: Name of a format, or q4.5 and the like for a mean of 4.5 bits.
        elements: How many; a number or a float64 array of any shape.

    Raises:
        ConfigError: If the format is unknown.
    """
    return elements * lookup(name).bytes_per_element
