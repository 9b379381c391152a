"""What a run leaves on disk: claimed, saved, checked, exported."""

import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from marigold_jax import runs
from marigold_jax.models import functional
from marigold_jax.sharding import Layout, make_mesh
from marigold_jax.weights import checkpoint as checkpoints
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
    kept = runs.Checkpoints(folder)
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
    runs.claim(tmp_path / "run", CONFIG)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["widths"] == [16, 16]
    saved(tmp_path / "run" / "checkpoints", 1)
    runs.claim(tmp_path / "run", CONFIG)
    runs.claim(tmp_path / "run", CONFIG | {"run": {"steps": 9, "new": 1}})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"] == {"steps": 9, "new": 1}
    other = CONFIG | {"data": {"train": (("a", 0.5),), "extra": None}}
    message = r"data.extra was absent, is None; data.size was \[\], is absent; data.train was \[\['a', 1.0\]\], is \[\["
    with pytest.raises(ValueError, match=message):
        runs.claim(tmp_path / "run", other)


def test_a_run_that_saved_nothing_may_begin_anew(tmp_path):
    runs.claim(tmp_path, CONFIG)
    runs.claim(tmp_path, CONFIG | {"data": {}})
    assert json.loads((tmp_path / "config.json").read_text())["data"] == {}


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_what_is_saved_is_restored_to_the_last_bit(tmp_path):
    state = {"params": {"a.kernel": jax.random.normal(jax.random.key(0), (64, 65))}, "step": jnp.int32(7)}
    wanted = jax.tree.map(np.array, state)
    kept = runs.Checkpoints(tmp_path)
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
    restored, _ = runs.Checkpoints(tmp_path).restore(like)
    assert restored["params"]["a.kernel"].sharding == rows
    assert runs.fingerprint(restored) == runs.fingerprint(state_of(3))


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    kept = runs.Checkpoints(tmp_path)
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
    with pytest.raises(runs.CheckpointError, match=r"no checkpoint can be read \(step 2: .*; step 1: .*move it away"):
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
    with pytest.raises(runs.CheckpointError, match=r"could not be written .*No space left.*step 1 is safe"):
        kept.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_fingerprint_sees_every_bit_and_every_name():
    prints = [
        runs.fingerprint(tree)
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
    narrow = checkpoints.load(folder)
    kernel = narrow.unet.params["conv_in.kernel"][:, :, :4]
    plain = oracle.unet(in_channels=4)
    plain.save_pretrained(folder / "unet")
    base = runs.start_from(
        str(folder), scheduler={"timestep_spacing": "leading"}, description={"default_denoising_steps": 3}
    )
    assert base.unet.config.in_channels == 8 and kernel.shape[2] == 4
    assert base.scheduler["timestep_spacing"] == "leading" and base.scheduler["rescale_betas_zero_snr"]
    assert base.description == {
        "_class_name": "MarigoldDepthPipeline",
        "prediction_type": "depth",
        "scale_invariant": True,
        "shift_invariant": True,
        "default_processing_resolution": 64,  # kept
        "default_denoising_steps": 3,
    }
    with pytest.raises(ValueError, match=r"model.prediction is 'heat'"):
        runs.start_from(str(folder), prediction="heat")


def test_a_run_is_exported_when_asked_and_only_when_need_be(tmp_path, monkeypatch):
    runs.claim(tmp_path, CONFIG)
    with pytest.raises(FileNotFoundError, match="has not saved a checkpoint yet"):
        runs.exported(tmp_path)
    base = runs.start_from(**CONFIG["model"])
    kept = runs.Checkpoints(tmp_path / runs.CHECKPOINTS)

    def save(step, value):
        averaged = {name: jnp.full(x.shape, value, x.dtype) for name, x in base.unet.params.items()}
        state = {"params": base.unet.params, "ema": averaged, "opt_state": ({"mu": averaged}, ()), "step": jnp.int32(1)}
        kept.save(step, state, {})
        kept.finish()

    save(1, 0.5)
    folder = runs.exported(tmp_path)
    assert folder == tmp_path / "export"
    loaded = checkpoints.load(folder)
    assert float(loaded.unet.params["conv_in.bias"][0]) == 0.5  # the average, not the last weights
    written = (folder / "model_index.json").stat().st_mtime_ns
    assert runs.exported(tmp_path) == folder and (folder / "model_index.json").stat().st_mtime_ns == written
    save(2, 0.25)
    monkeypatch.chdir(tmp_path.parent)  # where users give its name alone
    assert float(checkpoints.load(runs.exported(Path(tmp_path.name))).unet.params["conv_in.bias"][0]) == 0.25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.json", "export"]


def test_trained_parameters_are_gathered_on_one_device():
    base = scratch((16, 16), 2)
    layout = Layout(make_mesh(fsdp=8), (("", "fsdp"),))
    emptied = runs.with_params(base, "unet", {})  # as `train` has it: the state holds the only copy
    trained = runs.trained(emptied, "unet", layout.place(base.unet.params), layout)
    for name, array in trained.unet.params.items():
        assert array.devices() == {jax.devices()[0]}
        np.testing.assert_array_equal(array, base.unet.params[name])


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
