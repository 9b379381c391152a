#!/usr/bin/env bash
# Trains on a SLURM cluster, with one process per GPU. The processes connect through SLURM.
#
#   sbatch --nodes=2 launch/slurm.sh --config hypersim_vkitti --workdir /shared/runs/depth ...
#   DRY_RUN=1 bash launch/slurm.sh ...       prints the command instead
#
# Submit from the project's folder, with .venv in it (pip install -e '.[train,cuda]'). The project, --workdir and the data
# must be on a disk that all nodes share. sbatch flags before the script override those below. Two minutes before the
# time limit, the run saves and stops; it continues when the job is requeued.
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
# SLURM runs a copy of this file, so its own path is not in the project.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

[ $# -gt 0 ] || { sed -n 's/^#\( \|$\)//p' "$0" >&2; exit 2; }
command=(srun --kill-on-bad-exit=1 .venv/bin/python -m marigold_jax.train "$@")
if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
