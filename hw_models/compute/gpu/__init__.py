"""GPUs: operators by their kernels' mechanisms where the unit has a `kernel` block.

A kernel is a fused operator that a library runs as one: a matrix product alone, or score, softmax
and context together. What is not recognised is priced row by row, as on any matrix engine.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView
from opbyte.hw_models.compute.gpu import calls, experts, products, vectors
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.hw_models.compute.matrix import TiledMatrix

#: Kinds of kernels: each picks its operators and prices them.
KERNELS = (
    products.kernels,
    experts.kernels,
    calls.attention_kernels,
    calls.latent_kernels,
    calls.append_kernels,
    vectors.kernels,
)


@UNITS.register("gpu")
class Gpu(TiledMatrix):
    """SMs with tensor cores."""

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the seconds of the operators that are library kernels, None without a block.

        Raises:
            UncoveredError: If a kernel is asked for nothing, or the unit lacks its dtype.
        """
        view = GpuView.of(unit)
        if view is None:
            return None
        parts: list[tuple[Rows, Array]] = []
        for kernels in KERNELS:
            mine, seconds = kernels(placed, ops, view)
            if mine.size:
                parts.append((mine, seconds))
        if not parts:
            return None
        points = max(seconds.shape[1] for _, seconds in parts)
        wide = [np.broadcast_to(s, (len(s), points)) for _, s in parts]
        return KernelPrices(np.concatenate([o for o, _ in parts]), np.concatenate(wide), view.home)
