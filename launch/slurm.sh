#!/usr/bin/env bash
# Trains on a SLURM cluster: one process for each GPU, which find each other through SLURM.
#
#   sbatch --nodes=2 launch/slurm.sh --config configs/hypersim_vkitti.py --workdir /shared/runs/depth ...
#   DRY_RUN=1 bash launch/slurm.sh ...       prints the command instead
#
# Submit from the project's folder, on a disk that all nodes share, with .venv in it (pip install -e '.[train,cuda]');
# --workdir and the data lie on such a disk too. Flags of sbatch before the script overrule those below. Two minutes
# before time is up the run saves and stops; when the job is put into the queue again, it goes on.
#SBATCH --job-name=marigold
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
# SLURM runs a copy of this file: the project is where the job was submitted.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

[ $# -gt 0 ] || { sed -n 's/^#\( \|$\)//p' "$0" >&2; exit 2; }
command=(srun --kill-on-bad-exit=1 .venv/bin/python -m marigold_jax.train "$@")
if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
