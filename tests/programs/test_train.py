"""The training program, through its real command line where processes matter: killed, stopped, resumed, exported."""

import ast
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh
from PIL import Image
from safetensors.numpy import load_file

import marigold_jax
from marigold_jax import Marigold, train
from marigold_jax.data.primitives import Primitives
from marigold_jax.data.transforms import transform
from marigold_jax.models import unet
from marigold_jax.models.functional import abstract
from marigold_jax.runs import run_folder
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.locate import exported, locate
from marigold_jax.runs.start import start_from
from marigold_jax.runtime import sharding
from marigold_jax.training import configuration, datasets, progress, recipes
from marigold_jax.training.objectives import OBJECTIVES
from marigold_jax.training.setup import make_setup
from marigold_jax.training.targets import VALIDATIONS
from marigold_jax.weights import model_folder
from marigold_jax.weights.component import Component
from marigold_jax.weights.scratch import scratch

ROOT = Path(__file__).parents[2]
STEPS = 6
CONFIGS = recipes.names()
SMALL = {  # the quickstart, shrunken
    "model.widths": (16, 16),
    "model.description.default_processing_resolution": 24,
    "data.size": (16, 24),
    "data.batch_size": 8,
    "data.accumulation": 2,
    "optim.warmup_steps": 2,
    "optim.learning_rate": 1e-3,
    "run.steps": STEPS,
    "run.log_every": 1,
    "run.checkpoint_every": 2,
    "run.evaluate_every": 3,
    "run.validation_images": 2,
}


def small_config(objective=None, **changes):
    config = configuration.load("quickstart")
    if objective:
        with config.unlocked():
            config.objective = objective
    config.update_from_flattened_dict(SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    return config.lock()


def command(workdir, *more):
    flags = []
    for key, value in SMALL.items():
        flags += [f"--config.{key}={item}" for item in (value if isinstance(value, tuple) else (value,))]
    program = [sys.executable, "-m", "marigold_jax.train", "--config", "configs/quickstart.py", "--workdir", workdir]
    return [*map(str, program), *flags, *more]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of the subprocesses: one device, light compiling, and one compilation cache for all of them."""
    cache = tmp_path_factory.mktemp("cache")
    changes = {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    return os.environ | changes


@pytest.fixture(scope="module")
def run(environment):
    def run(arguments, status=0):
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory, run):
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    said = run(command(workdir)).stdout
    (workdir.parent / "said").write_text(said)
    return workdir


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def results(workdir):
    """All that a run computed; not how fast."""
    scalars = [{key: value for key, value in line.items() if key != "samples_per_second"} for line in records(workdir)]
    weights = load_file(workdir / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    return scalars, weights


def assert_same(workdir, reference):
    (scalars, weights), (wanted_scalars, wanted_weights) = results(workdir), results(reference)
    assert scalars == wanted_scalars
    assert weights.keys() == wanted_weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, wanted_weights[name], err_msg=name)


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        file = workdir / "metrics.jsonl"
        if file.is_file() and file.read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"the run did not come to step {step}")


# -------------------------------------------------------------------------------------------------------- one whole run


def test_a_run_leaves_what_is_promised(reference):
    config = json.loads((reference / "config.json").read_text())
    assert set(config) == {"model", "data", "objective", "optim", "run"}
    assert config["model"]["widths"] == [16, 16]
    lines = records(reference)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"loss", "lr", "grad_norm", "skipped"} <= set(lines[0])
    assert all(line["samples_per_second"] > 0 for line in lines[1:])
    assert [line["step"] for line in lines if "abs_rel" in line] == [3, 6]
    assert lines[0]["lr"] == 0 and lines[2]["lr"] == pytest.approx(1e-3)
    assert [path.name for path in sorted((reference / "panels").iterdir())] == ["step_000003.png", "step_000006.png"]
    assert list((reference / "tensorboard").glob("events.*"))
    assert (reference / "start.json").is_file()


def test_a_run_says_what_it_is_doing(reference):
    lines = (reference.parent / "said").read_text().splitlines()
    first = ["loading the model (scratch) and the data", f"step 1 of {STEPS}: compiling, which may take minutes"]
    assert lines[:2] == first and lines[2].startswith(f"step 1/{STEPS}")
    assert lines.count("validating 2 pictures") == 2 and lines[-1].startswith("finished: ")


def test_a_run_that_is_over_is_read_while_another_may_not_write(reference, run, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "run")
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write("garbage\n[1]\n{}")
    with run_folder.held(workdir):
        done = run(command(workdir), status=1)
        assert f"{workdir}: another training is at work here" in done.stderr and done.stderr.count("\n") == 1
        assert locate(workdir) == workdir / "export"
    done = run(command(workdir, "--config.run.steps=3"))
    assert f"{STEPS} steps are done, config.run.steps=3: nothing is left to train" in done.stdout
    assert f"dropping 3 line(s) that cannot be read as records: {STEPS + 1}, {STEPS + 2}, {STEPS + 3}" in done.stdout
    assert_same(workdir, reference)


def test_the_export_loads_here_and_in_diffusers(reference):
    pipe = Marigold.from_pretrained(reference / "export")
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(reference / "export")
    theirs.set_progress_bar_config(disable=True)
    image = Primitives(1, (16, 24))[0]["rgb"]
    latents = np.random.default_rng(0).standard_normal((1, 4, 6, 3), np.float32)
    ours = pipe(image, latents=latents).prediction
    nchw = torch.from_numpy(np.moveaxis(latents, -1, 1).copy())
    wanted = theirs(Image.fromarray(image), latents=nchw, num_inference_steps=1, processing_resolution=0).prediction
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


# --------------------------------------------------------------------------------------------- killed, stopped, damaged


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_disturbed_run_ends_as_an_undisturbed_one(number, reference, run, environment, tmp_path):
    workdir = tmp_path / "run"
    step = random.Random(int(number)).randrange(1, STEPS)
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(process, workdir, step)
    process.send_signal(number)
    output, _ = process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == 0, output
        assert "give the same command again" in output or "finished" in output
        saved = Checkpoints(workdir / "checkpoints").steps()[-1]
        assert saved == records(workdir)[-1]["step"] >= step
    run(command(workdir))
    assert_same(workdir, reference)


def test_a_corrupt_checkpoint_is_passed_over(reference, run, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(workdir / "export")
    newest = Checkpoints(workdir / "checkpoints").path(STEPS)
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = run(command(workdir))
    assert re.search(rf"{STEPS:08d} is corrupt .*going on from step 4", done.stdout + done.stderr)
    assert_same(workdir, reference)


def test_a_full_disk_costs_one_line_and_no_checkpoint(reference, run, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(workdir / "export")
    shutil.rmtree(Checkpoints(workdir / "checkpoints").path(STEPS))
    # A limit on the size of files stands for a disk that is full: writing fails, though with another reason.
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "-", *command(workdir)]
    done = run(limited, status=1)
    last = done.stderr.strip().splitlines()[-1]
    assert "could not be written" in last and "step 4 is safe" in last
    assert Checkpoints(workdir / "checkpoints").steps()[-1] == 4
    run(command(workdir))
    assert_same(workdir, reference)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_flags_cost_one_line(run, tmp_path):
    for flag, complaint in {
        "--config.data.batchsize=3": "config.data.batchsize: no such configuration key; wanted one of accumulation,",
        "--config.data.batch_size=many": "config.data.batch_size=many: wanted a whole number",
        "--config.data.train=(('rooms/train', 1/3),)": "config.data.train: wanted pairs with numbers",
        "--nonsense=1": "nonsense",
        "more": "unrecognized arguments: more",
        "--config.run.log_every=0": "config.run.log_every=0: wanted a whole number, 1 or more",
    }.items():
        done = run(command(tmp_path / "run", flag), status=1 if "train" in flag or "log" in flag else 2)
        assert complaint in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("more", [[], ["--config.run.steps=3"]])
def test_a_missing_configuration_costs_one_line(run, tmp_path, more):
    program = [sys.executable, "-m", "marigold_jax.train", "--config", "nowhere.py", "--workdir", tmp_path / "run"]
    done = run([*map(str, program), *more], status=2)
    assert "nowhere.py" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    "program, flags, status, wanted",
    [
        (
            "train",
            ["--help"],
            0,
            ["Trains or fine-tunes", "--workdir", "is executed", "--config.SECTION.KEY", "  lcm "],
        ),
        ("aot", ["--help"], 0, ["What a training or a", "--target", "--dtype", "is executed", "  lcm "]),
        ("train", ["--version"], 0, [f"marigold_jax {marigold_jax.__version__}\n"]),
        ("train", ["--workdir", "run"], 2, ["marigold_jax.train: ", "required: --config;"]),
        ("train", ["--config.run.steps=3", "--workdir", "run"], 2, ["marigold_jax.train: ", "required: --config;"]),
        ("train", ["--config", "quickstart"], 2, ["marigold_jax.train: ", "required: --workdir;"]),
        ("train", ["--config", "quickstart", "--workdir="], 2, ["--workdir: wanted the folder of the run"]),
        ("train", ["--config"], 2, ["argument --config: expected one argument"]),
        ("aot", ["--config", "quickstart"], 2, ["marigold_jax.aot: ", "required: --target;"]),
        ("aot", ["--config", "quickstart", "--target", "tpu:x"], 2, ["marigold_jax.aot: ", "wanted tpu:NAME with one"]),
    ],
)
def test_programs_explain_themselves_and_name_what_is_missing(run, program, flags, status, wanted):
    done = run([sys.executable, "-m", f"marigold_jax.{program}", *flags], status)
    said = done.stderr if status else done.stdout
    assert all(part in said for part in wanted), said
    assert said.count("\n") == 1 if status else not done.stderr and "absl" not in said


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("def get_config():\n    return 1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", ", line 1: invalid syntax"),
        ("x = 1\n", "wanted a Python file with a function get_config"),
        ("import nowhere_at_all\n", ", line 1: ModuleNotFoundError"),
        ("def get_config():\n    pass\n", "get_config returned nothing"),
        ("def get_config():\n    return [1]\n", "get_config returned list [1], wanted a dictionary of sections"),
    ],
)
def test_a_configuration_that_fails_costs_one_line(tmp_path, text, complaint, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        train.parse(["--config", str(file), "--workdir", "run"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and complaint in said and str(file) in said and said.count("\n") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_allowed(name):
    configuration.check(configuration.load(name).to_dict())


@pytest.mark.parametrize(
    "section, key, value, complaint",
    [
        ("run", "steps", 0, "config.run.steps=0: wanted a whole number, 1 or more"),
        ("run", "checkpoint_every", 0, "config.run.checkpoint_every=0: wanted"),
        ("run", "steps", 2.5, "config.run.steps=2.5: wanted a whole number"),
        (
            "run",
            "seed",
            2**32,
            "config.run.seed: wanted a whole number from 0 to 4294967295, got 4294967296",
        ),  # JAX takes it for 0
        ("run", "validation_images", 0, "or 0 for config.run.evaluate_every"),
        ("data", "batchsize", 3, "config.data.batchsize: no such configuration key"),
        ("data", "far_fill", None, "config.data.far_fill is missing"),
        ("optim", "momentum", 3, "config.optim.momentum: no such configuration key"),
        ("optim", "betas", None, "config.optim.betas is missing"),
        ("model", "chekpoint", "x", "config.model.chekpoint: no such configuration key"),
        ("objective", "strenght", 1, "config.objective.strenght: no such configuration key"),
        ("objective", "name", "magic", "config.objective.name=magic: wanted one of autoencoder"),
        ("mode", "name", "x", "config.mode: no such section"),
    ],
)
def test_what_a_configuration_may_not_say(section, key, value, complaint):
    config = configuration.load("quickstart").to_dict()
    config[section] = {**config.get(section, {}), key: value}
    if value is None:
        del config[section][key]
    with pytest.raises(ValueError, match=re.escape(complaint)):
        configuration.check(config)


def test_another_configuration_is_refused(reference):
    with pytest.raises(ValueError, match=r"optim.learning_rate was 0.001, is 0.1. Name another --workdir"):
        train.train(small_config(optim__learning_rate=0.1), reference)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_key_is_read(name):
    """Those of `model`, `objective` and `optim` are arguments of functions, whose signatures `configuration` reads."""
    files = (ROOT / "marigold_jax" / "train.py", ROOT / "marigold_jax" / "training" / "datasets.py")
    source = "".join(file.read_text() for file in files)
    read = set(re.findall(r"\b(data|run)\.(\w+)", source)) | set(re.findall(r'\b(data|run)\["(\w+)"\]', source))
    config = configuration.load(name).to_dict()
    configuration.check(config)
    for section in ("data", "run"):
        unread = {key for key in config[section] if (section, key) not in read}
        assert not unread, f"{name}: {section}.{sorted(unread)} is read by nobody"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_begins_with_its_command(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert f"python -m marigold_jax.train --config {name} --workdir" in docstring


# ----------------------------------------------------------------------------------------------- here, on eight devices


@pytest.fixture
def here(monkeypatch, tmp_path):
    """`train` in this process: signals and the compilation cache are as before when the test is over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(train.compilation_cache, "enable_cache", lambda: None)

    def call(workdir, devices, config=None, **changes):
        def mesh(fsdp):
            chosen = np.array(jax.devices()[:devices]).reshape(-1, fsdp)
            return Mesh(chosen, sharding.AXES)

        monkeypatch.setattr(train.sharding, "make_mesh", mesh)
        train.train(config or small_config(**changes), workdir)
        return [line["loss"] for line in records(workdir)]

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def test_asked_to_stop_after_it_was_decided_what_to_save(here, tmp_path, monkeypatch):
    """Between the look at the signals and the next step: nothing that was said to be done may be lost."""
    record, asked = progress.Progress.record, []

    def ask(self, step, *arguments):
        record(self, step, *arguments)
        if not asked:
            asked.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Progress, "record", ask)
    here(tmp_path / "run", 1, run__evaluate_every=0)
    (saved,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert asked == [1] and saved == records(tmp_path / "run")[-1]["step"] == 2


def test_utilisation_is_reported_where_the_peak_is_known(tmp_path, monkeypatch):
    for kind, peak in {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "NVIDIA L40S": None,
        "cpu": None,
    }.items():
        assert progress.peak_flops(kind) == peak, kind
    matrix = np.ones((64, 32), np.float32)
    assert progress.flops_counter(jax.numpy.dot)(matrix, matrix.T) == 0  # a CPU
    monkeypatch.setattr(progress, "peak_flops", lambda kind: 1e9)
    assert progress.flops_counter(jax.numpy.dot)(matrix, matrix.T) == 2 * 64 * 64 * 32
    reporter = progress.Progress(tmp_path, 0, 4, samples_per_step=8)
    reporter.record(2, {"loss": float("nan")}, flops_per_step=1e6)
    (line,) = records(tmp_path)
    assert line["loss"] is None
    assert line["mfu"] == pytest.approx(line["samples_per_second"] / 8 * 1e6 / (1e9 * 8), rel=1e-6)


def test_lines_that_will_be_repeated_are_dropped(tmp_path):
    lines = ['{"step": 1}', '{"step": 2}', '{"step": 3}', '{"ste']  # a kill cut the last one short
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    progress.Progress(tmp_path, 2, 4, samples_per_step=1).close()
    assert [line["step"] for line in records(tmp_path)] == [1, 2]


def test_lines_that_are_no_records_are_dropped_and_said(tmp_path, capsys):
    good, huge = [b'{"step": 1, "loss": 2.0}', b'{"step": 2}'], b"[" * 100_000
    bad = [b"{", b"null", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b"\xff\xfe", b"", b"x" * 9, huge]
    content = b"\n".join([good[0], *bad, good[1]])  # and the last is not ended
    (tmp_path / "metrics.jsonl").write_bytes(content)
    reporter = progress.Progress(tmp_path, 2, 4, samples_per_step=1)
    reporter.record(3, {"loss": 1.0})
    reporter.close()
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3]
    assert f"dropping {len(bad)} line(s) that cannot be read as records: 2, 3," in capsys.readouterr().out


def test_a_step_that_still_runs_is_waited_for_before_the_clock_stops(tmp_path, monkeypatch):
    """A step of ten seconds, of which the host waits for none; then a validation of a hundred."""
    now, running = [0.0], [10.0]

    def wait(pending):
        now[0] += running.pop()

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress.jax, "block_until_ready", wait)
    reporter = progress.Progress(tmp_path, 0, 4, samples_per_step=8)
    with reporter.paused("metrics"):
        now[0] += 100
    reporter.record(1, {})
    assert records(tmp_path)[0]["samples_per_second"] == pytest.approx(8 / 10)


def test_a_disk_that_fills_tears_no_line_in_silence(tmp_path, monkeypatch):
    reporter = progress.Progress(tmp_path, 0, 4, samples_per_step=1)

    class Full:
        """Takes five bytes, and no more, as a disk does that has five left."""

        written, left = b"", 5

        def write(self, content):
            if not self.left:
                raise OSError(28, "No space left on device")
            self.written, self.left = bytes(content[: self.left]), 0
            return len(self.written)

    monkeypatch.setattr(reporter, "_file", Full())
    with pytest.raises(OSError, match="No space left"):
        reporter.record(1, {})


@pytest.fixture(scope="module")
def tiny_checkpoints(tmp_path_factory):
    """A small model that was trained for depth, "wide", and one that reads the image alone as Stable Diffusion does."""
    folder, wide = tmp_path_factory.mktemp("tiny"), scratch((16, 16, 16), 2)
    wide = dataclasses.replace(wide, index=wide.index.replace(default_processing_resolution=24))
    params = wide.unet.params | {"conv_in.kernel": wide.unet.params["conv_in.kernel"][:, :, :3]}
    params["conv_in.bias"] = params["conv_in.bias"] + 1
    config = dataclasses.replace(wide.unet.config, in_channels=3)
    structure, _ = abstract(lambda rngs: unet.UNet(config, rngs))
    narrow = dataclasses.replace(wide, unet=Component(config, structure, params))
    for name, model in {"wide": wide, "narrow": narrow}.items():
        model_folder.save(model, folder / name)
    return folder


def tiny(name, start):
    """A configuration of the repository on small pictures, for two steps; what else it says stays."""
    config = configuration.load(name)
    with config.unlocked():
        if config.model.checkpoint == "scratch":
            config.model.update({"widths": (16, 16), "cell": 2})
            if config.model.vae_widths:
                config.model.vae_widths = (8, 16)
        else:
            config.model.checkpoint = str(start)
        config.data.update({"train": (("primitives/train", 1.0),), "validation": "primitives/val", "size": (16, 24)})
        config.data.update({"batch_size": 2, "accumulation": 1, "num_workers": 0})
        config.run.update({"steps": 2, "log_every": 1, "validation_images": 2})
    return config.lock()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_resolves(name, tiny_checkpoints):
    """To a checkpoint, an objective whose gradient can be traced, and an optimiser; the quickstart's way runs above."""
    config = tiny(name, tiny_checkpoints / "wide")
    base = start_from(ModelOptions(**config.model.to_dict()), config.objective.to_dict())
    setup = make_setup(base, config.to_dict())
    example = Primitives(1, (16, 24))[0]
    sample = transform(example, size=None, flip=False, antialias=True, far_fill=True)
    batch = {key: value[None] for key, value in sample.items()}
    frozen = setup.frozen | ({"target": setup.params} if setup.uses_ema_target else {})
    gradient = jax.grad(setup.objective, has_aux=True)
    gradients, _ = jax.eval_shape(gradient, setup.params, frozen, batch, jax.random.key(0))
    assert gradients.keys() == setup.params.keys()
    assert config.model.prediction in VALIDATIONS[setup.trains]


@pytest.mark.parametrize(
    "prediction, judge, start", [("depth", "abs_rel", "narrow"), ("normals", "mean_angle", "wide")]
)
def test_end_to_end_as_published_from_configuration_to_prediction(
    prediction, judge, start, here, tiny_checkpoints, tmp_path
):
    """Depth from a model that never saw two latents, normals from one that knew depth."""
    config = tiny(f"e2e_ft_{prediction}", tiny_checkpoints / start)
    losses = here(tmp_path / "run", 1, config)
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert np.isfinite(records(tmp_path / "run")[-1][judge])
    assert (tmp_path / "run" / "panels" / "step_000002.png").is_file()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    exported = model_folder.load(tmp_path / "run" / "export")
    description = {"_noise": "zeros", "_x0": True, "_stretch": True, "prediction_type": prediction}
    description |= {"default_denoising_steps": 1, "default_processing_resolution": 24}
    assert description.items() <= exported.index.values.items()
    scheduler = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": False, "_class_name": "DDIMScheduler"}
    assert scheduler.items() <= exported.scheduler.values.items()
    pipe = Marigold.from_pretrained(tmp_path / "run" / "export")
    assert (pipe.noise, pipe.final_x0, pipe.modality.name) == ("zeros", True, prediction)
    assert {"depth": diffusers.MarigoldDepthPipeline, "normals": diffusers.MarigoldNormalsPipeline}[
        prediction
    ].from_pretrained(tmp_path / "run" / "export")
    if start == "narrow":  # two steps at a learning rate of 0 and 3e-7 leave the halved bias
        np.testing.assert_allclose(exported.unet.params["conv_in.bias"], 0.5, atol=1e-5)


def test_normals_are_not_judged_where_there_are_none(tiny_checkpoints, monkeypatch, tmp_path):
    config = tiny("e2e_ft_normals", tiny_checkpoints / "wide")
    bare = Primitives(2, (16, 24))
    bare_example = {key: value for key, value in bare[0].items() if key != "normals"}
    opened = {config.data.train[0][0]: bare, config.data.validation: [bare_example] * 2}
    monkeypatch.setattr(datasets, "open_dataset", lambda name, data: opened[name])
    monkeypatch.setattr(train.compilation_cache, "enable_cache", lambda: None)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)
    with pytest.raises(ValueError, match=r"data.validation=primitives/val has no normals; 0 for config.run.evaluate"):
        train.train(config, tmp_path / "run")


# Made on 2026-11-22 with jax 0.10.2 on a CPU. They may move with what is trained (model, noise, data, optimiser), never
# with how the program is written; a change here belongs into the changelog.
GOLDEN = (1.522540, 1.393737, 1.371201, 1.362188)


def test_golden_losses_on_one_device_and_on_eight(here, tmp_path):
    one = here(tmp_path / "one", 1, run__steps=4, run__evaluate_every=0)
    np.testing.assert_allclose(one, GOLDEN, rtol=1e-4)
    # Two steps on eight devices, with the parameters split over two; then on to the end on a single one.
    changed = here(tmp_path / "eight", 8, run__steps=2, run__evaluate_every=0, run__fsdp=2)
    np.testing.assert_allclose(changed, one[:2], rtol=1e-5)
    changed = here(tmp_path / "eight", 1, run__steps=4, run__evaluate_every=0)
    np.testing.assert_allclose(changed, one, rtol=1e-5)


def test_lora_is_one_line_and_merged_on_export(here, reference, tmp_path):
    start = {"model__checkpoint": str(reference / "export"), "optim__ema_decay": 0.0}
    here(tmp_path / "run", 8, run__steps=3, run__evaluate_every=3, run__fsdp=2, optim__lora_rank=2, **start)
    file = Path("export", "unet", "diffusion_pytorch_model.safetensors")
    before, after = load_file(reference / file), load_file(tmp_path / "run" / file)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert after.keys() == before.keys()
    # attn2 reads a prompt that is all zeros here, and has nothing to learn from it.
    assert changed == {name for name in before if re.search(r"^conv_in|attn1.to_(q|k|v|out.0).weight", name)}
    shutil.rmtree(tmp_path / "run" / "export")
    exported(tmp_path / "run")  # what `predict --checkpoint WORKDIR` calls, in a process of its own
    for name, array in load_file(tmp_path / "run" / file).items():
        np.testing.assert_allclose(array, after[name], atol=1e-7)


def test_a_vae_is_trained_by_the_same_program(here, tmp_path):
    changes = {"model__cell": 8, "model__vae_widths": (8, 8, 16, 16), "data__accumulation": 1, "data__size": (32, 48)}
    objective = {"name": "autoencoder", "prompt_length": 2}
    rate = {"optim__learning_rate": 3e-3, "optim__ema_decay": 0.0}
    losses = here(tmp_path / "run", 1, run__steps=12, run__evaluate_every=12, objective=objective, **changes, **rate)
    assert losses[-1] < 0.9 * losses[0]
    assert {"psnr", "abs_rel"} <= records(tmp_path / "run")[-1].keys()
    pipe = Marigold.from_pretrained(tmp_path / "run" / "export")
    assert pipe(Primitives(1, (32, 48))[0]["rgb"]).prediction.shape == (1, 32, 48, 1)


def test_end_to_end_continues_what_diffusion_began(here, reference, tmp_path):
    start = {"model__checkpoint": str(reference / "export"), "optim__warmup_steps": 1}
    objective = {"name": "end_to_end", "noise": "gaussian", "units": "normalised", "prompt_length": 77}
    losses = here(tmp_path / "run", 8, run__steps=6, run__evaluate_every=6, objective=objective, **start)
    assert losses[-1] < losses[0]
    assert records(tmp_path / "run")[-1]["abs_rel"] < records(reference)[-1]["abs_rel"]


def test_a_run_that_aligns_leaves_an_ordinary_checkpoint(here, tmp_path):
    changes = {"model__widths": (16, 16, 16), "data__size": (32, 48), "data__batch_size": 2, "data__accumulation": 1}
    objective = {"name": "diffusion", "prompt_length": 2, "align": 1.0}
    here(tmp_path / "run", 1, run__steps=3, run__evaluate_every=2, objective=objective, **changes)
    for line in records(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["task"] + line["alignment"], rel=1e-4)
    assert "abs_rel" in line
    file = tmp_path / "run" / "export" / "unet" / "diffusion_pytorch_model.safetensors"
    written = load_file(file)
    assert not [name for name in written if "align" in name]
    shutil.rmtree(tmp_path / "run" / "export")
    exported(tmp_path / "run")  # of a state that has the heads
    for name, array in load_file(file).items():
        np.testing.assert_allclose(array, written[name], atol=1e-7, err_msg=name)


DISTILLATION = {  # of the quickstart, whose network predicts the clean latent
    "objective": {"name": "consistency", "prompt_length": 2, "grid": 5},
    "optim__ema_decay": 0.9,
    "data__accumulation": 1,
    "run__evaluate_every": 0,
}


def test_a_student_keeps_its_teachers_schedule(reference):
    objective, model = (
        {"name": "consistency", "prompt_length": 2, "grid": 10},
        {"checkpoint": str(reference / "export")},
    )
    base = start_from(ModelOptions(**model), objective)
    assert base.scheduler.class_name == "LCMScheduler" and base.scheduler.original_inference_steps == 10
    for wrong in ({"prediction_type": "epsilon"}, {"beta_end": 0.02}):
        with pytest.raises(ValueError, match="wanted the noise schedule that the teacher"):
            start_from(ModelOptions(**model, scheduler=wrong), objective)


def test_distillation_follows_its_own_average_and_resumes_to_the_bit(here, reference, tmp_path, monkeypatch):
    row = OBJECTIVES["consistency"]

    def distance(one, other):
        return sum(abs(one[name] - other[name]).sum() for name in one)

    def spied(*structures, **options):
        objective = row.make(*structures, **options)

        def spy(params, frozen, batch, key):
            loss, metrics = objective(params, frozen, batch, key)
            distances = {"gone": distance(params, frozen["unet"]), "lag": distance(params, frozen["target"])}
            return loss, metrics | distances

        return spy

    make_steps, made = train.make_steps, []

    def once(*arguments, **options):
        """Compiled for the first run, and used by the second as well."""
        made.extend([] if made else [make_steps(*arguments, **options)])
        return made[0]

    monkeypatch.setattr(train, "make_steps", once)
    monkeypatch.setitem(OBJECTIVES, "consistency", dataclasses.replace(row, make=spied))
    start = DISTILLATION | {"model__checkpoint": str(reference / "export"), "run__steps": 4}
    here(tmp_path / "whole", 1, **start)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "export")
    shutil.rmtree(Checkpoints(cut / "checkpoints").path(4))
    here(cut, 1, **start)
    assert_same(cut, tmp_path / "whole")
    lines = records(tmp_path / "whole")
    # The first update only primes the moments; after the second, a tenth of it is in the average.
    assert [line["gone"] for line in lines[:2]] == [line["lag"] for line in lines[:2]] == [0, 0]
    assert lines[2]["lag"] == pytest.approx(0.9 * lines[2]["gone"], rel=1e-3)
    assert 0 < lines[3]["lag"] < lines[3]["gone"]

    pipe = Marigold.from_pretrained(tmp_path / "whole" / "export")
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(tmp_path / "whole" / "export").scheduler
    theirs.set_timesteps(4)
    assert pipe.sampler(4).timesteps.tolist() == theirs.timesteps.tolist() == [999, 799, 599, 399]
    image = Primitives(1, (16, 24))[0]["rgb"]
    one, four = (pipe(image, num_inference_steps=steps).prediction for steps in (1, 4))
    assert one.std() > 0 and four.std() > 0 and not np.array_equal(one, four)
    with pytest.raises(ValueError, match="lower the number of steps"):
        pipe(image, num_inference_steps=6)


def test_distillation_without_an_average_is_refused(here, reference, tmp_path):
    start = DISTILLATION | {"model__checkpoint": str(reference / "export"), "optim__ema_decay": 0.0}
    with pytest.raises(ValueError, match=r"config.optim.ema_decay=0: the objective consistency compares with a moving"):
        here(tmp_path / "run", 1, **start)


def test_worker_processes_leave_nothing_behind(run, tmp_path):
    done = run(command(tmp_path / "run", "--config.data.num_workers=1", "--config.run.evaluate_every=0"))
    assert "leaked" not in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(here, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 3: .* not finite 2 times in a row; lower config.optim"):
        here(tmp_path / "run", 1, run__max_skipped=2, run__evaluate_every=0, objective__strength=float("inf"))
