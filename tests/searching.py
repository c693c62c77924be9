"""Searches over spaces whose every point was played once (scripts/search_tables.py)."""

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq

from opbyte.sweeps.pareto import costs, front_of, hypervolume
from opbyte.sweeps.rows import STATUS, Rows, Words
from opbyte.sweeps.runner import Options
from opbyte.sweeps.search.board import Board
from opbyte.sweeps.search.climb import Climb
from opbyte.sweeps.search.gaps import Gaps, log_costs
from opbyte.sweeps.search.generations import bayesian, generations
from opbyte.sweeps.search.screen import at_fidelity, nondominated, screened
from opbyte.sweeps.study import load_study

FOLDER = Path(__file__).parent / "data" / "search"
NAMES = ("search_duplex", "search_lamina", "search_pipeline")
STATUSES = np.array(["failed", "infeasible", "ok"], dtype=object)
#: Logarithms of costs that are this close are one design.
EQUAL = 1e-8


@dataclass
class Recorded:
    """A space whose answers are known."""

    name: str
    played: list[int] = field(default_factory=list)

    @cached_property
    def columns(self):
        table = pq.read_table(FOLDER / f"{self.name}.parquet")
        data = {n: table[n].to_numpy() for n in table.column_names}
        return {**data, "status": STATUSES[data["status"]]}

    @cached_property
    def plan(self):
        return load_study(self.name).plan

    @property
    def objectives(self):
        return self.plan.study.objectives

    @cached_property
    def pool(self):
        """The analytic screen of all points."""
        band = np.full(len(self.objectives), np.inf)
        return screened(at_fidelity(self.plan, "analytic"), Options(workers=1), band, None, "")

    def rows(self, ids):
        at = np.searchsorted(self.columns["point"], ids)
        assert (self.columns["point"][at] == ids).all()
        numbers = {n: c[at] for n, c in self.columns.items() if n not in ("point", "status")}
        nothing = np.full(len(ids), np.nan)
        numbers |= {"needed_bytes": nothing, "available_bytes": nothing}
        codes = np.array([STATUS.index(s) for s in self.columns["status"][at]], dtype=np.int32)
        return Rows(ids, numbers, {"status": Words(codes, STATUS)})

    def board(self, budget):
        """Return an empty board whose points are answered from the record."""
        self.played = []

        def evaluate(tasks):
            for task in tasks:
                self.played += task.ids.tolist()
                yield self.rows(task.ids)

        session = SimpleNamespace(plan=self.plan, evaluate=evaluate, progress=None)
        return Board(session, tuple(a.line for a in self.plan.axes), budget)

    # -- searches --------------------------------------------------------------------------

    def one_level(self, budget, **strategy):
        """Return the ids that a search without a screen plays, in order."""
        given = self.plan.study.strategy.model_copy(update=strategy)
        board = self.board(budget)
        (bayesian if given.sampler == "gp" else generations)(board, given)
        return np.array([board.id(p) for p in board.known])

    def two_levels(self, budget, round_size=20):
        """Return the ids that a screened search plays, and how many could still join."""
        board = self.board(budget)
        parameters = [a.path for a in self.plan.axes]
        climb = Climb(
            board, self.plan, self.pool, Gaps.of(list(self.objectives), parameters), round_size
        )
        left = climb.run([])
        return np.array([board.id(p) for p in board.known]), left

    def at_random(self, budget, seed):
        """Return distinct ids, drawn independently."""
        return np.random.default_rng(seed).permutation(self.columns["point"])[:budget]

    def by_optuna(self, budget, seed):
        """Return the ids of as many trials of Optuna's default NSGA-II."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            directions=["minimize"] * len(self.objectives),
            sampler=optuna.samplers.NSGAIISampler(seed=seed),
        )
        board = self.board(budget)
        ids = []
        for _ in range(budget):
            trial = study.ask()
            point = _asked(trial, self.plan)
            board.budget = len(board.known) + 1
            board.evaluate([point])
            answer = board.known[point]
            trial.set_constraint("violation", answer.violation)
            study.tell(trial, list(answer.costs) if answer.costs else [0.0] * len(self.objectives))
            ids.append(board.id(point))
        return np.unique(ids)

    # -- what they found -------------------------------------------------------------------

    @cached_property
    def best(self):
        """Costs of the enumerated front, (points, k)."""
        return costs(self.columns, self.objectives)[front_of(self.columns, self.objectives)]

    def volume(self, ids):
        """Return the hypervolume as a share of the enumerated one; reference: nadir plus 10 %."""
        at = np.searchsorted(self.columns["point"], np.sort(ids))
        some = {n: c[at] for n, c in self.columns.items()}
        found = costs(some, self.objectives)[front_of(some, self.objectives)]
        low, high = self.best.min(axis=0), self.best.max(axis=0)
        reference = np.full(len(low), 1.1)
        volumes = [hypervolume((x - low) / (high - low), reference) for x in (found, self.best)]
        return volumes[0] / volumes[1]

    def designs(self, ids=None):
        """Return the logarithms of the costs of the front of some points, equal ones once."""
        columns = self.columns
        if ids is not None:
            at = np.searchsorted(columns["point"], np.sort(ids))
            columns = {n: c[at] for n, c in columns.items()}
        front = front_of(columns, self.objectives)
        some = {n: columns[n][front] for n in self.objectives}
        logs = np.unique(np.round(log_costs(some, self.objectives) / EQUAL) * EQUAL, axis=0)
        return logs[nondominated(logs)]


def _asked(trial, plan):
    """Return the point of a trial in the space as Optuna's users write it."""
    from opbyte.sweeps.search.board import settled

    codes = []
    for axis in plan.axes:
        places = list(range(axis.line.size))
        if axis.target.numeric:
            codes.append(float(trial.suggest_int(axis.path, 0, places[-1])))
        else:
            codes.append(float(trial.suggest_categorical(axis.path, places)))
    return settled(tuple(a.line for a in plan.axes), tuple(codes))


@cache
def recorded(name):
    """Return the record of a space; its screen is computed once."""
    return Recorded(name)
