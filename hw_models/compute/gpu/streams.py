"""Seconds of kernels without matrix products: softmax, norms, activations, rotary, sums, copies.

    memory  = bytes / (e * HBM), or L2's rate for the share of them that is still in L2
    flight  = bytes read / what the resident threads have in flight in one trip
    kernel  = fill for each reading + (memory^p + max(SM ports, flight)^p)^(1/p)
              + further readings of a row and special functions, which wait for the reduction
                before them (softmax, norms); without one they are under the maximum

A CTA takes a row, or a stretch of elements where there are no rows: few rows fill few SMs. The
launch is not part of it. Everything falls, or stays, when a rate rises or a latency falls (law 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.core.registry import Registry
from opbyte.hw_models.compute.gpu.kernel import (
    FACTS,
    FILL,
    L2_BYTES,
    L2_RATE,
    L2_SHARE,
    OVERLAP,
    PIN_RATE,
    PORT,
    SHARED,
    SMS,
    STREAM,
)
from opbyte.hw_models.compute.gpu.norms import joined

#: Columns behind those of a product: clock, threads and bytes of L1 of an SM.
CLOCK, THREADS, L1_BYTES = range(FACTS, FACTS + 3)
STREAM_FACTS = FACTS + 3
#: Rows of the sizes: CTA-wide rows (0: none), bytes read and written, elements.
ROWS, READ, WRITTEN, ELEMENTS = range(4)
#: Rules of a kernel, see `StreamKernel`.
AGAIN, SPECIALS, MOST_THREADS, WIDTH = range(4)
#: Special functions of an SM in one clock (CUDA programming guide, throughput of arithmetic
#: instructions, compute capabilities 8.x and 9.0).
_SPECIALS_PER_CLOCK = 16.0
#: Bytes that a CTA of an elementwise kernel moves: 256 threads, 4 accesses of 16 bytes.
_STRETCH = 16384.0
_MOST_CTAS = 32.0
#: Elements that a thread of a row kernel takes at a time.
_VECTOR = 8.0


@dataclass(frozen=True)
class StreamKernel:
    """What a kernel does with each element: declared, never fitted.

    Attributes:
        again: Further readings of the input, each after a reduction over the row.
        specials: Exponentials, roots and divisions of an element.
        most_threads: Most threads on one row.
        width: Bytes that a thread has in flight.
    """

    name: str
    source: str
    again: int = 0
    specials: float = 0.0
    most_threads: int = 1024
    width: float = 16.0

    @cached_property
    def rules(self) -> Array:
        """Return what the compiled loop reads, in the order of its constants."""
        return np.array([self.again, self.specials, self.most_threads, self.width], np.float64)


#: By the kind of the operator.
STREAM_KERNELS: Registry[StreamKernel] = Registry("vector kernel")
for _kernel in (
    StreamKernel(
        "softmax",
        "PyTorch SoftMax.cu, cunn_SoftMaxForward: maximum, sum of exponentials and result are "
        "three passes over the row with a block's reduction between, the last two with exp",
        again=2,
        specials=2.0,
    ),
    StreamKernel(
        "norm",
        "vLLM layernorm_kernels.cu: sum of squares, then the scaled row. Vectors of 16 bytes as in "
        "fused_add_rms_norm; its plain rms_norm loads 2 bytes a thread",
        again=1,
    ),
    StreamKernel(
        "activation",
        "vLLM activation_kernels.cu: one pass, exp and a division. assumed: vectors of 16 bytes; "
        "the version that was read loads 2 bytes of each half",
        specials=2.0,
    ),
    StreamKernel("rotary", "assumed: one pass in place, vectors of 16 bytes"),
    StreamKernel("elementwise", "assumed: one pass, vectors of 16 bytes"),
    StreamKernel("kv_append", "assumed: one pass, rows to their pages"),
    StreamKernel("embedding", "assumed: rows of the table, one pass"),
    StreamKernel(
        "causal_softmax",
        "Megatron-LM scaled_upper_triang_masked_softmax.h: a warp keeps its row in registers, one "
        "reading and one exp. Counted in full, though masked scores are not read",
        specials=1.0,
    ),
    StreamKernel(
        "softmax_backward",
        "Megatron-LM scaled_upper_triang_masked_softmax.h: a warp keeps both rows in registers",
    ),
    StreamKernel(
        "dropout",
        "PyTorch Dropout.cu, fused_dropout_kernel_vec: one pass, vectors. assumed: the random "
        "numbers hide behind the bytes",
    ),
    StreamKernel(
        "cross_entropy",
        "assumed: one pass over logits, as fused losses have it, with one exp; loss over parallel "
        "vocabularies in eager frameworks takes five",
        specials=1.0,
    ),
):
    STREAM_KERNELS.register(_kernel.name)(_kernel)


class Stream(NamedTuple):
    """One kernel's work: rows, bytes, elements."""

    rows: float
    read: float
    written: float
    elements: float


@register_jitable
def stream_seconds(x: Stream, facts: Array, rules: Array) -> float:
    """Return the seconds of one kernel after its launch."""
    moved = x.read + x.written
    ctas = x.rows if x.rows > 0.0 else np.ceil(moved / _STRETCH)
    busy = min(facts[SMS], ctas)
    held = 2.0 - moved / (facts[L2_BYTES] * facts[L2_SHARE])
    held = min(1.0, max(0.0, held))
    memory = moved * ((1.0 - held) / facts[STREAM] + held / max(facts[L2_RATE], facts[STREAM]))
    of_row = rules[MOST_THREADS]
    resident = busy * facts[THREADS]
    if x.rows > 0.0:
        # A short row has few threads, and an SM at most 32 CTAs.
        of_row = min(of_row, max(32.0, np.ceil(x.elements / x.rows / _VECTOR)))
        resident = min(resident, of_row * min(ctas, _MOST_CTAS * busy))
    flight = x.read / (resident * rules[WIDTH]) * facts[FILL]
    overlapped = max(moved / (busy * facts[PORT]), flight)
    specials = x.elements * rules[SPECIALS] / (busy * _SPECIALS_PER_CLOCK * facts[CLOCK])
    after = 0.0
    if rules[AGAIN] > 0.0:
        rate = facts[PORT]
        # Rows that the SM works on at once, and reads again from L1 if it holds them.
        at_once = max(1.0, np.floor(facts[THREADS] / of_row))
        if x.read / max(x.rows, 1.0) * at_once <= facts[L1_BYTES]:
            rate = max(rate, facts[SHARED])
        after = rules[AGAIN] * x.read / (busy * rate) + specials
    else:
        overlapped = max(overlapped, specials)
    together = joined(memory, overlapped, facts[OVERLAP])
    # Each reading begins with a trip of its own.
    trips = (1.0 + rules[AGAIN]) * facts[FILL]
    return float(max(trips + together + after, moved / facts[PIN_RATE]))


def fill_seconds(seconds: Array, sizes: Array, facts: Array, rules: Array) -> None:
    """Set the seconds of every kernel at every design point.

    Args:
        seconds: Result, (rows, points).
        sizes: Rows of a row kernel (0 without rows), bytes read and written once, elements, each
            (rows, 1 or points).
        facts: Of each point or of all, (1 or points, STREAM_FACTS).
        rules: Of the kernel of each row, (rows, 4).
    """
    for row in range(seconds.shape[0]):
        for point in range(seconds.shape[1]):
            s = point if sizes.shape[2] > 1 else 0
            rows, read, written, elements = sizes[:, row, s]
            if read + written <= 0.0:
                seconds[row, point] = 0.0
                continue
            of_point = facts[point if facts.shape[0] > 1 else 0]
            if min(of_point[PORT], of_point[STREAM], of_point[CLOCK]) <= 0.0:
                seconds[row, point] = np.inf
                continue
            x = Stream(rows, read, written, elements)
            seconds[row, point] = stream_seconds(x, of_point, rules[row])


@cache
def compiled() -> Any:
    """Return `fill_seconds` compiled."""
    return numba.njit(cache=True)(fill_seconds)
