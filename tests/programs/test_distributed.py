"""Several processes and several devices: the same losses as one alone, and every picture predicted once.

The processes are real, two of them with two simulated devices each, and speak over this machine's loopback only.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
from PIL import Image
from safetensors.numpy import load_file

from marigold_jax import prepare
from marigold_jax.diffusion.losses import masked_mse
from marigold_jax.diffusion.optimiser import iter_exponential, make_optimiser
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.inference.journal import gather
from marigold_jax.runtime import distributed, sharding
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.objectives.diffusion import diffusion_draw
from marigold_jax.training.step import init_state, make_steps

ROOT = Path(__file__).parents[2]
SMALL = {
    **{"data.train": "(('mine/train',1.0),)", "data.batch_size": 4, "optim.ema_decay": 0.0, "run.fsdp": 2},
    **{"optim.learning_rate": 1e-3, "optim.warmup_steps": 1},
    **{"run.steps": 2, "run.log_every": 1, "run.evaluate_every": 0, "run.checkpoint_every": 1},
}

# ------------------------------------------------------------------------------------------------------------ processes


def start(program, flags, environment, devices, **variables):
    changes = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **variables}
    command = [sys.executable, "-m", f"marigold_jax.{program}", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment | changes, **pipes)


def finish(*processes):
    """What each said; all must end well."""
    try:
        said = [process.communicate(timeout=1800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def together(program, flags, environment):
    """Runs a program as two processes, and returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {
        **{"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address, "JAX_NUM_PROCESSES": "2"},
    }
    # The second is told its number as a Kubernetes job would.
    numbers = ({"JAX_PROCESS_ID": "0"}, {"JOB_COMPLETION_INDEX": "1"})
    return finish(*(start(program, flags, environment, 2, **variables, **number) for number in numbers))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Light compiling, and one compilation cache for all processes."""
    changes = {
        **{"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        **{"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))},
    }
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | changes


def train_flags(data, workdir, **changes):
    options = {f"--config.{key}": value for key, value in SMALL.items()}
    options |= {f"--config.{key.replace('__', '.')}": value for key, value in changes.items()}
    flags = ["--config", "configs/quickstart.py", "--workdir", workdir, f"--config.data.data_dir={data}"]
    sizes = [
        f"--config.{key}={side}"
        for key, sides in (("model.widths", (16, 16)), ("data.size", (16, 24)))
        for side in sides
    ]
    return [*flags, *sizes, *(f"{flag}={value}" for flag, value in options.items())]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, environment):
    """A run of two processes, on latents; and, in mine/rgb, pictures."""
    root = tmp_path_factory.mktemp("root")
    random = np.random.default_rng(0)
    for folder in ("rgb", "depth"):
        (root / "mine" / folder).mkdir(parents=True)
    for index in range(17):  # two shards of latents, one for each process
        Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(root / "mine" / "rgb" / f"{index:02d}.png")
        depth = random.integers(1000, 9000, (16, 24), np.uint16)
        Image.fromarray(depth).save(root / "mine" / "depth" / f"{index:02d}.png")
    flags = ["folder", "--raw_dir", root / "mine", "--data_dir", root, "--unit", "mm", "--workers", 1]
    assert prepare.main(list(map(str, flags))) == 0
    said = together("train", train_flags(root, root / "two", run__latents="float32"), environment)
    assert [text.count("finished:") for text in said] == [1, 0], said  # the first speaks for all
    return root


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped_and_does_the_same(trained, environment, tmp_path):
    """Two processes on latents did both steps; one process, on pixels, repeats the second."""
    assert len(list((trained / "rgbd" / "mine" / "latents-train").glob("*.array_record"))) == 2
    workdir = shutil.copytree(trained / "two", tmp_path / "run")
    shutil.rmtree(workdir / "export")
    shutil.rmtree(workdir / "checkpoints" / "00000002")
    (said,) = finish(start("train", train_flags(trained, workdir, run__fsdp=1), environment, 1))
    assert "continuing after step 1" in said
    one, two = lines(workdir / "metrics.jsonl"), lines(trained / "two" / "metrics.jsonl")
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2]
    for key in ("loss", "grad_norm", "valid_latents"):
        np.testing.assert_allclose(one[1][key], two[1][key], rtol=1e-5)
    assert one[0]["loss"] != one[1]["loss"]
    file = Path("export", "unet", "diffusion_pytorch_model.safetensors")
    ours, wanted = (load_file(folder / file) for folder in (workdir, trained / "two"))
    assert one[1]["lr"] == pytest.approx(1e-3)  # by which Adam moves about everything that has a gradient
    for name, array in wanted.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_every_picture_is_predicted_once(trained, environment, tmp_path):
    pictures = sorted((trained / "mine" / "rgb").glob("*.png"))[:5]
    flags = ["--input", *pictures, "--checkpoint", trained / "two" / "export", "--output_dir", tmp_path / "out"]
    said = together("predict", [*flags, "--processing_res", 24], environment)
    assert "process 0 of 2: 3 of 3 pictures written" in said[0] and "process 1 of 2: 2 of 2 pictures" in said[1], said
    found = lines(tmp_path / "out" / "predictions.jsonl")
    assert sorted(line["input"] for line in found) == list(map(str, pictures))
    assert all((tmp_path / "out" / name).is_file() for line in found for name in line["outputs"])
    assert list((tmp_path / "out").glob("predictions*")) == [tmp_path / "out" / "predictions.jsonl"]


def test_parts_that_an_interrupted_run_left_are_gathered(tmp_path):
    for name, line in {"predictions.jsonl": "0", "predictions.2.jsonl": "2", "predictions.1.jsonl": "1"}.items():
        (tmp_path / name).write_text(f"{line}\n")
    gather(tmp_path)
    gather(tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == "0\n1\n2\n"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


# ---------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("environment_says", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JOB_COMPLETION_INDEX": "0"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # an allocation, not a step: nobody else will come
        ({"MARIGOLD_JAX_DISTRIBUTED": "0"}, False),
        ({"MARIGOLD_JAX_DISTRIBUTED": "1"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_what_speaks_of_several_processes(environment_says, several):
    assert distributed.several(environment_says) == several


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID=first: wanted a number"),
        ({"JAX_PROCESS_ID": "0"}, r"cannot join the other processes \(Number of processes must be defined"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, r"cannot join .* wanted .* JAX_PROCESS_ID from 0 on"),
    ],
)
def test_an_incomplete_environment_costs_one_line(monkeypatch, variables, words):
    monkeypatch.setattr(jax._src.xla_bridge, "backends_are_initialized", lambda: False)
    for name, value in {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        distributed.start()


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.slow
def test_any_mesh_gives_the_same_losses(monkeypatch):
    """4 x 2 against a single device is in test_training.py, through UNet and VAE; here are the others, in small."""
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)  # these kernels are no larger
    config = SchedulerConfig({"_class_name": "DDIMScheduler"} | oracle.SCHEDULE)
    draw = diffusion_draw(NoiseSchedule.from_config(config))
    random = np.random.default_rng(0)
    shapes = {"enter.kernel": (4, 64), "leave.kernel": (64, 4)}
    params = {name: random.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}
    batches = [
        {
            "x": random.normal(size=(8, 6, 8, 4)).astype(np.float32),
            "mask": random.random((8, 6, 8, 1)) < np.linspace(0.1, 0.9, 8).reshape(8, 1, 1, 1),
        }
        for _ in range(3)
    ]

    def objective(params, frozen, batch, key):
        """Denoise, with what couples the samples of a batch: the noise's common deviation and the pooled loss."""
        _, noise = draw(key, batch["x"].shape)
        hidden = jax.nn.silu((batch["x"] + noise) @ params["enter.kernel"])
        return masked_mse(hidden @ params["leave.kernel"], noise, batch["mask"]), {}

    def losses(devices, fsdp):
        layout = Layout(make_mesh(fsdp, jax.devices()[:devices]), (("", "fsdp"),))
        optimiser = make_optimiser("adam", iter_exponential(1e-2, 10, warmup_steps=1))
        accumulate, update = make_steps(objective, optimiser, accumulation=1, seed=5, layout=layout)
        state, found = init_state(params, optimiser, layout=layout), []
        assert state["params"]["enter.kernel"].sharding.is_fully_replicated == (fsdp == 1)
        for step, batch in enumerate(batches):
            batch = layout.place_batch(batch)
            state, metrics = update(state, accumulate(None, state["params"], {}, batch, step, 0))
            found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return found

    wanted = losses(1, 1)
    assert len(set(wanted)) == 3
    for devices, fsdp in [(2, 1), (2, 2), (4, 2), (8, 1), (8, 8)]:
        np.testing.assert_allclose(losses(devices, fsdp), wanted, rtol=1e-5, err_msg=f"{devices} devices, fsdp {fsdp}")
