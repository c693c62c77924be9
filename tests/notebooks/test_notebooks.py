"""Notebooks run, and the notebook that opens in Jupyter is the reviewed source."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_is_its_source_without_outputs(source):
    jupytext = pytest.importorskip("jupytext")
    made = jupytext.read(source.with_suffix(".ipynb"))
    assert cells(made) == cells(jupytext.read(source)), (
        f"run: jupytext --to ipynb --output notebooks/{source.stem}.ipynb notebooks/{source.name}"
    )
    for cell in made.cells:
        assert not cell.get("outputs"), "notebooks are committed without outputs"
        assert cell.get("execution_count") is None


def seconds_of(source, folder):
    """Run a notebook in a process of its own: a kernel's threads and sockets stay out of this."""
    start = time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=300", "-q",
            "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(folder),
            "-c", os.devnull, str(source.with_suffix(".ipynb")),
        ],
        env={**os.environ, "FAST": "1", "JUPYTER_PLATFORM_DIRS": "1", "IPYTHONDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout
    return time.monotonic() - start


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_within_a_minute(source, tmp_path):
    """Once its kernels are compiled: a first run that was slower is followed by another."""
    pytest.importorskip("nbmake")
    if seconds_of(source, tmp_path) >= 60:
        assert seconds_of(source, tmp_path) < 60
