#!/bin/sh
# Builds the wheel, compares its files with those of the source, installs it in a clean environment and runs, from a
# folder without the source tree, what reads files that are no code or needs what is installed beside it: imports, the
# commands on the bundled model and on tiny checkpoints, both pages, the kernels. `make test` has run all tests.
set -eu
here=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --disable-pip-version-check --quiet"
$pip wheel --no-deps --wheel-dir "$work/dist" -c constraints.txt "$here"
wheel=$(ls "$work"/dist/sere-*.whl)
"$work/venv/bin/python" "$here/tests/support/wheel_files.py" "$wheel" "$here/src"
$pip install -c constraints.txt "$wheel[demo,data,dev]"
cp -r tests recipe benchmarks examples README.md docs pyproject.toml "$work/"
cd "$work"
"$work/venv/bin/python" -c "import sere; assert '$work' in sere.__file__, sere.__file__; print('testing', sere.__file__)"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -m pytest -n 2 --max-worker-restart=0 -q -m "not checkout" tests/test_package.py \
    tests/recipe/test_bundled.py tests/public_cases/test_bundled_everywhere.py tests/public_cases/test_command_line.py \
    tests/public_cases/test_default_table.py tests/cli/test_calibrate.py tests/cli/test_demo.py tests/cli/test_main.py \
    tests/cli/test_report.py tests/cli/test_tune.py tests/integrations/vllm/live tests/reroute/test_worked_example.py "$@"
