"""Remove one mechanism after the other from the GPU model, fit what is left, and print the errors.

A mechanism goes by a neutral value of its parameter, by another rule of the library that is said to
have it, or by other rows. The class's other parameters are fitted again to the same sample, by the
code of `opbyte calibrate`; errors are mean absolute ones, in percent, of the rows outside of it.

    OPBYTE_REFERENCE=FOLDER python scripts/ablate.py attention collectives --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from opbyte.hw_models.compute.gpu.attention_libraries import ATTENTION_LIBRARIES
from opbyte.hw_models.compute.gpu.generations import GENERATIONS
from opbyte.hw_models.compute.gpu.grouped_libraries import GROUPED_LIBRARIES
from opbyte.hw_models.compute.gpu.latent import LATENT_KERNELS
from opbyte.hw_models.link import libraries as protocols
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sweeps.calibration import CLASSES, Fit, OperatorClass, fit, read_rows
from opbyte.sweeps.validation.folders import rows_folder
from opbyte.sweeps.validation.measured import TABLES

MACHINE = "a100-sxm-80gb"
UNIT, LINK = "gpu.sm", "nvlink"
#: Exponent of a norm that is all but the larger of two.
MOST = 50.0
OPERATORS = {c.name: c for c in CLASSES}


@dataclass(frozen=True)
class Without:
    """One mechanism, and how it is removed.

    Attributes:
        values: Short path -> neutral value; no longer fitted.
        rules: Fields of the class's library.
        rows: Changes the rows.
        mapping: A mapping of the machine that is taken away.
    """

    what: str
    values: Mapping[str, float] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame
    mapping: str = ""


@dataclass(frozen=True)
class OneProtocol(protocols.Library):
    """A collective library that always takes the same protocol."""

    protocol: int = protocols.SIMPLE

    def choose(
        self, kind: str, payload: Any, participants: Any, rate: Any, *, adds: bool
    ) -> np.ndarray:
        """Return the protocol of each call."""
        del kind, rate, adds
        return np.full(
            np.broadcast_shapes(np.shape(payload), np.shape(participants)), self.protocol
        )


def of(block: str, **values: float) -> dict[str, float]:
    """Return values by short path."""
    return {f"{block}.{name}": value for name, value in values.items()}


K, A, M, G = (f"{UNIT}.kernel{block}" for block in ("", ".attention", ".latent", ".grouped"))
C = f"{LINK}.collectives"
TRITON = GROUPED_LIBRARIES.lookup("ampere").candidates
STUDIES: dict[str, tuple[Without, ...]] = {
    "attention": (
        Without("packing of heads, and split KV", rules={"packs": 0, "splits": 0}),
        Without("split KV", rules={"splits": 0}),
        Without("copies around packing", rules={"copies": False}),
        Without(
            "tile of paged calls (128 x 64)",
            rules={"candidates": ((256, 2**40, 1, 128, 64, 32, 1, 2),)},
        ),
        Without("lane instructions of softmax", of(A, softmax=0.0)),
        Without("overlap with softmax (sum)", of(A, pairing=1.0)),
        Without("imperfect overlap with softmax (largest)", of(A, pairing=MOST)),
        Without("turn of a CTA", of(A, turn=0.0)),
        Without("life of a CTA of the cache write", of(A, write=0.0)),
        Without("small kernels", of(A, small=0.0, copying=0.0)),
        Without("tail", of(A, tail=0.0)),
        Without("start", of(A, start=0.0)),
        Without("combining grows with parts", of(A, combine=0.0)),
        Without("imperfect overlap with HBM (largest)", of(K, overlap=MOST)),
    ),
    "latent": (
        Without("host's time", mapping="mla_benchmark"),
        Without("four parts (one)", rules={"splits": 1}),
        Without("loads that are waited for (pipelined)", rules={"stages": 2}),
        Without("blocks of 16 heads (64)", rules={"block": 64}),
        Without("fixed parts (by occupancy)", rules={"splits": 0, "most": 128}),
        Without("one CTA on an SM (two)", rules={"ctas": 2}),
        Without("one-head kernel", rules={"one_head": False}),
        Without("trip", of(M, trip=0.0)),
        Without("start", of(M, start=0.0)),
        Without("re-reads", rules={"spread": False}),
        Without("values loaded again", rules={"values_again": False}),
        Without("copies", rules={"copies": 0}),
        Without("imperfect overlap with HBM (largest)", of(K, overlap=MOST)),
    ),
    "experts": (
        Without("drawn picks (balanced)", rows=lambda frame: frame.assign(routing="balanced")),
        Without("small tile", rules={"candidates": (TRITON[1], *TRITON[1:])}),
        Without("tuned tables", rules={"tables": {}}),
        Without("`narrow`", of(G, narrow=1.0)),
        Without("`gather`", of(G, gather=0.0)),
        Without("`matrix` of its own", of(G, matrix=0.94)),
        Without("latency of a k-step", of(K, latency=0.0)),
        Without("fill and epilogue", of(K, fill=0.0, epilogue=0.0)),
        Without("imperfect overlap with HBM (largest)", of(K, overlap=MOST)),
        Without("chunks", rules={"chunk": 0}),
        Without("clock under load", of(K, energy=0.0)),
    ),
    "collectives": (
        Without("protocols: Simple only", rules={"protocol": protocols.SIMPLE}),
        Without("protocols: LL only", rules={"protocol": protocols.LL}),
        Without("LL128", rules={"ll128": False}),
        Without("steps (latency of the call only)",
                {f"{LINK}.latency": 0.0, **of(C, ll128_step=0.0, simple_step=0.0)}),
        Without("crowd", of(C, crowd=0.0)),
        Without("protocols with their own start", of(C, ll128_start=0.0, simple_start=0.0)),
        Without("protocols with their own step", of(C, ll128_step=0.0, simple_step=0.0)),
        Without("copy of the own part", of(C, own_copy=1e9)),
    ),
}  # fmt: skip


def changed(machine: Machine, name: str, without: Without, number: int) -> Machine:
    """Return the machine without the mechanism, with a library of its own where rules change."""
    label = f"{name}-{number}"
    if without.mapping:
        data = dict(machine.document.data)
        kept = {n: m for n, m in data["mappings"].items() if n != without.mapping}
        machine = load_machine({**data, "mappings": kept})
    if without.rules and name == "collectives":
        home = protocols.LIBRARIES.lookup(machine.config.links[LINK].collectives.library)
        library = OneProtocol(**vars(home)) if "protocol" in without.rules else home
        library = replace(library, name=label, **without.rules)
        protocols.LIBRARIES.register(label)(library)
        machine = machine.replace({f"{C}.library": label})
    elif without.rules:
        home = {
            "attention": ATTENTION_LIBRARIES,
            "latent": LATENT_KERNELS,
            "experts": GROUPED_LIBRARIES,
        }[name]
        own = machine.unit(UNIT).config.generation
        home.register(label)(replace(home.lookup(own), name=label, **without.rules))
        GENERATIONS.register(label)(replace(GENERATIONS.lookup(own), name=label))
        machine = machine.replace({f"{UNIT}.generation": label})
    return machine.with_values(without.values)


def kept(operators: OperatorClass, machine: Machine, without: Without) -> OperatorClass:
    """Return the class without the parameters that have a neutral value."""
    paths = operators.paths(machine)
    spread = {k: s for k, s in operators.spread.items() if paths[k] not in without.values}
    return replace(operators, spread=spread)


def shown(name: str, found: Fit) -> dict[str, float]:
    """Return the errors that are printed of a class."""
    errors = {}
    if name == "attention":
        errors = {kind: found.after[kind].mape for kind in found.operators.kinds}
    if name == "experts":
        one = found.others[found.others["ep_size"] == 1]
        errors = {"one device": 100 * (one["seconds"] / one["measured"] - 1).abs().mean()}
    return errors if name == "attention" else errors | {"all": found.after["all"].mape}


def study(name: str, frame: pd.DataFrame, rows: int, seed: int) -> None:
    """Print the table of one class, as Markdown."""
    operators, machine = OPERATORS[name], load_machine(MACHINE)
    mine = frame[frame["kind"].isin(operators.kinds)]
    for number, without in enumerate((Without("nothing"), *STUDIES[name])):
        found = fit(
            changed(machine, name, without, number),
            kept(operators, machine, without),
            without.rows(mine),
            rows=rows,
            seed=seed,
        )
        errors = shown(name, found)
        if not number:
            print(f"\n| {name} without | {' | '.join(errors)} |\n|---{'|---' * len(errors)}|")
        print(f"| {without.what} | {' | '.join(f'{e:.1f}' for e in errors.values())} |", flush=True)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="CLASS", help=", ".join(STUDIES))
    parser.add_argument("--rows", type=int, default=300, help="rows to fit (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(STUDIES))
    if unknown:
        parser.error(f"no class is called {unknown[0]}. Known: {', '.join(STUDIES)}")
    folder = rows_folder("gpu")
    frame = read_rows(*(folder / t.file for t in TABLES if t.fitted and t.machine == MACHINE))
    for name in given.names or STUDIES:
        study(name, frame, given.rows, given.seed)


if __name__ == "__main__":
    main()
