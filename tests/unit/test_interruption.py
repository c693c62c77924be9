"""An interruption ends a run whatever becomes of its exception, and leaves nothing behind."""

import contextlib
import signal
import threading

import pytest

from opbyte.sweeps import evaluate as module
from opbyte.sweeps.portions import Task
from opbyte.sweeps.runner import Options, open_session, run_plan
from opbyte.sweeps.store import open_results
from opbyte.sweeps.study import load_study

STUDY = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 8}
axes: {workload.context: [100, 200, 300, 400, 500]}
objectives: {seconds: min}
"""


@pytest.fixture
def plan(tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text(STUDY)
    return load_study(study).plan


def taken_for_an_error(number):
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise SystemError("returned a result with an exception set") from None


def swallowed(number):
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)


def passed_on(number):
    signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("answer", [taken_for_an_error, swallowed, passed_on])
def test_no_point_takes_an_interruption_for_its_own_failure(
    plan, tmp_path, monkeypatch, answer, number
):
    plain, asked = module.evaluate, []

    def interrupted(machine, work, *rest):
        asked.append(work)
        if len(asked) == 3:
            answer(number)
        return plain(machine, work, *rest)

    monkeypatch.setattr(module, "evaluate", interrupted)
    before = signal.signal(number, signal.default_int_handler)
    options = Options(out=tmp_path / "out", executor="serial", chunk=1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, options)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert open_results(tmp_path / "out").frame()["status"].tolist() == ["ok", "ok"]
    assert len(run_plan(plan, options).frame()) == 5
    assert len(asked) == 6


def test_a_handler_of_somebody_else_is_left_alone(plan, tmp_path):
    def theirs(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        session = open_session(plan, Options(out=tmp_path / "out", executor="serial"))
        assert signal.getsignal(signal.SIGTERM) is theirs
        session.close()
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_in_another_thread_leaves_signals_alone(plan, tmp_path):
    found = []
    options = Options(out=tmp_path / "out", executor="serial")
    thread = threading.Thread(target=lambda: found.append(run_plan(plan, options)))
    thread.start()
    thread.join()
    assert len(found[0].frame()) == 5


def test_a_pool_that_is_closed_in_the_middle_leaves_no_thread(plan, tmp_path):
    """A leading thread that outlives its pool writes into closed pipes when Python exits."""
    before = set(threading.enumerate())
    session = open_session(plan, Options(out=tmp_path / "out", workers=2))
    points = plan.points()
    ids = next(iter(points.portions(plan.slow, 100)))
    rows = session.evaluate(iter([task_of(ids[i : i + 1], points) for i in range(5)]))
    next(rows)
    assert set(threading.enumerate()) - before
    session.close()
    assert set(threading.enumerate()) == before


def task_of(ids, points):
    return Task(ids, points.codes(ids))
