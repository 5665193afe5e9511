#!/bin/sh
# Builds the wheel, installs it in a clean environment and runs the unit tests from a folder without the source tree.
set -eu
here=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --disable-pip-version-check --quiet"
$pip wheel --no-deps --wheel-dir "$work/dist" -c constraints.txt "$here"
wheel=$(ls "$work"/dist/sere-*.whl)
$pip install -c constraints.txt "$wheel[demo,data,dev]"
cp -r tests recipe benchmarks examples README.md docs pyproject.toml "$work/"
cd "$work"
"$work/venv/bin/python" -c "import sere; assert '$work' in sere.__file__, sere.__file__; print('testing', sere.__file__)"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -m pytest -n 2 --dist loadfile -q -m "not checkout" "$@"
