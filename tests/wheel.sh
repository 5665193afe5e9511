#!/bin/sh
# Builds the wheel, installs it in a clean environment and runs, from a folder without the source tree, the tests that
# would fail if something were missing in it: imports, files that are no code, the command line on tiny checkpoints,
# a calibration in memory and layer by layer, the bundled model, and what users do. `make test` has run all tests.
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
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -m pytest -n 2 --max-worker-restart=0 -q -m "not checkout" tests/test_package.py \
    tests/cli tests/recipe/test_bundled.py tests/public_cases "$@"
