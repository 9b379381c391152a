#!/usr/bin/env bash
# How `marigold-rooms`, the small model that ships, came to be: its frames, its VAE, its UNet; seed 0, two CPU cores.
#
#   bash launch/marigold_rooms.sh data runs       folders for the frames and for the trainings
#   DRY_RUN=1 bash launch/marigold_rooms.sh ...   prints the commands instead
#
# Five hours, one of them for the frames. Given again, it goes on where it stopped. The last export is the model;
# `python -m marigold_jax.convert --to diffusers --dtype float16` makes it the folder that ships. What really happened
# differs in this: the first training saw 3,600 frames of one seed, the fourth began from weights rounded to half
# precision, and its last 1,000 steps came after the fifth (they move latents by 3 % of their deviation).
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

[ $# -eq 2 ] || { sed -n 's/^#\( \|$\)//p' "$0" >&2; exit 2; }
data=$1 runs=$2
if [ ! -x .venv/bin/python ]; then
    run "${PYTHON:-python3}" -m venv .venv
    run .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[prepare,align]'
fi
run export JAX_PLATFORMS=cpu

frames() {
    run .venv/bin/python -m marigold_jax.prepare rooms --data_dir "$data" --fetch_assets --size 144 192 "$@"
}

train() {  # the configuration, the run, overrides
    local config=$1 name=$2
    shift 2
    run .venv/bin/python -m marigold_jax.train --config "configs/$config.py" --workdir "$runs/$name" \
        --config.data.data_dir="$data" "$@"
}

frames --split val --scenes 20
frames --scenes 800 --views 4
frames --scenes 1000 --views 4 --seed 1 --name rooms_b
frames --scenes 1500 --views 4 --seed 2 --name rooms_c

# 38 minutes: a VAE from nothing, one picture at a time. Then each core is a device, with pictures of its own.
train rooms_vae 1_vae
run export XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"

# 14: its UNet, by the paper's objective. 72: the same, end to end.
train rooms 2_unet --config.model.checkpoint="$runs/1_vae"
train rooms_end_to_end 3_unet --config.model.checkpoint="$runs/2_unet"

# 48, of one core: the VAE once more, on smaller pictures and parts of frames, with less weight on edges.
train rooms_vae 4_vae --config.model.checkpoint="$runs/3_unet" \
    --config.data.size='(96, 128)' --config.data.zoom=1.5 --config.data.batch_size=2 \
    --config.data.train='(("rooms/train", 0.45), ("rooms_b/train", 0.55))' \
    --config.objective.absolute=0.25 --config.objective.edges=0.2 --config.objective.noise=0.02 \
    --config.optim.total_steps=5000 --config.optim.final_ratio=0.03 --config.run.steps=5000

# 63: the UNet for that VAE, with more frames.
train rooms_end_to_end 5_unet --config.model.checkpoint="$runs/4_vae" \
    --config.data.train='(("rooms/train", 0.25), ("rooms_b/train", 0.3), ("rooms_c/train", 0.45))' \
    --config.optim.total_steps=6000 --config.run.steps=6000
