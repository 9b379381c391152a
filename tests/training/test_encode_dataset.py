"""Latents that are computed once: the same frames, flips, masks and losses, and never those of another VAE."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from marigold_jax import prepare, train
from marigold_jax.data import latent_store as store
from marigold_jax.data.loader import make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.transforms import SampleOptions, transform
from marigold_jax.diffusion.losses import latent_mask
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.start import start_from
from marigold_jax.runtime import sharding
from marigold_jax.training import configuration, encode_dataset
from marigold_jax.training.objectives.diffusion import diffusion_objective
from marigold_jax.training.targets import TARGETS
from marigold_jax.weights.scratch import fresh_vae

ROOT = Path(__file__).parents[2]
SEEN = {"size": (16, 24), "antialias": True, "far_fill": True}
FRAMES = 19  # two shards, the second of them short


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared dataset with normals and holes in its depth, larger than it is trained at."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "raw" / "mine"
    random = np.random.default_rng(0)
    for folder in ("rgb", "depth", "normals"):
        (raw / folder).mkdir(parents=True)
    for index in range(FRAMES):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(raw / "rgb" / f"{index:02d}.png")
        depth = random.integers(1000, 9000, (20, 30), np.uint16)
        depth[: index % 8, : index % 5] = 0
        Image.fromarray(depth).save(raw / "depth" / f"{index:02d}.png")
        normals = random.normal(size=(20, 30, 3)).astype(np.float32)
        np.save(raw / "normals" / f"{index:02d}.npy", normals / np.linalg.norm(normals, axis=-1, keepdims=True))
    flags = ["folder", "--raw_dir", raw, "--data_dir", root, "--unit", "mm", "--workers", 1]
    assert prepare.main(list(map(str, flags))) == 0
    return root


@pytest.fixture
def data(prepared, tmp_path):
    """A copy that has no latents yet."""
    return Path(shutil.copytree(prepared / "rgbd", tmp_path / "rgbd").parent)


def split_of(data):
    return PreparedSplit(f"{data}/mine/train")


def vae(seed=0):
    """With residual branches that do something."""
    component = fresh_vae((8, 8, 16), seed)
    random = np.random.default_rng(seed)
    for path, array in component.params.items():
        if path.endswith("conv2.kernel"):
            component.params[path] = jnp.asarray(random.normal(size=array.shape, scale=0.1), jnp.float32)
    return component


def cached(data, seed=0, target="depth", dtype="float32", num_workers=0, stopping=lambda: False, **changes):
    encoding = encode_dataset.Encoding(target, dtype, **SEEN | changes)
    return encode_dataset.cached(split_of(data), vae(seed), encoding, num_workers, stopping)


# -------------------------------------------------------------------------------------------------------------- records


def test_a_record_gives_back_what_it_was_given():
    random = np.random.default_rng(0)
    values, mask = random.normal(size=(2, 3, 5, 4)).astype(np.float32), random.random((3, 5, 1)) < 0.5
    values.ravel()[:3] = 0, 1 + 2**-8, 1 + 3 * 2**-8  # the last two lie between two bfloat16 numbers
    rounded = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    for dtype, wanted in {"float32": values, "bfloat16": rounded}.items():
        record = store.to_record(values, mask, dtype)
        assert len(record) == 6 + values.size * (4 if dtype == "float32" else 2) + 2
        found = store.from_record(record, dtype)
        np.testing.assert_array_equal(found["latents"], wanted)
        np.testing.assert_array_equal(found["latent_mask"], mask)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "num_workers"), [("depth", 0), ("normals", 1)])
def test_both_orientations_of_every_frame_are_what_the_encoder_says(data, target, num_workers):
    found, split, component = cached(data, target=target, num_workers=num_workers), split_of(data), vae()
    assert len(found) == len(split) == FRAMES
    module, modality = functional.merge(component.structure, component.params), TARGETS[target]
    encode = jax.jit(module.encode)
    masks = set()
    for frame in (0, 3, 15, 16, 18):
        for flip in (False, True):
            sample = transform(split[frame], flip=flip, **SEEN)
            wanted = encode(jnp.stack([sample["rgb"], modality.to_pixels(jnp.asarray(sample[modality.key])[None])[0]]))
            record = found.sample(frame, flip)
            np.testing.assert_allclose(record["latents"], wanted, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(record["latent_mask"], latent_mask(jnp.asarray(sample["mask"])[None], 4)[0])
            masks.add(int(record["latent_mask"].sum()))
    assert len(masks) > 1


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def run(monkeypatch, data, tmp_path):
    """Trains in this process, two steps on one device; returns the configuration, and what was logged."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(train.compilation_cache, "enable_cache", lambda: None)
    one = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(train.sharding, "make_mesh", lambda fsdp: one)  # eight would compile for much longer

    def call(**changes):
        config = configuration.load("quickstart")
        small = {
            **{"model.widths": (16, 16), "data.batch_size": 8, "data.size": (16, 24), "optim.ema_decay": 0.0},
            **{"data.data_dir": str(data), "data.train": (("mine/train", 1.0),)},
            **{"run.steps": 2, "run.log_every": 1, "run.evaluate_every": 0, "run.latents": "float32"},
        }
        config.model.vae_widths = (8, 8, 16)
        with config.unlocked():
            config.objective = ConfigDict(changes.pop("objective", config.objective))
        config.update_from_flattened_dict(small | {key.replace("__", "."): value for key, value in changes.items()})
        train.train(config.lock(), tmp_path / "run")
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        return config, [json.loads(line) for line in lines]

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_training_on_latents_is_training(run, data):
    """Against the objective on the loader's pixels. The first update, that of the warm-up, moves nothing."""
    config, (first, second) = run()
    assert store.folder_of(split_of(data)).is_dir()
    base = start_from(ModelOptions(**config.model.to_dict()))
    options = {key: value for key, value in config.objective.items() if key not in ("name", "prompt_length")}
    schedule = NoiseSchedule.from_config(base.scheduler)
    objective = jax.jit(diffusion_objective(base.unet.structure, base.vae.structure, schedule, **options))
    frozen = {"vae": base.vae.params, "empty_prompt": jnp.asarray(base.empty_prompt[2])}
    loader = make_loader([(split_of(data), 1)], batch_size=8, seed=config.run.seed, options=SampleOptions(**SEEN))
    key = jax.random.key(config.run.seed)
    for step, line in enumerate((first, second)):
        batch = {key: jnp.asarray(x) for key, x in next(loader).items()}
        micro_key = jax.random.fold_in(jax.random.fold_in(key, step), 0)
        loss, metrics = objective(base.unet.params, frozen, batch, micro_key)
        np.testing.assert_allclose(line["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(line["valid_latents"], metrics["valid_latents"], rtol=1e-6)
    loader.close()
    assert first["loss"] != second["loss"] and first["valid_latents"] < 1
    assert first.keys() == {"step", "loss", "lr", "grad_norm", "skipped", "valid_latents"}  # nothing new


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective": {"name": "autoencoder", "prompt_length": 2}},
            "config.run.latents=float32: the objective autoencoder needs images",
        ),
        ({"data__train": (("primitives/train", 1.0),)}, "wanted prepared datasets, not primitives/train"),
        ({"run__latents": "float16"}, "latents stored as 'float16': wanted one of float32, bfloat16"),
    ],
)
def test_what_has_no_latents_is_refused(run, changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        run(**changes)


def test_the_loader_gives_the_same_frames_and_flips(data):
    found = cached(data)
    options = {"batch_size": 4, "seed": 3}
    pixels, stored = (make_loader([(source, 1)], **options) for source in (split_of(data), found))
    plan = stored.get_state()["plan"]
    assert plan == pixels.get_state()["plan"]
    batch = next(stored)
    stored.close()
    for row in range(4):
        frame, flip = stored._batches.plan.frames(0)[row], stored._batches.plan.flips(0)[row]
        np.testing.assert_array_equal(batch["latents"][row], found.sample(int(frame), bool(flip))["latents"])


# ------------------------------------------------------------------------------------------------ stopped, and mistaken


def rewritten(folder, records):
    for path in folder.glob("*.array_record"):
        path.unlink()
    store.write_shard(folder / "00000.array_record", records)


def test_damaged_latents_cost_one_line_that_names_them(tmp_path):
    folder = tmp_path / "latents-train"
    good = store.to_record(np.zeros((2, 2, 3, 4), np.float32), np.ones((2, 3, 1), bool), "float32")

    def begin(**changes):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "fingerprint.json").write_text(json.dumps({"dtype": "float32", "frames": 1} | changes))
        rewritten(folder, [good, good])

    begin()
    assert store.LatentSplit(folder).sample(0, True)["latents"].shape == (2, 2, 3, 4)
    for dtype in ("float64", 3, None, ["float32"], {}):
        begin(dtype=dtype)
        with pytest.raises(ValueError, match=r"fingerprint\.json: dtype: wanted 'float32' or 'bfloat16', found"):
            store.LatentSplit(folder)
    for frames in (2, 0, None, "1", [1], -1):
        begin(frames=frames)
        with pytest.raises(ValueError, match=r"latents-train: 2 records are not two for each frame; delete"):
            store.LatentSplit(folder)
    begin()
    os.mkfifo(folder / "00001.array_record")
    with pytest.raises(ValueError, match=r"latents-train: its files cannot be read .*FIFO"):
        store.LatentSplit(folder)
    begin()
    (folder / "00000.array_record").write_bytes(b"garbage" * 10**4)
    with pytest.raises(ValueError, match=r"latents-train: its files cannot be read") as caught:
        store.LatentSplit(folder)
    assert "\n" not in str(caught.value)
    huge = np.full(3, 65535, "<u2").tobytes()
    for bad in (good[:-1], good + b"x", b"", good[:5], huge + good[6:], bytes(6)):
        begin()
        rewritten(folder, [good, bad])
        split = store.LatentSplit(folder)
        assert split.sample(0, False)["latent_mask"].all()
        with pytest.raises(ValueError, match=r"latents-train: record 1: .*; delete the folder") as caught:
            split.sample(0, True)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_latents_of_something_else_are_refused_in_one_line(data):
    cached(data)
    for changes, words in [
        ({"seed": 1}, "vae was [0-9a-f]{16}, is [0-9a-f]{16}"),
        ({"size": (16, 32)}, r"size was \[16, 24\], is \[16, 32\]"),
        ({"antialias": False}, "antialias was True, is False"),
        ({"far_fill": False, "dtype": "bfloat16"}, "dtype was float32, is bfloat16; far_fill was True, is False"),
        ({"target": "normals"}, "target was depth, is normals"),
    ]:
        with pytest.raises(ValueError, match=rf"latents-train holds other latents: {words}\. Delete it"):
            cached(data, **changes)


def test_only_the_encoder_decides_what_latents_are():
    one, other = vae(), vae()
    other.params["decoder.conv_in.bias"] = other.params["decoder.conv_in.bias"] + 1
    assert encode_dataset.identity(one) == encode_dataset.identity(other)
    other.params["quant_conv.bias"] = other.params["quant_conv.bias"] + 1
    assert encode_dataset.identity(one) != encode_dataset.identity(other)


@pytest.mark.slow
def test_work_that_was_stopped_goes_on(data, monkeypatch):
    write, written = store.write_shard, []  # what was written whole

    def killed(path, records):
        if written:
            write(path, (record for record, _ in zip(records, range(2), strict=False)))
            path.rename(path.with_suffix(".unfinished"))
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, records)

    monkeypatch.setattr(store, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        cached(data)
    with pytest.raises(InterruptedError, match=r"stopped while encoding .*/mine/train; finished shards are kept"):
        cached(data, stopping=lambda: True)
    assert not store.folder_of(split_of(data)).exists()
    again = []
    monkeypatch.setattr(store, "write_shard", lambda path, records: (again.append(path.name), write(path, records)))
    found = cached(data)
    assert again == ["00001.array_record"] and len(found) == FRAMES
    assert sorted(path.name for path in store.folder_of(split_of(data)).iterdir()) == [
        *("00000.array_record", "00001.array_record", "fingerprint.json")
    ]
