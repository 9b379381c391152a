#!/usr/bin/env bash
# Depth for four photographs and two rendered scenes, with the model that ships. Needs Python 3.11 or newer and nothing
# else; PYTHON=python3.13 picks another. A first argument names the folder for the results (default: demo/).
set -euo pipefail
output=$(realpath -m "${1:-$(dirname "$0")/../demo}")
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
pictures=(launch/demo/photographs/*.jpg launch/demo/scenes/*.jpg)
.venv/bin/python -m marigold_jax.predict --input "${pictures[@]}" --output_dir "$output" --ensemble_size 10 --uncertainty
.venv/bin/python launch/demo/sheet.py "$output" "${pictures[@]}"
