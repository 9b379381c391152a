#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice. Creates the slice first if it does not exist.
#
#   bash launch/tpu_pod.sh NAME ZONE v5litepod-16 --config hypersim_vkitti --workdir /mnt/runs/depth ...
#   DRY_RUN=1 bash launch/tpu_pod.sh ...     prints the commands instead
#
# Arguments after the type of the slice are passed to marigold_jax.train. --workdir and the data must be on a disk that
# all hosts mount. The hosts get the code of the last commit. The same command continues a run that was stopped. The
# slice is kept, and billed, until:  gcloud compute tpus tpu-vm delete NAME --zone ZONE
# VERSION=... selects another image than the default of the type; PYTHON=... another Python than 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,/^set/s/^#\( \|$\)//p' "$0" >&2
    exit 2
}
[ $# -gt 3 ] || usage
case "$1 $2 $3" in -* | *" -"*) usage ;; esac # flags in place of NAME, ZONE or the type
name=$1 zone=$2 type=$3
shift 3
case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
esac
python=${PYTHON:-python3.11}

run() {
    if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
tpu() {
    run gcloud compute tpus tpu-vm "$@" --zone "$zone"
}

if [ -n "${DRY_RUN:-}" ] || ! gcloud compute tpus tpu-vm describe "$name" --zone "$zone" >/dev/null 2>&1; then
    tpu create "$name" --accelerator-type "$type" --version "${VERSION:-$version}"
fi
run git archive --format=tar.gz --output=.marigold_jax.tar.gz HEAD
tpu scp .marigold_jax.tar.gz "$name:" --worker=all
run rm .marigold_jax.tar.gz

# On every host: install, then train with the first host as the coordinator. The metadata server lists all hosts.
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
script="set -e
mkdir -p marigold_jax && tar xzf .marigold_jax.tar.gz -C marigold_jax && cd marigold_jax
command -v $python >/dev/null || { sudo apt-get update -q && sudo apt-get install -qy $python $python-venv; }
[ -x .venv/bin/python ] || $python -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,tpu]'
ask() { curl -sf -H Metadata-Flavor:Google $attributes/\$1; }
hosts=\$(ask worker-network-endpoints | tr , '\\n' | cut -d: -f3)
JAX_COORDINATOR_ADDRESS=\$(echo \"\$hosts\" | head -n 1):8476
JAX_NUM_PROCESSES=\$(echo \"\$hosts\" | wc -l)
JAX_PROCESS_ID=\$(ask agent-worker-number)
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID
exec .venv/bin/python -m marigold_jax.train$(printf ' %q' "$@")"
if [ -n "${DRY_RUN:-}" ]; then
    echo "gcloud compute tpus tpu-vm ssh $name --zone $zone --worker=all --command:"
    echo "$script"
else
    tpu ssh "$name" --worker=all --command "$script"
fi
