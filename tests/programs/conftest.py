"""What the tests of the training program share: processes, one undisturbed run, and training in this process."""

import importlib
import os
import signal
import subprocess

import jax
import numpy as np
import pytest
from filelock import FileLock
from jax.sharding import Mesh
from small_training import ROOT, command, records, small_config

from marigold_jax import train
from marigold_jax.runtime import sharding


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """A folder that all workers of pytest-xdist see."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def environment(shared_folder):
    """Of the subprocesses: one device, light compiling, and one compilation cache for all of them."""
    cache = shared_folder / "programs"
    changes = {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    return os.environ | changes


@pytest.fixture(scope="session")
def run(environment):
    def run(arguments, status=0):
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def reference(shared_folder, run):
    """The folder of a run that nothing disturbed. The first worker that needs it trains, for all."""
    workdir, said = shared_folder / "reference" / "run", shared_folder / "reference" / "said"
    with FileLock(shared_folder / "reference.lock"):
        if not said.is_file():
            said.parent.mkdir()
            said.write_text(run(command(workdir)).stdout)
    return workdir


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


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a program in this process with wrong flags; returns its exit status and what it printed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(train.compilation_cache, "enable_cache", lambda: None)

    def call(program, arguments):
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"marigold_jax.{program}").main(list(map(str, arguments)))
        return stopped.value.code, capsys.readouterr()

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)
