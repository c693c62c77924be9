"""What the documentation shows works as shown, and its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [ROOT / "README.md", ROOT / "docs" / "studies.md", ROOT / "docs" / "add-a-device.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\S+\.(?:yaml|py))\n")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def name_of(path):
    return str(path.relative_to(ROOT))


def run(command, folder):
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # a fresh checkout compiles its loops here
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_part_of_a_page_stands_there_twice(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#{1,3} .*", text, re.MULTILINE)
    assert len(heads) == len(set(heads))


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_examples_run_in_the_order_of_the_page(page, tmp_path):
    """Blocks that start with a file's name are written to it; all others are executed."""
    ran = 0
    for language, text in BLOCK.findall(page.read_text()):
        named = NAME.match(text)
        if named:
            (tmp_path / named[1]).write_text(text)
        elif language == "python":
            done = run([sys.executable, "-W", "error", "-c", text], tmp_path)
            assert done.returncode == 0, text + done.stderr
            ran += 1
        elif language == "console":
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                if words[0] != "opbyte":
                    continue
                done = run([sys.executable, "-m", *words], tmp_path)
                assert done.returncode == 0, line + done.stdout + done.stderr
                ran += 1
    assert ran


def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    wanted = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert wanted == {"demo", "test"}
    for target in wanted:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
