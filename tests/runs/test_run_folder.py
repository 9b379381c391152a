"""What a run leaves on disk: claimed, saved, checked, exported."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from marigold_jax.models import functional
from marigold_jax.runs import locate as locating
from marigold_jax.runs import run_folder
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.checkpoints import CheckpointError, Checkpoints, fingerprint
from marigold_jax.runs.export import gather_trained, with_params
from marigold_jax.runs.locate import base_of, exported, locate
from marigold_jax.runs.objective_facts import FACTS
from marigold_jax.runs.start import begin, start_from
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.objectives import OBJECTIVES
from marigold_jax.weights import hub, model_folder
from marigold_jax.weights.model_index import ModelIndex
from marigold_jax.weights.scratch import scratch

CONFIG = {
    "model": {"checkpoint": "scratch", "widths": (16, 16), "cell": 2},
    "data": {"train": (("a", 1.0),), "size": ()},
    "objective": {"name": "diffusion"},
    "run": {"steps": 3},
}


def state_of(value, **shardings):
    """A training state in miniature; `value` is in every array."""
    state = {"params": {"a.kernel": jnp.full((8, 4), value, jnp.float32)}, "step": jnp.asarray(int(value), jnp.int32)}
    return jax.tree.map(lambda x: jax.device_put(x, shardings.get("to", jax.devices()[0])), state)


def saved(folder, *steps):
    kept = Checkpoints(folder)
    for step in steps:
        kept.save(step, state_of(step), {"step": step})
    kept.finish()
    return kept


def flip_a_bit(folder):
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


# ----------------------------------------------------------------------------------------------------- configuration


def test_a_folder_belongs_to_one_configuration(tmp_path):
    run_folder.claim(tmp_path / "run", CONFIG)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["widths"] == [16, 16]
    saved(tmp_path / "run" / "checkpoints", 1)
    run_folder.claim(tmp_path / "run", CONFIG)
    run_folder.claim(tmp_path / "run", CONFIG | {"run": {"steps": 9, "new": 1}})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"] == {"steps": 9, "new": 1}
    other = CONFIG | {"data": {"train": (("a", 0.5),), "extra": None}}
    message = r"data.extra was absent, is None; data.size was \[\], is absent; data.train was \[\['a', 1.0\]\], is \[\["
    with pytest.raises(ValueError, match=message):
        run_folder.claim(tmp_path / "run", other)


def test_a_run_that_saved_nothing_may_begin_anew(tmp_path):
    run_folder.claim(tmp_path, CONFIG)
    run_folder.claim(tmp_path, CONFIG | {"data": {}})
    assert json.loads((tmp_path / "config.json").read_text())["data"] == {}


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_what_is_saved_is_restored_to_the_last_bit(tmp_path):
    state = {"params": {"a.kernel": jax.random.normal(jax.random.key(0), (64, 65))}, "step": jnp.int32(7)}
    wanted = jax.tree.map(np.array, state)
    kept = Checkpoints(tmp_path)
    assert kept.restore(state) is None
    kept.save(7, state, {"loader": {"next_batch": 3}})
    # The state may be donated as soon as `save` returns, while it is being written.
    like = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)(state)
    kept.finish()
    restored, notes = kept.restore(like)
    assert notes == {"loader": {"next_batch": 3}}
    jax.tree.map(np.testing.assert_array_equal, restored, wanted)


def test_other_devices_may_go_on(tmp_path):
    saved(tmp_path, 3)
    split = NamedSharding(make_mesh(fsdp=4), PartitionSpec())
    rows = NamedSharding(make_mesh(fsdp=4), PartitionSpec("fsdp"))
    like = state_of(0, to=split)
    like["params"] = jax.tree.map(lambda x: jax.device_put(x, rows), like["params"])
    restored, _ = Checkpoints(tmp_path).restore(like)
    assert restored["params"]["a.kernel"].sharding == rows
    assert fingerprint(restored) == fingerprint(state_of(3))


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in range(1, 6):
        kept.save(step, state_of(step), {}, best=2)
    kept.finish()
    assert kept.steps() == [2, 4, 5]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda folder: shutil.rmtree(folder / "state")])
def test_damage_is_noticed_and_passed_over(tmp_path, caplog, damage):
    kept = saved(tmp_path, 1, 2)
    damage(kept.path(2))
    restored, notes = kept.restore(state_of(0))
    assert notes == {"step": 1} and int(restored["step"]) == 1
    assert "00000002 is corrupt" in caplog.text and "going on from step 1" in caplog.text
    assert kept.steps() == [1] and (tmp_path / "00000002.corrupt").is_dir()
    kept.save(2, state_of(2), {})  # its place is free again
    kept.finish()
    assert kept.steps() == [1, 2]


def test_nothing_readable_is_an_error_and_deletes_nothing(tmp_path):
    kept = saved(tmp_path, 1, 2)
    flip_a_bit(kept.path(1)), flip_a_bit(kept.path(2))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read \(step 2: .*; step 1: .*move it away"):
        kept.restore(state_of(0))
    assert kept.steps() == [1, 2]


def test_what_a_kill_left_behind_is_cleared(tmp_path):
    kept = saved(tmp_path, 1)
    (tmp_path / "00000002.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "00000000.deleted").mkdir()
    assert kept.steps() == [1]
    kept.restore(state_of(0))
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    kept = saved(tmp_path, 1)

    class Full:
        def result(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    def save_async(path, state, custom_metadata):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        return Full()

    monkeypatch.setattr(ocp, "save_async", save_async)
    kept.save(2, state_of(2), {})
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left.*step 1 is safe"):
        kept.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_fingerprint_sees_every_bit_and_every_name():
    prints = [
        fingerprint(tree)
        for tree in (
            {"a": jnp.zeros(3)},
            {"a": jnp.zeros(3).at[1].set(jnp.float32(1e-45))},  # the lowest bit
            {"a": -jnp.zeros(3)},  # the highest
            {"b": jnp.zeros(3)},
            {"a": jnp.zeros(3, jnp.bfloat16).at[0].set(1)},
        )
    ]
    assert len(set(prints)) == len(prints)


# ----------------------------------------------------------------------------------------------- beginnings and ends


def test_plain_stable_diffusion_is_widened_and_described(tmp_path):
    folder = oracle.save_pipeline(tmp_path / "sd2")
    narrow = model_folder.load(folder)
    kernel = narrow.unet.params["conv_in.kernel"][:, :, :4]
    plain = oracle.unet(in_channels=4)
    plain.save_pretrained(folder / "unet")
    changes = {"scheduler": {"timestep_spacing": "leading"}, "description": {"default_denoising_steps": 3}}
    base = start_from(ModelOptions(str(folder), **changes))
    assert base.unet.config.in_channels == 8 and kernel.shape[2] == 4
    assert base.scheduler.timestep_spacing == "leading" and base.scheduler.rescale_betas_zero_snr
    assert base.index.values == {
        "_class_name": "MarigoldDepthPipeline",
        "prediction_type": "depth",
        "scale_invariant": True,
        "shift_invariant": True,
        "default_processing_resolution": 64,  # kept
        "default_denoising_steps": 3,
    }
    with pytest.raises(ValueError, match=r"model.prediction is 'heat'"):
        start_from(ModelOptions(str(folder), prediction="heat"))


@pytest.mark.slow
def test_a_run_is_exported_when_asked_and_only_when_need_be(tmp_path, monkeypatch):
    run_folder.claim(tmp_path, CONFIG)
    with pytest.raises(FileNotFoundError, match="has not saved a checkpoint yet"):
        exported(tmp_path)
    base = start_from(ModelOptions(**CONFIG["model"]))
    kept = Checkpoints(tmp_path / run_folder.CHECKPOINTS)

    def save(step, value):
        averaged = {name: jnp.full(x.shape, value, x.dtype) for name, x in base.unet.params.items()}
        state = {"params": base.unet.params, "ema": averaged, "opt_state": ({"mu": averaged}, ()), "step": jnp.int32(1)}
        kept.save(step, state, {})
        kept.finish()

    save(1, 0.5)
    folder = exported(tmp_path)
    assert folder == tmp_path / "export"
    loaded = model_folder.load(folder)
    assert float(loaded.unet.params["conv_in.bias"][0]) == 0.5  # the average, not the last weights
    written = (folder / "model_index.json").stat().st_mtime_ns
    assert exported(tmp_path) == folder and (folder / "model_index.json").stat().st_mtime_ns == written
    save(2, 0.25)
    monkeypatch.chdir(tmp_path.parent)  # where users give its name alone
    assert float(model_folder.load(exported(Path(tmp_path.name))).unet.params["conv_in.bias"][0]) == 0.25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.json", "export"]


def test_trained_parameters_are_gathered_on_one_device():
    base = scratch((16, 16), 2)
    layout = Layout(make_mesh(fsdp=8), (("", "fsdp"),))
    emptied = with_params(base, "unet", {})  # as `train` has it: the state holds the only copy
    trained = gather_trained(emptied, "unet", layout.place(base.unet.params), layout)
    for name, array in trained.unet.params.items():
        assert array.devices() == {jax.devices()[0]}
        np.testing.assert_array_equal(array, base.unet.params[name])


@pytest.mark.slow
@pytest.mark.parametrize("cell", [1, 2, 4])
def test_the_vae_made_of_nothing_is_exact(cell):
    base = scratch((16, 16), cell)
    vae = functional.merge(base.vae.structure, base.vae.params)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    means = pixels.reshape(2, 16 // cell, cell, 24 // cell, cell, 3).mean((2, 4))
    np.testing.assert_allclose(vae.encode(jnp.asarray(pixels)), 2 * means, atol=2e-3)
    painted = means.repeat(cell, axis=1).repeat(cell, axis=2)
    np.testing.assert_allclose(vae.decode(jnp.asarray(2 * means)), painted, atol=1e-3)


def test_scratch_wants_sensible_numbers():
    for widths, cell in (((16,), 2), ((16, 20), 2), ((16, 32), 3)):
        with pytest.raises(ValueError, match="wanted two or more multiples of 16, and a power of two"):
            scratch(widths, cell)


# ---------------------------------------------------------------------------------------- what may change, and what not


def test_a_resumed_run_may_have_other_hands_but_no_other_seed(tmp_path):
    config = {"run": {"seed": 0, "steps": 3}, "data": {"data_dir": "a", "validation": "x", "num_workers": 0, "size": 8}}
    run_folder.claim(tmp_path, config)
    saved(tmp_path / "checkpoints", 1)
    data = {"data_dir": "b", "validation": None, "num_workers": 4, "size": 8}
    run_folder.claim(tmp_path, {"run": {"seed": 0, "steps": 9, "fsdp": 2}, "data": data})
    assert json.loads((tmp_path / "config.json").read_text())["data"]["data_dir"] == "b"
    with pytest.raises(ValueError, match=r"run.seed was 0, is 1. Name another .* and of these not run.seed"):
        run_folder.claim(tmp_path, {"run": {"seed": 1}, "data": data})
    with pytest.raises(ValueError, match=r"data.size was 8, is 9"):
        run_folder.claim(tmp_path, {"run": {"seed": 0}, "data": data | {"size": 9}})


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": '])
def test_a_run_whose_configuration_cannot_be_told_is_left_alone(tmp_path, content):
    saved(tmp_path / "checkpoints", 1)
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"a run whose configuration cannot be told; put config\.json back") as caught:
        run_folder.claim(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)
    assert content is None or (tmp_path / "config.json").read_text() == content


def test_what_a_run_came_to_is_not_replaced(tmp_path):
    model_folder.save(scratch((16, 16), 2), tmp_path / "export")
    with pytest.raises(ValueError, match=r"export is the end of a run whose checkpoints are gone.*Move it away"):
        run_folder.claim(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="not saved a checkpoint"):  # somebody else's, not that of a run
        exported(tmp_path)
    index = tmp_path / "export" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_exported_step": 7}))
    assert exported(tmp_path) == locate(tmp_path) == tmp_path / "export"


def test_strangers_among_the_checkpoints(tmp_path):
    kept = saved(tmp_path, 1)
    for name in ("7", "²", "notes", "99999999999999999999"):
        (tmp_path / name).mkdir()
    (tmp_path / "00000009").write_text("a file")
    assert kept.steps() == [1] and kept.restore(state_of(0))[1] == {"step": 1}


def test_the_same_step_may_be_corrupt_twice(tmp_path):
    kept = saved(tmp_path, 1, 2)
    for _ in range(2):
        shutil.rmtree(kept.path(2) / "state")
        kept.restore(state_of(0))
        kept.save(2, state_of(2), {})
        kept.finish()
    assert sorted(path.name for path in tmp_path.glob("*.corrupt*")) == ["00000002.corrupt", "00000002.corrupt1"]


def test_one_training_at_a_time(tmp_path):
    workdir = tmp_path / "runs" / "one"
    with run_folder.held(workdir):
        with pytest.raises(
            ValueError, match=rf"another training is at work here.*\(process {os.getpid()} on"
        ) as caught:
            with run_folder.held(workdir):
                pass
        assert "\n" not in str(caught.value)
    with run_folder.held(workdir):  # the file is there still, and locks nothing
        pass
    code = "import sys, time, pathlib; from marigold_jax.runtime.lock import lock\n"
    code += "with lock(pathlib.Path(sys.argv[1]), 'held'): print('mine', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, workdir / run_folder.LOCK], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "mine\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"), run_folder.held(workdir):
        pass
    process.kill()
    process.wait()
    with run_folder.held(workdir):
        pass
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        with pytest.raises(ValueError, match="wanted a folder for the run, and a file is there"):
            run_folder.held(folder)


# ------------------------------------------------------------------------------------------------ what a run began from


@pytest.fixture(scope="module")
def tiny():
    return scratch((16, 16), 2)


def changed(model, part, name):
    """The model with one weight of a part that is another."""
    component = getattr(model, part)
    return with_params(model, part, component.params | {name: component.params[name] + 1})


CHANGES = {
    "vae": lambda model: changed(model, "vae", "decoder.conv_out.bias"),
    "unet": lambda model: changed(model, "unet", "conv_in.bias"),
    "scheduler": lambda model: dataclasses.replace(model, scheduler=model.scheduler.replace({"beta_end": 0.02})),
    "prompt": lambda model: dataclasses.replace(model, empty_prompt={n: np.ones((n, 16)) for n in (2, 77)}),
    "index": lambda model: dataclasses.replace(model, index=ModelIndex({**model.index.values, "_note": 1})),
}


@pytest.fixture
def resave(monkeypatch):
    """Puts a model into a folder, to be loaded from wherever that is moved to; nothing is written or read."""
    there = {}

    def resave(model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model").touch()
        there[(folder / "model").stat().st_ino] = model
        return folder

    def load(folder):
        return dataclasses.replace(there[(folder / "model").stat().st_ino], folder=folder)

    monkeypatch.setattr(model_folder, "load", load)
    return resave


def started(workdir, **model):
    """A run that began, and has saved a checkpoint, as far as can be seen; its configuration."""
    config = CONFIG | {"model": {"prediction": "depth", **model}, "optim": {"lora_rank": 0}}
    run_folder.claim(workdir, config)
    begin(workdir, config)
    (workdir / "checkpoints" / "00000001").mkdir(parents=True)
    return config


@pytest.mark.parametrize(
    "what, objective, lora_rank, message",
    [
        ("vae", "diffusion", 0, "the weights of its vae changed"),
        ("unet", "diffusion", 0, None),  # it trains, and is in the run's own checkpoints
        ("unet", "diffusion", 4, "the weights of its unet changed"),
        ("unet", "consistency", 0, "the weights of its unet changed"),  # the teacher
        ("vae", "autoencoder", 0, None),
        ("unet", "autoencoder", 0, "the weights of its unet changed"),
        ("scheduler", "diffusion", 0, "its noise schedule changed"),
        ("prompt", "end_to_end", 0, "its empty prompt changed"),
        ("index", "diffusion", 4, None),
    ],
)
def test_what_does_not_train_must_stay(tiny, resave, tmp_path, what, objective, lora_rank, message):
    folder, workdir = resave(tiny, tmp_path / "base"), tmp_path / "run"
    config = {
        **{"model": {"checkpoint": str(folder), "prediction": "depth"}, "run": {}, "data": {}},
        **{"objective": {"name": objective, "prompt_length": 2}, "optim": {"lora_rank": lora_rank}},
    }
    run_folder.claim(workdir, config)
    begin(workdir, config)
    start = json.loads((workdir / "start.json").read_text())
    assert start["folder"] == str(folder.resolve()) and start["commit"] is None
    (workdir / "checkpoints" / "00000001").mkdir(parents=True)
    begin(workdir, config)
    resave(CHANGES[what](tiny), folder)
    if message is None:
        begin(workdir, config)
    else:
        for again in (
            lambda: begin(workdir, config),
            lambda: base_of(workdir, run_folder.config_of(workdir)),
        ):
            with pytest.raises(ValueError, match=f"base is not what this run began from: {message}") as caught:
                again()
            assert "\n" not in str(caught.value)
    assert json.loads((workdir / "start.json").read_text()) == start  # written once


def test_a_base_is_found_from_anywhere_or_said_to_be_gone(tiny, resave, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    resave(tiny, tmp_path / "runs" / "A")
    config = started(tmp_path / "run", checkpoint="runs/A")
    monkeypatch.chdir(tmp_path / "elsewhere")
    begin(tmp_path / "run", config)
    # The same folder by the name that it has from here is no other configuration.
    run_folder.claim(tmp_path / "run", config | {"model": config["model"] | {"checkpoint": "../runs/A"}})
    with pytest.raises(ValueError, match=r"model.checkpoint was \.\./runs/A, is marigold-rooms"):
        run_folder.claim(tmp_path / "run", config | {"model": config["model"] | {"checkpoint": "marigold-rooms"}})
    (tmp_path / "runs" / "A").rename(tmp_path / "B")
    with pytest.raises(FileNotFoundError, match=r"runs/A: no such folder, and this run began from it \(runs/A\)"):
        begin(tmp_path / "run", config)
    (tmp_path / "elsewhere" / "runs").mkdir()
    (tmp_path / "B").rename(tmp_path / "elsewhere" / "runs" / "A")  # all was moved, and the name leads there
    begin(tmp_path / "run", config)


@pytest.mark.slow
def test_a_base_that_is_a_run_may_not_go_on(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objective = {"name": "autoencoder", "prompt_length": 2}
    run_folder.claim(tmp_path / "A", CONFIG | {"objective": objective})
    kept = Checkpoints(tmp_path / "A" / "checkpoints")

    def train_on(step):
        params = CHANGES["vae"](tiny).vae.params if step == 2 else tiny.vae.params
        kept.save(step, {"params": params, "step": jnp.int32(step)}, {})
        kept.finish()

    train_on(1)
    config = started(tmp_path / "B", checkpoint="A")
    start = json.loads((tmp_path / "B" / "start.json").read_text())
    assert (start["folder"], start["step"]) == (str(tmp_path / "A" / "export"), 1)
    train_on(2)
    begin(tmp_path / "B", config)  # what was exported is as it was
    exported(tmp_path / "A")
    with pytest.raises(ValueError, match=r"\(step 1 of that run then, step 2 now\): the weights of its vae changed"):
        begin(tmp_path / "B", config)


def test_a_commit_is_pinned(tiny, resave, tmp_path, monkeypatch):
    home, commit = tmp_path / "models--someone--tiny" / "snapshots", "0123456789" * 4
    resave(tiny, home / commit)
    asked = []
    monkeypatch.setattr(hub, "_download", lambda *what: asked.append(what[:2]) or home / commit)
    config = started(tmp_path / "run", checkpoint="someone/tiny")
    start = json.loads((tmp_path / "run" / "start.json").read_text())
    assert (start["repository"], start["commit"]) == ("someone/tiny", commit)
    begin(tmp_path / "run", config)
    assert asked == [("someone/tiny", None)]  # the first time
    (home / commit).rename(tmp_path / "kept")  # a cache that was emptied, or another machine
    monkeypatch.setattr(hub, "_download", lambda *what: asked.append(what[:2]) or tmp_path / "kept")
    begin(tmp_path / "run", config)
    assert asked[1:] == [("someone/tiny", commit)]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"checkpoint": 1}', '{"checkpoint": "a", "folder": 3}'])
def test_a_broken_start_costs_one_line(tiny, resave, tmp_path, content):
    config = started(tmp_path / "run", checkpoint=str(resave(tiny, tmp_path / "base")))
    (tmp_path / "run" / "start.json").write_text(content)
    with pytest.raises(ValueError, match=r"start\.json") as caught:
        begin(tmp_path / "run", config)
    assert "\n" not in str(caught.value)


def test_an_older_run_is_pinned_when_it_goes_on(tmp_path, caplog):
    config = started(tmp_path, checkpoint="scratch", widths=(16, 16), cell=2)
    written = (tmp_path / "start.json").read_text()
    assert json.loads(written)["frozen"].keys() >= {"vae", "empty_prompt", "scheduler"}
    (tmp_path / "start.json").unlink()
    begin(tmp_path, config)
    assert "from now on its base is as it is today" in caplog.text and (tmp_path / "start.json").read_text() == written


def test_a_damaged_newest_checkpoint_is_passed_over_by_those_who_predict(tiny, tmp_path, caplog, monkeypatch):
    def export(model, step, workdir):
        exports.append(model.unet.params["a.kernel"])
        index = workdir / "export" / "model_index.json"
        index.parent.mkdir()
        index.write_text(json.dumps({"_exported_step": step}))
        return index.parent

    exports = []
    monkeypatch.setattr(locating, "base_of", lambda workdir, config: tiny)
    monkeypatch.setattr(locating, "merge_trained", lambda base, component, params: with_params(base, component, params))
    monkeypatch.setattr(locating, "export", export)
    run_folder.claim(tmp_path, CONFIG)
    kept = saved(tmp_path / "checkpoints", 1, 2)
    flip_a_bit(kept.path(2))
    folder = exported(tmp_path)
    assert len(exports) == 1 and (exports[0] == 1).all()
    assert "00000002 is corrupt" in caplog.text and "taking step 1" in caplog.text
    assert kept.steps() == [1, 2]  # it is another's run, and only read
    for step in (1, 2):
        shutil.rmtree(kept.path(step) / "state")
    assert exported(tmp_path) == folder  # what is whole is good enough
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"no checkpoint can be read .step 2: .*; step 1: ") as caught:
        exported(tmp_path)
    assert "\n" not in str(caught.value) and kept.steps() == [1, 2]


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"what": 1}, "objective": {"name": "diffusion"}}'])
def test_a_run_with_a_broken_configuration_is_not_exported(tmp_path, content):
    saved(tmp_path / "checkpoints", 1)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        exported(tmp_path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_slip_in_a_path_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    asked = []
    monkeypatch.setattr(hub, "_download", lambda *what: asked.append(what[:2]) or tmp_path)
    with pytest.raises(FileNotFoundError, match="runs/A: no such folder in runs/, which exists here"):
        locate("runs/A")
    assert not asked and locate("runs/A@main") == tmp_path and locate("someone/A", "v2") == tmp_path
    assert asked == [("runs/A", "main"), ("someone/A", "v2")]


# ---------------------------------------------------------------------------------------------------------- objectives


def test_facts_are_known_for_every_objective():
    assert FACTS.keys() == OBJECTIVES.keys()
    assert {facts.trains for facts in FACTS.values()} == {"unet", "vae"}
