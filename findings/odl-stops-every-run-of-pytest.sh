#!/bin/sh
# ODL 1.0.0 (operator discretization library) registers a pytest plugin, odl.core.util.pytest_config, as an entry point
# that pytest loads wherever ODL is installed. One of its hooks, pytest_ignore_collect, takes the argument `path`, which
# pytest 9.1 has removed; ODL asks for pytest >= 9.0.2, so that a plain install brings both together. With pytest 9.2.0
# no test of any project can then be run in that environment, whether or not the tests use ODL: pytest ends with status
# 3 before it collects anything. pytest 9.0.2 runs them, and `-p no:odl_plugins` leaves the plugin out.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check odl==1.0.0 pytest==9.2.0
echo 'def test_nothing(): assert True' > "$folder/test_nothing.py"
cd "$folder"
status=0
venv/bin/python -m pytest -q test_nothing.py > with.txt 2>&1 || status=$?
grep -o "hookimpl definition: .*" with.txt
echo "status $status"
test "$status" = 3
venv/bin/python -m pytest -q -p no:odl_plugins test_nothing.py | grep -q "1 passed"
venv/bin/pip install --quiet --disable-pip-version-check pytest==9.0.2
venv/bin/python -m pytest -q test_nothing.py | grep -q "1 passed"
echo "as described"
