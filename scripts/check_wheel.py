"""Build the wheel, compare its files with the checkout, install it in a clean environment, use it.

Run by `make wheel`, with the Python of the development environment. Three things are checked:

1. The wheel holds every package file of the checkout under its installed name, and nothing else.
   Build tools differ in what they do with linked folders; some drop them without a word.
2. Its metadata gives the version, Python, extras and command of pyproject.toml.
3. In an environment that holds the wheel and the *declared* dependencies, and neither the test
   tools nor the checkout, the command line and the public names work from another folder.

The dependencies are not downloaded again: the development environment has them at the pinned
versions, so the clean one links to those distributions that the wheel's metadata asks for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "opbyte": ROOT / "opbyte",
    "opbyte/workloads": ROOT / "workloads",
    "opbyte/hw_models": ROOT / "hw_models",
    "opbyte/sim": ROOT / "sim",
    "opbyte/sweeps": ROOT / "sweeps",
}
# Caches. Any other file in the five folders is expected in the wheel, whatever its kind.
NOT_SHIPPED = {".pyc", ".nbi", ".nbc"}
USE_NAMES = """
import opbyte
assert "site-packages" in opbyte.__file__, opbyte.__file__
for name in sorted(opbyte._PUBLIC):
    getattr(opbyte, name)
print(f"opbyte {opbyte.__version__}: {len(opbyte._PUBLIC)} public names load")
"""


class CheckError(Exception):
    """Something about the wheel is not as it must be; the message says what."""


def run(command: list[str], folder: Path) -> str:
    """Run a command away from the checkout's import path and return its output.

    Raises:
        CheckError: If the command fails; holds the end of what it printed.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise CheckError(f"exit {done.returncode} from: {' '.join(command)}\n{tail}")
    return done.stdout


def copy_checkout(target: Path) -> None:
    """Copy the files that git knows or would add, so that no stale build folder is picked up."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_symlink() or source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


def build_wheel(source: Path, target: Path) -> Path:
    """Build the wheel of `source` into `target` with the pinned build tools."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", str(target), str(source)], target)
    (wheel,) = target.glob("opbyte-*.whl")
    return wheel


def checkout_files() -> set[str]:
    """Return what the wheel must hold: each file under the five folders, by its installed name."""
    found: set[str] = set()
    for package, folder in FOLDERS.items():
        for base, folders, names in os.walk(folder):  # does not enter the links below opbyte/
            folders[:] = [name for name in folders if name != "__pycache__"]
            inside = Path(package) / Path(base).relative_to(folder)
            found |= {(inside / n).as_posix() for n in names if Path(n).suffix not in NOT_SHIPPED}
    return found


def check_files(wheel: Path) -> int:
    """Compare the wheel's files with the checkout's and return their number.

    Raises:
        CheckError: If a file is missing from either side.
    """
    with zipfile.ZipFile(wheel) as archive:
        shipped = {n for n in archive.namelist() if ".dist-info/" not in n}
    expected = checkout_files()
    problems = [f"in the checkout, not in the wheel: {n}" for n in sorted(expected - shipped)]
    problems += [f"in the wheel, not in the checkout: {n}" for n in sorted(shipped - expected)]
    if problems:
        raise CheckError("\n".join(problems))
    return len(shipped)


def check_metadata(wheel: Path) -> None:
    """Compare the wheel's metadata with pyproject.toml.

    Raises:
        CheckError: If they differ.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (own,) = metadata.distributions(name="opbyte", path=[str(wheel)])
    commands = {e.name: e.value for e in own.entry_points if e.group == "console_scripts"}
    pairs = {
        "version": (own.version, project["version"]),
        "Python": (own.metadata["Requires-Python"], project["requires-python"]),
        "extras": (
            sorted(own.metadata.get_all("Provides-Extra", [])),
            sorted(project["optional-dependencies"]),
        ),
        "commands": (commands, project["scripts"]),
    }
    for what, (shipped, written) in pairs.items():
        if shipped != written:
            raise CheckError(f"{what}: the wheel says {shipped!r}, pyproject.toml {written!r}")


def declared(requirements: list[str], extras: frozenset[str]) -> list[Requirement]:
    """Return the requirements that hold on this machine for these extras."""
    parsed = (Requirement(text) for text in requirements)
    choices = extras or {""}
    return [
        r for r in parsed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in choices)
    ]


def link_dependencies(wheel: Path, site: Path) -> int:
    """Link every distribution that the wheel asks for, directly or not, into `site`.

    Returns:
        The number of distributions linked.
    Raises:
        CheckError: If one is not installed here at a version that is asked for.
    """
    (own,) = metadata.distributions(name="opbyte", path=[str(wheel)])
    todo = declared(own.requires or [], frozenset())
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            dist = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            raise CheckError(f"{requirement} is declared, and is not installed") from None
        if dist.version not in requirement.specifier:
            raise CheckError(f"{requirement} is declared, and {dist.version} is installed")
        link_distribution(dist, site)
        todo += declared(dist.requires or [], key[1])
    return len({name for name, _ in seen})


def link_distribution(dist: metadata.Distribution, site: Path) -> None:
    """Link the top-level modules, packages and metadata of one distribution into `site`."""
    tops = {Path(str(f)).parts[0] for f in dist.files or []}
    for top in sorted(tops - {"..", "__pycache__"}):
        link, source = site / top, Path(str(dist.locate_file(top)))
        if not link.exists():  # folders such as mpl_toolkits belong to several
            link.symlink_to(source)


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel and what it declares; return its bin folder."""
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    python = str(folder / "bin" / "python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", code], folder).strip())
    count = link_dependencies(wheel, site)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    run([*pip, str(wheel)], folder)
    print(f"installed with {count} declared distributions, and nothing else")
    return folder / "bin"


def use(bin_folder: Path, elsewhere: Path) -> None:
    """Use the installed package from a folder that holds nothing.

    Raises:
        CheckError: If a command or a public name does not work there.
    """
    python, opbyte = str(bin_folder / "python"), str(bin_folder / "opbyte")
    print(run([python, "-c", USE_NAMES], elsewhere).strip())
    for command in ([opbyte, "--help"], [opbyte, "list"], [python, "-m", "opbyte", "list"]):
        if not run(command, elsewhere).strip():
            raise CheckError(f"printed nothing: {' '.join(command)}")
    print("opbyte --help, opbyte list and python -m opbyte list work from another folder")


def main() -> int:
    """Run the check; return 0, or 1 with the reasons on the standard error."""
    with tempfile.TemporaryDirectory(prefix="opbyte-wheel-") as name:
        work = Path(name).resolve()
        source, dist, elsewhere = work / "source", work / "dist", work / "elsewhere"
        for folder in (source, dist, elsewhere):
            folder.mkdir()
        try:
            copy_checkout(source)
            wheel = build_wheel(source, dist)
            print(f"{wheel.name}: {check_files(wheel)} files, as in the checkout")
            check_metadata(wheel)
            use(install(wheel, work / "venv"), elsewhere)
        except CheckError as error:
            print(f"wheel check failed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
