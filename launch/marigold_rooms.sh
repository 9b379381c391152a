#!/usr/bin/env bash
# Trains `marigold-rooms`, the bundled model: renders its frames, then trains its VAE and its UNet in turns; seed 0.
#
#   bash launch/marigold_rooms.sh data runs       folders for the frames and for the runs
#   DRY_RUN=1 bash launch/marigold_rooms.sh ...   prints the commands instead
#
# Six hours on two CPU cores, of them one and a half for the frames; then six minutes on an H100. The same command
# continues where it was stopped. The last export is the model; `python -m marigold_jax.convert --to diffusers
# --dtype float16` turns it into the bundled folder. The original runs differed in these points:
# - The first run used 3,600 frames of one seed. The fourth began from weights rounded to half precision, and its last
#   1,000 steps were done after the fifth (they move latents by 3 % of their standard deviation).
# - Before the sixth, the VAE was widened in two stages on CPU cores, and trained for 5,446 steps of four images (92
#   minutes). Before the seventh, the UNet was trained on 15,200 more samples with `spread` 0.3 (39 minutes).
# - For the last two runs, the colours had been stored as WebP of quality 75 or 80, and the depth with eight or nine
#   significant bits. The sixth used the first 2,600 frames of `rooms_c`, and 4,797 steps were planned.
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

train() {  # recipe, run, overrides
    local config=$1 name=$2
    shift 2
    run .venv/bin/python -m marigold_jax.train --config "$config" --workdir "$runs/$name" \
        --config.data.data_dir="$data" "$@"
}

frames --split val --scenes 20
frames --scenes 800 --views 4
frames --scenes 1000 --views 4 --seed 1 --name rooms_b
frames --scenes 1500 --views 4 --seed 2 --name rooms_c

# 38 minutes: a VAE from scratch, one image at a time. After this, each core is a device with its own images.
train rooms_vae 1_vae
run export XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"

# 14 minutes: its UNet, by the paper's objective. 72 minutes: the same UNet, end to end.
train rooms 2_unet --config.model.checkpoint="$runs/1_vae"
train rooms_end_to_end 3_unet --config.model.checkpoint="$runs/2_unet"

# 48 minutes on one core: the VAE again, on smaller images and random crops, with less weight on edges.
train rooms_vae 4_vae --config.model.checkpoint="$runs/3_unet" \
    --config.data.size='(96, 128)' --config.data.zoom=1.5 --config.data.batch_size=2 \
    --config.data.train='(("rooms/train", 0.45), ("rooms_b/train", 0.55))' \
    --config.objective.absolute=0.25 --config.objective.edges=0.2 --config.objective.noise=0.02 \
    --config.optim.total_steps=5000 --config.optim.final_ratio=0.03 --config.run.steps=5000

# 63 minutes: the UNet for that VAE, on more frames.
train rooms_end_to_end 5_unet --config.model.checkpoint="$runs/4_vae" \
    --config.data.train='(("rooms/train", 0.25), ("rooms_b/train", 0.3), ("rooms_c/train", 0.45))' \
    --config.optim.total_steps=6000 --config.run.steps=6000

# The rest is for a GPU: `.venv/bin/python -m pip install '.[train,cuda]'`. Without one, it takes a day.
run unset JAX_PLATFORMS XLA_FLAGS
workers=$(($(nproc) > 2 ? $(nproc) - 2 : 0))
frames --scenes 1500 --views 4 --seed 3 --name rooms_d
frames --scenes 588 --views 4 --seed 4 --name rooms_e

# 2 minutes: the VAE, widened without changing its output, and trained on PSNR.
train rooms_vae 6_vae --config.model.checkpoint="$runs/5_unet" --config.model.vae_widths='(16, 32, 128, 192)' \
    --config.data.size='(96, 128)' --config.data.zoom=1.5 --config.data.batch_size=16 \
    --config.data.train='(("rooms_c/train", 1.0),)' --config.data.num_workers="$workers" \
    --config.objective.decibels=0.023 --config.objective.absolute=0.25 --config.objective.edges=0.1 \
    --config.objective.noise=0.02 --config.optim.learning_rate=8e-4 --config.optim.final_ratio=0.03 \
    --config.optim.total_steps=4330 --config.run.steps=4330

# 4 minutes: the UNet for that VAE, on all frames, with two predictions per image that are rewarded for differing.
most='("rooms/train", 3.2), ("rooms_b/train", 4.0), ("rooms_c/train", 6.0), ("rooms_d/train", 6.0)'
train rooms_end_to_end 7_unet --config.model.checkpoint="$runs/6_vae" \
    --config.data.train="($most, ('rooms_e/train', 2.35))" \
    --config.data.batch_size=64 --config.data.num_workers="$workers" \
    --config.objective.spread=0.4 --config.objective.compute_dtype=bfloat16 \
    --config.optim.total_steps=4672 --config.run.steps=4672
