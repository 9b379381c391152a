#!/usr/bin/env bash
# Times Marigold on this machine's GPU or TPU, beside diffusers and PyTorch on a GPU, in at most nine minutes.
#
#   bash benchmarks/accelerator.sh --out results          at the size of Stable Diffusion 2, with random weights
#   bash benchmarks/accelerator.sh --out results --small  the same with tiny networks, to try it on any machine
#
# results/accelerator.json and results/accelerator.md are written again after every measurement. --install first
# installs what is missing, except JAX and PyTorch; --help lists the other flags. PYTHON=python3.13 picks a Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" "$here/accelerator/run.py" "$@"
