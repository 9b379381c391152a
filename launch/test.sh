#!/usr/bin/env bash
# Installs into .venv, checks style and types, and runs the tests. Needs Python 3.11 or newer and nothing else;
# PYTHON=python3.13 picks another.
#   bash launch/test.sh                   everything
#   bash launch/test.sh fast              what every change should pass: -m "not slow and not parity"
#   bash launch/test.sh tests/data -k x   whatever else pytest understands
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
if [ "${1:-}" = fast ]; then
    set -- -m "not slow and not parity" "${@:2}"
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest --numprocesses auto --dist loadscope "$@"
