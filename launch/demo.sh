#!/usr/bin/env bash
# Predicts depth for four photographs and two rendered scenes, with the bundled model. Needs only Python 3.11 or newer;
# PYTHON=python3.13 selects another. The first argument is the output folder (default: demo/).
set -euo pipefail
output=$(realpath -m "${1:-$(dirname "$0")/../demo}")
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
pictures=(launch/demo/photographs/*.jpg launch/demo/scenes/*.jpg)
.venv/bin/python -m marigold_jax.predict --input "${pictures[@]}" --output_dir "$output" --ensemble_size 10 --uncertainty
.venv/bin/python launch/demo/sheet.py "$output" "${pictures[@]}"
