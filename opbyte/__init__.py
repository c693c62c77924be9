"""Simulate accelerators for large language models and search their design space.

The public names are loaded when they are first used, so that `import opbyte` costs about as much
as starting Python: no name pays for another name's dependencies.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> (module, attribute); an attribute of None is the module itself.
_PUBLIC: dict[str, tuple[str, str | None]] = {
    # what to simulate it on
    "load_machine": ("opbyte.hw_models.machine", "load_machine"),
    "memory": ("opbyte.hw_models.memory.dram", "memory"),
    "flash": ("opbyte.hw_models.memory.nand", "flash"),
    "sparse_pages": ("opbyte.hw_models.compute.csd.layout", "sparse_pages"),
    "cxl": ("opbyte.hw_models.memory.cxl", "cxl"),
    "load_mapping": ("opbyte.core.mapping", "load_mapping"),
    # what to simulate
    "load_model": ("opbyte.workloads.model_loader", "load_model"),
    "Prefill": ("opbyte.workloads.phases", "Prefill"),
    "Decode": ("opbyte.workloads.phases", "Decode"),
    "Continuous": ("opbyte.workloads.continuous", "Continuous"),
    "Mixed": ("opbyte.workloads.phases", "Mixed"),
    "Generate": ("opbyte.workloads.phases", "Generate"),
    "Gemm": ("opbyte.workloads.phases", "Gemm"),
    "ModelSet": ("opbyte.workloads.model_set", "ModelSet"),
    "CompositionOfExperts": ("opbyte.workloads.coe", "CompositionOfExperts"),
    "Stream": ("opbyte.workloads.stream", "Stream"),
    "OpTrace": ("opbyte.workloads.op_trace", "OpTrace"),
    "Serve": ("opbyte.workloads.serve", "Serve"),
    "TrainStep": ("opbyte.workloads.train", "TrainStep"),
    "SpeculativeDecode": ("opbyte.workloads.speculative", "SpeculativeDecode"),
    "RequestTrace": ("opbyte.workloads.traces.trace", "RequestTrace"),
    "load_trace": ("opbyte.workloads.traces.load", "load_trace"),
    # simulate it
    "simulate": ("opbyte.sim.simulate", "simulate"),
    "simulate_batch": ("opbyte.sim.batch", "simulate_batch"),
    "capacity": ("opbyte.sim.serving.capacity", "capacity"),
    "reload_or_compute": ("opbyte.sim.serving.reload", "reload_or_compute"),
    "shared_reads": ("opbyte.sim.readers", "shared_reads"),
    "Reader": ("opbyte.sim.readers", "Reader"),
    "attention_plan": ("opbyte.sim.attention_plan", "attention_plan"),
    # decide
    "load_study": ("opbyte.sweeps.study", "load_study"),
    "open_results": ("opbyte.sweeps.store", "open_results"),
    "front": ("opbyte.sweeps.pareto", "front"),
    "front_band": ("opbyte.sweeps.front_bands", "front_band"),
    "sensitivity": ("opbyte.sweeps.sensitivity", "sensitivity"),
    "band": ("opbyte.sweeps.sensitivity", "band"),
    "sobol_indices": ("opbyte.sweeps.sensitivity", "sobol_indices"),
    "contest": ("opbyte.sweeps.budget", "contest"),
    "waterfall": ("opbyte.sweeps.waterfall", "waterfall"),
    "plot": ("opbyte.sweeps.plots", None),
    # what can go wrong
    "OpbyteError": ("opbyte.core.errors", "OpbyteError"),
    "ConfigError": ("opbyte.core.errors", "ConfigError"),
    "WorkloadError": ("opbyte.core.errors", "WorkloadError"),
    "CapacityError": ("opbyte.core.errors", "CapacityError"),
    "UncoveredError": ("opbyte.core.errors", "UncoveredError"),
    "SimulationError": ("opbyte.core.errors", "SimulationError"),
}

if TYPE_CHECKING:
    from opbyte.core.errors import CapacityError as CapacityError
    from opbyte.core.errors import ConfigError as ConfigError
    from opbyte.core.errors import OpbyteError as OpbyteError
    from opbyte.core.errors import SimulationError as SimulationError
    from opbyte.core.errors import UncoveredError as UncoveredError
    from opbyte.core.errors import WorkloadError as WorkloadError
    from opbyte.core.mapping import load_mapping as load_mapping
    from opbyte.hw_models.compute.csd.layout import sparse_pages as sparse_pages
    from opbyte.hw_models.machine import load_machine as load_machine
    from opbyte.hw_models.memory.cxl import cxl as cxl
    from opbyte.hw_models.memory.dram import memory as memory
    from opbyte.hw_models.memory.nand import flash as flash
    from opbyte.sim.attention_plan import attention_plan as attention_plan
    from opbyte.sim.batch import simulate_batch as simulate_batch
    from opbyte.sim.readers import Reader as Reader
    from opbyte.sim.readers import shared_reads as shared_reads
    from opbyte.sim.serving.capacity import capacity as capacity
    from opbyte.sim.serving.reload import reload_or_compute as reload_or_compute
    from opbyte.sim.simulate import simulate as simulate
    from opbyte.sweeps import plots as plot  # noqa: F401  (public under another name)
    from opbyte.sweeps.budget import contest as contest
    from opbyte.sweeps.front_bands import front_band as front_band
    from opbyte.sweeps.pareto import front as front
    from opbyte.sweeps.sensitivity import band as band
    from opbyte.sweeps.sensitivity import sensitivity as sensitivity
    from opbyte.sweeps.sensitivity import sobol_indices as sobol_indices
    from opbyte.sweeps.store import open_results as open_results
    from opbyte.sweeps.study import load_study as load_study
    from opbyte.sweeps.waterfall import waterfall as waterfall
    from opbyte.workloads.coe import CompositionOfExperts as CompositionOfExperts
    from opbyte.workloads.continuous import Continuous as Continuous
    from opbyte.workloads.model_loader import load_model as load_model
    from opbyte.workloads.model_set import ModelSet as ModelSet
    from opbyte.workloads.op_trace import OpTrace as OpTrace
    from opbyte.workloads.phases import Decode as Decode
    from opbyte.workloads.phases import Gemm as Gemm
    from opbyte.workloads.phases import Generate as Generate
    from opbyte.workloads.phases import Mixed as Mixed
    from opbyte.workloads.phases import Prefill as Prefill
    from opbyte.workloads.serve import Serve as Serve
    from opbyte.workloads.speculative import SpeculativeDecode as SpeculativeDecode
    from opbyte.workloads.stream import Stream as Stream
    from opbyte.workloads.traces.load import load_trace as load_trace
    from opbyte.workloads.traces.trace import RequestTrace as RequestTrace
    from opbyte.workloads.train import TrainStep as TrainStep
else:
    # Hidden from type checkers, which would otherwise accept any name.
    def __getattr__(name: str) -> object:
        """Import a public name on first use and keep it."""
        try:
            module_name, attribute = _PUBLIC[name]
        except KeyError:
            raise AttributeError(
                f"module 'opbyte' has no attribute {name!r}. Known: {', '.join(sorted(_PUBLIC))}.",
                name=name,
            ) from None
        from importlib import import_module

        module = import_module(module_name)
        value = module if attribute is None else getattr(module, attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
