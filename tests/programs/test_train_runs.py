"""Whole training runs in processes of their own: killed, stopped, damaged, resumed and exported."""

import json
import re
import shutil
import signal
import subprocess
import time

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from small_training import ROOT, STEPS, assert_same, command, records, small_config

from marigold_jax import Marigold, train
from marigold_jax.data.primitives import Primitives
from marigold_jax.runs import run_folder
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.locate import locate


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        file = workdir / "metrics.jsonl"
        if file.is_file() and file.read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"the run did not come to step {step}")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_disturbed_run_ends_as_an_undisturbed_one(reference, run, environment, tmp_path):
    """Killed, then asked to stop in two ways: four processes, one after the other, do what one did."""
    workdir = tmp_path / "run"
    for number, step in {signal.SIGKILL: 1, signal.SIGTERM: 3, signal.SIGINT: 5}.items():
        before = len(records(workdir)) if (workdir / "metrics.jsonl").is_file() else 0
        step = min(max(step, before + 1), STEPS)  # not a record that the process before has left
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_another_configuration_is_refused(reference):
    with pytest.raises(ValueError, match=r"optim.learning_rate was 0.001, is 0.1. Name another --workdir"):
        train.train(small_config(optim__learning_rate=0.1), reference)


@pytest.mark.slow
def test_worker_processes_leave_nothing_behind(run, tmp_path):
    done = run(command(tmp_path / "run", "--config.data.num_workers=1", "--config.run.evaluate_every=0"))
    assert "leaked" not in done.stderr
