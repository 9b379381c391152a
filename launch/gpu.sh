#!/usr/bin/env bash
# Trains on all GPUs of this machine, with one process. Installs into .venv first if there is none.
#
#   bash launch/gpu.sh --config hypersim_vkitti --workdir runs/depth --config.data.batch_size=8
#   GPUS=0,1 bash launch/gpu.sh ...          uses only these GPUs; DRY_RUN=1 prints the commands instead
#
# config.data.batch_size counts the images on all GPUs together; config.run.fsdp=4 splits the parameters over four GPUs.
# The same command continues a run that was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

[ $# -gt 0 ] || { sed -n 's/^#\( \|$\)//p' "$0" >&2; exit 2; }
if [ ! -x .venv/bin/python ]; then
    run "${PYTHON:-python3}" -m venv .venv
    run .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,cuda]'
fi
[ -z "${GPUS:-}" ] || run export CUDA_VISIBLE_DEVICES="$GPUS"
run exec .venv/bin/python -m marigold_jax.train "$@"
