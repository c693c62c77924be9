"""The package as it is laid out, imported and published."""

import ast
import importlib
import json
import os
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import opbyte

LINKED = ("hw_models", "sim", "sweeps", "workloads")
HEAVY = ("matplotlib", "numba", "optuna", "pandas", "pyarrow", "scipy", "jinja2", "numpy")


def run_python(code: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative_and_reach_the_top_folder(root, name):
    link = root / "opbyte" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == root / name
    assert (root / name).is_dir()
    assert not (root / name).is_symlink()


def test_core_is_a_real_folder(root):
    assert (root / "opbyte" / "core").is_dir()
    assert not (root / "opbyte" / "core").is_symlink()


@pytest.mark.parametrize("name", LINKED)
def test_importing_a_top_folder_names_the_right_import(root, tmp_path, name):
    done = run_python(f"import {name}", tmp_path, PYTHONPATH=str(root))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:")
    assert f"import opbyte.{name}" in last


@pytest.mark.parametrize("name", LINKED)
def test_linked_folder_imports_as_part_of_the_package(name):
    module = importlib.import_module(f"opbyte.{name}")
    assert module.__name__ == f"opbyte.{name}"


@pytest.mark.parametrize("name", sorted(opbyte._PUBLIC))
def test_public_name_is_importable(name):
    module_name, attribute = opbyte._PUBLIC[name]
    module = importlib.import_module(module_name)
    expected = module if attribute is None else getattr(module, attribute)
    assert getattr(opbyte, name) is expected
    assert callable(expected) or attribute is None


def test_type_checkers_see_the_public_table(root):
    """The imports under TYPE_CHECKING and the table must not drift apart."""
    tree = ast.parse((root / "opbyte" / "__init__.py").read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE" in ast.dump(n.test))
    seen = {}
    for node in guarded.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            is_module = opbyte._PUBLIC.get(alias.asname or alias.name) == (full, None)
            seen[alias.asname] = (full, None) if is_module else (node.module, alias.name)
    assert seen == opbyte._PUBLIC


def test_dir_lists_public_names():
    assert set(opbyte._PUBLIC) <= set(dir(opbyte))
    assert "__version__" in dir(opbyte)


def test_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"'load_machin'.*load_machine"):
        opbyte.load_machin  # noqa: B018  the access is what is tested


def test_version_agrees_everywhere(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert opbyte.__version__ == project["version"]
    assert opbyte.__version__ == metadata.version("opbyte")
    changelog = (root / "CHANGELOG.md").read_text()
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert newest.removeprefix("## ").split(",")[0] == opbyte.__version__


def test_import_loads_nothing_heavy(tmp_path):
    code = (
        "import json, sys; import opbyte; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "opbyte" in loaded
    assert loaded.isdisjoint({*HEAVY, "pydantic", "typer", "rich", "yaml"})


def test_import_takes_less_than_20_ms_of_processor_time(tmp_path):
    code = (
        "import time; start = time.process_time(); import opbyte; "
        "print(time.process_time() - start)"
    )
    # The best of a few: the first may compile bytecode.
    assert min(float(run_python(code, tmp_path).stdout) for _ in range(3)) < 0.020


def test_dependencies_say_what_they_are_for(root):
    """Each line of the dependency table carries a comment, and each file named there exists."""
    lines = (root / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [") + 1
    table = lines[start : lines.index("]", start)]
    assert len(table) >= 10
    for line in table:
        comment = line.partition("#")[2]
        files = [word.strip(",;:") for word in comment.split() if "/" in word]
        assert files, f"no file named: {line}"
        for file in files:
            assert (root / file).exists(), f"{file} does not exist: {line}"


def test_constraints_are_names_and_versions_only(root):
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names)
    for pin in pins:
        name, equals, version = pin.partition("==")
        assert equals, pin
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum(), pin
        assert version[0].isdigit(), pin
        assert "/" not in pin
        assert " " not in pin


def test_tests_can_not_reach_the_network():
    with pytest.raises(RuntimeError, match=r"must not use the network.*192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_this_environment_has_the_pinned_versions(root):
    """What the tests run with is what constraints.txt says, as far as it is installed."""
    pins = dict(
        line.split("==")
        for line in (root / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for requirement in ("numpy", "numba", "pandas", "pydantic", "pytest"):
        assert metadata.version(requirement) == pins[requirement]
