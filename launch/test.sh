#!/usr/bin/env bash
# Install into .venv and run the tests. Needs Python 3.11 or newer and nothing else; PYTHON=python3.13 picks another.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest --numprocesses auto "$@"
