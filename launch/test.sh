#!/usr/bin/env bash
# Installs into .venv and runs the tests. Needs only Python 3.11 or newer; PYTHON=python3.13 selects another.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest --numprocesses auto "$@"
