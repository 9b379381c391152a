#!/usr/bin/env bash
# How `marigold-rooms`, the small model that ships, came to be: its frames, its VAE, its UNet; seed 0.
#
#   bash launch/marigold_rooms.sh data runs       folders for the frames and for the trainings
#   DRY_RUN=1 bash launch/marigold_rooms.sh ...   prints the commands instead
#
# Six hours of two CPU cores, an hour and a half of them for the frames; then six minutes of an H100. Given again, it
# goes on where it stopped. The last export is the model; `python -m marigold_jax.convert --to diffusers
# --dtype float16` makes it the folder that ships. What really happened differs in this:
# - the first training saw 3,600 frames of one seed; the fourth began from weights rounded to half precision, and its
#   last 1,000 steps came after the fifth (they move latents by 3 % of their deviation);
# - before the sixth, CPU cores had widened that VAE in two steps, and trained it for 5,446 steps of four (92 minutes);
#   before the seventh, the UNet had seen 15,200 more samples with `spread` 0.3 (39 minutes);
# - for the last two, colours had been WebP of quality 75 or 80, and depth had eight or nine significant bits; the sixth
#   saw the first 2,600 frames of `rooms_c`, and 4,797 steps were planned.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

[ $# -eq 2 ] || { sed -n 's/^#\( \|$\)//p' "$0" >&2; exit 2; }
data=$1 runs=$2
if [ ! -x .venv/bin/python ]; then
    run "${PYTHON:-python3}" -m venv .venv
    run .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,prepare,align]'
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

# From here on a GPU: `.venv/bin/python -m pip install '.[train,cuda]'`. Without one, this takes a day.
run unset JAX_PLATFORMS XLA_FLAGS
workers=$(($(nproc) > 2 ? $(nproc) - 2 : 0))
frames --scenes 1500 --views 4 --seed 3 --name rooms_d
frames --scenes 588 --views 4 --seed 4 --name rooms_e

# 2 minutes: the VAE, widened to one that computes the same, on PSNR itself.
train rooms_vae 6_vae --config.model.checkpoint="$runs/5_unet" --config.model.vae_widths='(16, 32, 128, 192)' \
    --config.data.size='(96, 128)' --config.data.zoom=1.5 --config.data.batch_size=16 \
    --config.data.train='(("rooms_c/train", 1.0),)' --config.data.num_workers="$workers" \
    --config.objective.decibels=0.023 --config.objective.absolute=0.25 --config.objective.edges=0.1 \
    --config.objective.noise=0.02 --config.optim.learning_rate=8e-4 --config.optim.final_ratio=0.03 \
    --config.optim.total_steps=4330 --config.run.steps=4330

# 4: the UNet for that VAE, with all frames, each seen by two members that are rewarded for differing.
most='("rooms/train", 3.2), ("rooms_b/train", 4.0), ("rooms_c/train", 6.0), ("rooms_d/train", 6.0)'
train rooms_end_to_end 7_unet --config.model.checkpoint="$runs/6_vae" \
    --config.data.train="($most, ('rooms_e/train', 2.35))" \
    --config.data.batch_size=64 --config.data.num_workers="$workers" \
    --config.objective.spread=0.4 --config.objective.compute_dtype=bfloat16 \
    --config.optim.total_steps=4672 --config.run.steps=4672
