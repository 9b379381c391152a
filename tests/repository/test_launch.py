"""The launchers: sound shell, what they would do, and a JobSet that fits together."""

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from marigold_jax.training import configuration, recipes

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TRAINING = ["--config", "hypersim_vkitti", "--workdir", "/my runs/x", "--config.data.train=(('a/b', 1.0),)"]
BEFORE = {
    "gpu": [],
    "slurm": [],
    "tpu_pod": ["pod", "europe-west4-b", "v5litepod-16"],
}  # arguments of the launcher's own
TEXTS = ("model.checkpoint", "data.data_dir", "objective.compute_dtype")


def dry(name, *arguments, **environment):
    command = ["bash", f"launch/{name}.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_shellcheck_has_nothing_to_say():
    shellcheck, ours = Path(sys.executable).parent / "shellcheck", [*SCRIPTS, *(ROOT / "benchmarks").glob("*.sh")]
    found = subprocess.run([shellcheck, *ours], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", BEFORE)
def test_a_dry_run_prints_what_would_be_done(name, tmp_path):
    done = dry(name, *BEFORE[name], *TRAINING, DRY_RUN="1", GPUS="0,1")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.strip().splitlines()[-1])
    start = words.index("marigold_jax.train")
    assert words[start - 2 : start] == [".venv/bin/python", "-m"]
    assert words[start + 1 :] == TRAINING  # spaces and quotes as they were given
    expected = {
        "gpu": "export CUDA_VISIBLE_DEVICES=0\\,1",
        "slurm": "srun --kill-on-bad-exit=1",
        "tpu_pod": "tpu-vm create pod --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite --zone",
    }
    assert expected[name] in done.stdout


@pytest.mark.parametrize("name", [*BEFORE, "marigold_rooms"])
def test_without_arguments_a_launcher_explains_itself(name):
    done = dry(name)
    assert done.returncode == 2 and f"launch/{name}.sh" in done.stderr and "set -e" not in done.stderr


def test_how_the_shipped_model_was_made_can_be_repeated():
    """Every training is one of its configuration, and begins from one before it."""
    done = dry("marigold_rooms", "my data", "runs", DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    trainings = [shlex.split(line) for line in done.stdout.splitlines() if "marigold_jax.train" in line]
    known = set()
    for number, words in enumerate(trainings):
        given = dict(word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config."))
        config = configuration.load(words[words.index("--config") + 1])
        assert given["data.data_dir"] == "my data"
        for key, value in given.items():
            section, name = key.split(".")
            assert isinstance(value if key in TEXTS else ast.literal_eval(value), type(config[section][name])), key
        assert given.get("model.checkpoint") in known or number == 0
        known.add(words[words.index("--workdir") + 1])
    assert len(known) == 7


def test_a_pod_is_named_before_the_flags():
    done = dry("tpu_pod", *TRAINING, DRY_RUN="1")
    assert done.returncode == 2 and not done.stdout and "tpu_pod.sh NAME ZONE" in done.stderr


def test_hosts_of_a_pod_find_the_first(tmp_path):
    """What runs on each host, with the metadata server and the training replaced by scripts that answer and tell."""
    script = dry("tpu_pod", *BEFORE["tpu_pod"], *TRAINING, DRY_RUN="1").stdout.partition("--command:\n")[2]
    (tmp_path / "bin").mkdir()
    fakes = {
        "bin/curl": "case ${!#} in */worker-network-endpoints) echo a:b:10.0.0.7,c:d:10.0.0.8;; *) echo 1;; esac",
        "bin/python3.11": "exit 1",
        "marigold_jax/.venv/bin/python": '[ "$2" = pip ] || echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES '
        '$JAX_PROCESS_ID $2 ${*: -1}"',
    }
    for name, text in fakes.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    subprocess.run(["tar", "czf", ".marigold_jax.tar.gz", "--files-from", "/dev/null"], cwd=tmp_path, check=True)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == f"10.0.0.7:8476 2 1 marigold_jax.train {TRAINING[-1]}\n", done.stderr


def test_the_jobset_fits_together():
    (jobset,) = yaml.safe_load_all((ROOT / "launch" / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    assert job["parallelism"] == job["completions"] and job["parallelism"] * chips == rows * columns
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["python", "-m", "marigold_jax.train"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in container["args"])
    (mount,) = container["volumeMounts"]
    assert all(flags[key].startswith(mount["mountPath"]) for key in ("workdir", "config.data.data_dir"))
    assert int(flags["config.run.fsdp"]) == int(flags["config.data.batch_size"]) / 2 == rows * columns
    assert flags["config"] in recipes.names()
