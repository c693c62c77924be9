"""What a plug-in needs: base classes, registries, and checks that it keeps their contracts.

A unit model, a kind of work, a scheduler, a router, a trace format or a runner registers itself
when its module is imported:

    from opbyte.spi import UNITS, UnitView, check_unit

    @UNITS.register("my-unit")
    class MyUnit:
        pipelines = False

        def compute_seconds(self, table, rows, unit, *, ideal): ...

    check_unit(machine, "part.unit")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import numpy as np

from opbyte.core.errors import SimulationError
from opbyte.core.ops import COLLECTIVES, Array, Number, OpTable, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.core.registry import Registry
from opbyte.hw_models.compute.base import UNITS, UnitModel, UnitView
from opbyte.hw_models.machine import Machine
from opbyte.sim.runners import RUNNERS, Runner
from opbyte.sim.serving.fleet.routers import ROUTERS, Load, Router
from opbyte.sim.serving.schedulers import SCHEDULERS, Group, Limits, Piece, Plan, Scheduler
from opbyte.sim.training.allocation import POLICIES, Policy, Problem
from opbyte.workloads.serve import Grouping
from opbyte.workloads.traces import FORMATS, BadRows, Columns, Head, TraceFormat, head_of
from opbyte.workloads.work import WORKS, Work

__all__ = [
    "COLLECTIVES",
    "FORMATS",
    "POLICIES",
    "ROUTERS",
    "RUNNERS",
    "SCHEDULERS",
    "UNITS",
    "WORKS",
    "BadRows",
    "Columns",
    "Group",
    "Head",
    "Limits",
    "Load",
    "OpTable",
    "OpTableBuilder",
    "Parallel",
    "Phase",
    "Piece",
    "Plan",
    "Policy",
    "Problem",
    "Registry",
    "Router",
    "Runner",
    "Scheduler",
    "TraceFormat",
    "UnitModel",
    "UnitView",
    "Work",
    "check_router",
    "check_scheduler",
    "check_trace_format",
    "check_unit",
    "check_work",
]


def check_unit(machine: Machine, path: str, dtype: str = "bf16") -> None:
    """Check that a unit's model keeps its contract.

    Prices are finite and positive, the ideal price is never larger, more work never costs less,
    and several design points cost what they cost one at a time.

    Args:
        machine: A machine that has the unit.
        path: Short path of the unit.
        dtype: Arithmetic dtype to try.
    Raises:
        SimulationError: Naming the first broken rule.
        UncoveredError: If the unit has no rate for the dtype.
    """
    view = UnitView(machine, path)
    sizes = (1.0, 7.0, 64.0, 1000.0)

    def seconds(m: Number, *, ideal: bool) -> Array:
        builder = OpTableBuilder()
        with builder.block("check") as block:
            block.add("gemm", "gemm", dtype=dtype, m=m, n=256, k=512, weight=2.0 * 256 * 512)
        builder.order = [0]
        table = builder.build()
        return view.model.compute_seconds(table, np.array([0]), view, ideal=ideal)

    real = [float(np.ravel(seconds(m, ideal=False))[0]) for m in sizes]
    ideal = [float(np.ravel(seconds(m, ideal=True))[0]) for m in sizes]
    together = np.ravel(seconds(np.array(sizes), ideal=False))
    _require(all(np.isfinite(real)) and min(ideal) > 0, path, "prices are finite and positive")
    _require(
        all(a <= b * (1 + 1e-12) for a, b in zip(ideal, real, strict=True)),
        path,
        "the ideal price is never larger",
    )
    _require(real == sorted(real), path, "more work never costs less")
    _require(bool(np.allclose(together, real, rtol=1e-12)), path, "points are independent")


def check_scheduler(cls: type[Scheduler], *, seed: int = 0) -> None:
    """Check that a scheduler keeps its contract.

    On drawn requests, with plenty of KV blocks and with few, with a tier below, and with guesses
    if it `speculates`: steps keep the limits, tokens have blocks, every request gets all of its
    tokens, and all blocks come back. Pieces that have a group of layers pass all groups in turn
    before their tokens count.
    Args:
        seed: Of the requests.
    Raises:
        SimulationError: Naming the first broken rule.
    """
    from opbyte.sim.serving.blocks import BlockPool
    from opbyte.sim.serving.requests import Request
    from opbyte.sim.serving.speculation import Guesses

    grouping = Grouping(tokens=(4,), groups=(1, 3))
    plain = Limits(max_sequences=6, max_batched_tokens=24, grouping=grouping)
    settings = [(plain, 200, 0), (plain, 12, 0), (plain, 12, 20)]
    if cls.speculates:
        guesses = Guesses(widths=(1, 2), chances=(0.7, 0.5))
        settings += [(replace(plain, guesses=guesses), blocks, 0) for blocks in (200, 12)]
    for limits, blocks, below in settings:
        random = np.random.default_rng(seed)
        pool = BlockPool(blocks, 4, below=below)
        scheduler = cls(limits, pool)
        requests = [
            Request(i, 0.0, int(random.integers(1, 20)), int(random.integers(1, 20)), client=i % 3)
            for i in range(12)
        ]
        left = {request: request.output for request in requests}
        passed: dict[Request, int] = {}
        for request in requests:
            scheduler.add(request)
        moves: list[tuple[Callable[[Request], None], Request]] = []
        for _ in range(5000):
            plan = scheduler.plan()
            for note, request in moves:
                note(request)
            if not plan.pieces and not moves and not plan.outs and not plan.ins:
                break
            moves = [(scheduler.gone, r) for r in plan.outs]
            moves += [(scheduler.back, r) for r in plan.ins]
            tokens = sum(piece.new for piece in plan.pieces)
            _require(tokens <= limits.max_batched_tokens, cls.__name__, "steps keep their tokens")
            groups = {piece.group for piece in plan.pieces if piece.group is not None}
            alone = all(p.new == 1 for p in plan.pieces if p.group is None) or not groups
            one = len(groups) <= 1 and alone
            _require(one, cls.__name__, "one group of layers reads prompts in a step")
            most = len(scheduler.running) <= limits.max_sequences
            _require(most, cls.__name__, "no more run than may")
            for piece in plan.pieces:
                held = len(piece.request.blocks) * pool.tokens >= piece.past + piece.new
                _require(held, cls.__name__, "tokens have blocks")
                if piece.group is not None:
                    # Who loses blocks begins again.
                    due = passed.get(piece.request, 0), 0
                    turn = piece.group.number in due and cls.divides
                    _require(turn, cls.__name__, "groups of layers take turns")
                    passed[piece.request] = (piece.group.number + 1) % piece.group.groups
                    last = passed[piece.request] == 0
                    _require(last or not piece.samples, cls.__name__, "tokens leave the last layer")
                if piece.samples:
                    left[piece.request] -= piece.samples
                    if not left[piece.request]:
                        scheduler.finish(piece.request)
        _require(not any(left.values()), cls.__name__, "every request gets all of its tokens")
        came = pool.free == pool.total and pool.below == below
        _require(came, cls.__name__, "all blocks come back")


def check_router(cls: type[Router], *, seed: int = 0) -> None:
    """Check that a router keeps its contract.

    It chooses one of the engines that work, whatever their load and whoever has failed, and it
    chooses the same again from the start.

    Args:
        seed: Of requests, loads and failures.
    Raises:
        SimulationError: Naming the first broken rule.
    """
    from types import SimpleNamespace

    from opbyte.sim.serving.requests import Request

    def choices() -> list[int]:
        random, router, chosen = np.random.default_rng(seed), cls(4), []
        for i in range(400):
            working = np.flatnonzero(random.random(5) < 0.7)
            for number in set(range(5)) - set(working.tolist()):
                router.forget(number)
            up: list[Load] = [
                SimpleNamespace(number=n, outstanding=int(x), free_blocks=100 - int(x))
                for n, x in zip(working.tolist(), random.integers(0, 20, 5), strict=False)
            ]
            if not up:
                continue
            shared = tuple(range(8 * (i % 6), 8 * (i % 6) + 8))
            chosen.append(router.choose(Request(i, 0.1 * i, 40, 5, shared), up))
            known = chosen[-1] in {load.number for load in up}
            _require(known, cls.__name__, "it names one of those that work")
        return chosen

    _require(choices() == choices(), cls.__name__, "it chooses the same again")


def check_trace_format(entry: TraceFormat, sample: bytes) -> None:
    """Check that a reader of trace files keeps its contract.

    It says what it reads, knows its own files and no others, gives every row its line and its
    tokens, reads the same twice, and tells a row that it can not understand by its line.

    Args:
        entry: The reader.
        sample: Content of a file in its format with two requests at least, one on each line.
    Raises:
        SimulationError: Naming the first broken rule.
    """
    name = type(entry).__name__
    head = head_of(BytesIO(sample), "sample")
    _require(bool(entry.about and tuple(entry.needs)), name, "it says what it reads and needs")
    _require(entry.matches(head), name, "it knows its own files")
    strange = head_of(BytesIO(b"neither,one,nor,the,other"), "strange")
    _require(not entry.matches(strange), name, "it knows no other files")

    def read(content: bytes) -> tuple[Columns, BadRows]:
        bad = BadRows("sample")
        return entry.read(BytesIO(content), head, bad, None), bad

    (columns, bad), (again, _) = read(sample), read(sample)
    rows = len(columns.lines)
    _require(not bad.lines and rows >= 2, name, "it reads every row of its own files")
    given = [columns.input_tokens, columns.output_tokens, *columns.others.values()]
    given += [] if columns.arrival is None else [columns.arrival]
    _require(all(len(each) == rows for each in given), name, "every row has every column")
    _require(bool((np.diff(columns.lines) > 0).all()), name, "lines ascend")
    tokens = np.concatenate([columns.input_tokens, columns.output_tokens])
    _require(bool((tokens > 0).all()), name, "requests have tokens")
    same = np.array_equal(columns.input_tokens, again.input_tokens)
    _require(same, name, "it reads the same twice")
    lines = sample.rstrip().split(b"\n")
    broken = b"\n".join([*lines[:-1], b'"no row', b""])
    rest, bad = read(broken)
    told = bad.lines == {len(lines)} and len(rest.lines) == rows - 1
    _require(told, name, "a row that it can not understand is told by its line")


def check_work(work: Work, parallel: Parallel | None = None) -> None:
    """Check that a work keeps its contract.

    It lowers to phases with operators, moves a finite number of bytes, holds a finite footprint,
    and says how many tokens and sequences it has.

    Raises:
        SimulationError: Naming the first broken rule.
    """
    split = parallel or Parallel()
    phases = work.lower(split)
    _require(bool(phases), work.kind, "it has at least one phase")
    for phase in phases:
        moved = sum(float(np.sum(v)) for v in phase.table.compulsory_bytes().values())
        _require(len(phase.table) > 0, work.kind, "every phase has operators")
        _require(np.isfinite(moved) and moved > 0, work.kind, "every phase moves bytes")
    held = work.footprint(split)
    _require(all(np.all(np.asarray(v) >= 0) for v in held.values()), work.kind, "sizes are >= 0")
    _require(bool(np.all(np.asarray(work.tokens) > 0)), work.kind, "it has tokens")
    names = {phase.name for phase in phases}
    _require(
        set(work.phase_metrics.values()) <= names, work.kind, "its phase metrics name its phases"
    )


def _require(kept: bool, what: str, rule: str) -> None:
    if not kept:
        raise SimulationError(f"'{what}' breaks its contract: {rule}")
