"""The map of CXL-aware fine-tuning: where three published numbers hold together."""

from __future__ import annotations

from matplotlib.figure import Figure

from opbyte.sweeps.claims import Claim
from opbyte.sweeps.plots._frames import Points
from opbyte.sweeps.plots._regions import Band, Mark, regions

_ONE = {"mapping": "train-cxl", "machine.aic.count": 1}
_TWO = {"mapping": "train-cxl", "machine.aic.count": 2}
_BEYOND = {"mapping": "train-beyond", "machine.aic.count": 1}
_DRAM = {"mapping": "train-dram", "machine.aic.count": 1}

#: What arXiv 2507.03305 (abstract) says, with the tolerances of `opbyte validate cxl_finetune`.
CXL_CLAIMS = (
    Claim("one device: 97 to 99 % of DRAM", "tokens_per_s", 0.97, 0.99, _ONE, _DRAM),
    Claim("two devices: 100 % ± 5 %", "tokens_per_s", 0.95, 1.05, _TWO, _DRAM),
    Claim("optimizer 4 × ± 10 % slower beyond", "optimizer_s", 3.6, 4.4, _BEYOND, _DRAM),
)

#: Measured rates of one device, and of the DRAM of its host.
CXL_DEVICES = (
    Mark("Samsung, DDR4 (LIA)", 17e9, 260e9, "LIA (ISCA 2025): 17 GB/s each; 8 DDR5-4800"),
    Mark("Vistara (DRAM: peak)", 24e9, 614.4e9, "Vistara, tables III and V: reads of two 48 GB/s"),
    Mark("ASIC x8 (Soar)", 26e9, 218e9, "Soar and Alto (OSDI 2025), testbed"),
    Mark(
        "Samsung, CXL 2.0 (RamRyder)", 30e9, 304e9,
        "RamRyder (OSDI 2026), section 6: 38 GB/s for each of eight channels, 68 with a device",
    ),
    Mark("Micron CZ120 (host unknown)", 36e9, None, "Micron: one module, two reads to a write"),
)  # fmt: skip
#: The artifact's host has four channels; their grade is not published.
FOUR_CHANNELS = Band("four channels, DDR4-3200 to DDR5-5600, peak", 102.4e9, 179.2e9)


def cxl_map(data: Points) -> Figure:
    """Draw the study `cxl_map`: where the published numbers of CXL-aware fine-tuning hold.

    Args:
        data: Results of the study `cxl_map`.
    Raises:
        ConfigError: If a column of that study is missing.
    """
    link, batch = "machine.dma.bandwidth", "workload.batch"
    x, y = "machine.aic.dram.cxl.bandwidth", "machine.cpu.dram.imc.bandwidth"
    words = {
        x: "Rate of one expander",
        y: "Rate of DRAM",
        (batch, 1.0): "1 × 4,096 tokens",
        (batch, 2.0): "2 × 32,768 tokens",
        (batch, 16.0): "16 × 4,096 tokens",
    }
    for generation, rate in ((3, 15.75e9), (4, 31.5e9), (5, 63e9), (6, 118e9)):
        words[link, rate] = f"GPU at PCIe {generation} x16"
    return regions(
        data, x, y, CXL_CLAIMS, columns=link, rows=batch, marks=CXL_DEVICES,
        bands=(FOUR_CHANNELS,), words=words,
    )  # fmt: skip
