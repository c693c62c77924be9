"""Running a stream of requests through the compiled kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import SimulationError
from opbyte.hw_models.memory.dram_kernel.loops import LATE, run, settle
from opbyte.hw_models.memory.dram_kernel.setup import LINEAR
from opbyte.hw_models.memory.dram_kernel.start import new_channel
from opbyte.hw_models.memory.dram_kernel.state import FAULT, SENT
from opbyte.hw_models.memory.standards import Standard

__all__ = ["Replay", "latency_of_bin"]

Ints = npt.NDArray[np.int64]


class Replay:
    """One channel that takes a stream piece by piece."""

    def __init__(self, standard: Standard, numbers: Ints) -> None:
        """Start with all banks closed at tick 0."""
        self.standard = standard
        self._channel = new_channel(standard, numbers)

    def take(self, codes: Ints) -> Ints:
        """Send the next piece of the stream; return all counts once its last one is accepted.

        Raises:
            SimulationError: If refreshes fall due faster than they can be issued.
        """
        self._channel.v[SENT] = 0
        run(self._channel.memory, codes, len(codes))
        fault = int(self._channel.v[FAULT])
        if fault:
            why = "refreshes fall due faster than they are issued" if fault == LATE else "is stuck"
            raise SimulationError(f"{self.standard.name}: {why}; check its refresh timings")
        out = self._channel.out.copy()
        settle(self._channel.memory, out)
        return out


def latency_of_bin(index: Ints) -> npt.NDArray[np.float64]:
    """Return the latency in ticks at the middle of each bin of the histogram."""
    octave, part = np.divmod(np.maximum(index - LINEAR, 0), 32)
    size = LINEAR * np.exp2(octave)
    above = size + (part + 0.5) * size / 32
    return np.where(index < LINEAR, index.astype(float), above)
