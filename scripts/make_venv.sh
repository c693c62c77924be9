#!/usr/bin/env bash
# Create the environment in $1 and install opbyte there, editable, at the pinned versions.
set -euo pipefail
venv=${1:?usage: make_venv.sh FOLDER}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -e "$venv/bin/python" ] && ! new_enough "$venv/bin/python"; then
    echo "error: $venv/bin/python does not run or is older than Python 3.11. Run: make clean" >&2
    exit 1
fi
if [ ! -e "$venv/bin/python" ]; then
    python=
    # A name on PATH may be a launcher for a version that is not installed: try each.
    for candidate in python3.11 python3 python; do
        if new_enough "$candidate"; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        found=$(python3 --version 2>/dev/null || echo "no python3")
        echo "error: opbyte needs Python 3.11 or newer, got $found. Put python3.11 on PATH." >&2
        exit 1
    fi
    echo "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi

echo "installing opbyte and its pinned dependencies into $venv (a few minutes the first time)"
# The build runs in this environment, so that its tools are pinned as well.
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt setuptools
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt --no-build-isolation \
    --editable ".[test]"
