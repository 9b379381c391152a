"""End-to-end fine-tuned checkpoints as published: zeros for noise, the estimate of x0 at the end, a range of their own.

The folder is laid out as the authors' are, and their way of running it is written out in PyTorch.
"""

import json
import shutil

import diffusers
import jax
import numpy as np
import oracle
import pytest
import torch
from PIL import Image

from marigold_jax import Marigold, evaluate, predict
from marigold_jax.inference.modality import MODALITIES, modality_of
from marigold_jax.inference.program import STARTS
from marigold_jax.runtime import compilation_cache
from marigold_jax.weights import model_folder
from marigold_jax.weights.model_index import OPTIONS, ModelIndex, override

TOLERANCE = 1e-4
SIZE = (16, 24)  # multiples of 8: no padding, no resizing
VAE = {  # two levels, to compile quickly
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.2",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}


def published(folder):
    """A folder as the authors': a DDPM scheduler, an index of Stable Diffusion's pipeline with nothing for safety."""
    pipe = oracle.pipeline(folder.parent, scheduler="v1-0")
    pipe.register_modules(vae=oracle.vae(**VAE))
    pipe.save_pretrained(folder)
    pipe.scheduler = diffusers.DDPMScheduler(
        **{key: value for key, value in oracle.SCHEDULE.items() if key != "set_alpha_to_one"},
        timestep_spacing="trailing",
    )
    pipe.scheduler.save_pretrained(folder / "scheduler")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    config |= {"set_alpha_to_one": False, "skip_prk_steps": True}  # keys of other schedulers travel along
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    parts = {key: value for key, value in index.items() if isinstance(value, list)}
    parts["scheduler"] = ["diffusers", "DDPMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(INDEX | parts))
    return pipe, folder


@pytest.fixture(scope="module")
def depth(tmp_path_factory):
    return published(tmp_path_factory.mktemp("published") / "marigold-e2e-ft-depth")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@torch.no_grad()
def in_torch(pipe, image, steps, latents=None):
    """Pixels (h, w, 3) of the decoded estimate of x0, as the authors' fork of Marigold's pipeline computes them."""
    scheduler = diffusers.DDIMScheduler(**oracle.SCHEDULE, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    scaling = pipe.vae.config.scaling_factor
    pixels = oracle.nchw(image[None].astype(np.float32) / 255 * 2 - 1)
    rgb = pipe.vae.encode(pixels).latent_dist.mode() * scaling
    ids = torch.tensor([[oracle.CLIP["bos_token_id"], oracle.CLIP["eos_token_id"]]])
    context = pipe.text_encoder(ids)[0]
    x = torch.zeros_like(rgb) if latents is None else oracle.nchw(latents)
    for t in scheduler.timesteps:
        output = pipe.unet(torch.cat([rgb, x], 1), t, context).sample
        step = scheduler.step(output, t, x)
        x = step.prev_sample
    return oracle.nhwc(pipe.vae.decode(step.pred_original_sample / scaling).sample)[0]


def as_depth(pixels):
    return (pixels.mean(-1, keepdims=True).clip(-1, 1) + 1) / 2


def test_depth_equals_the_published_way(depth, image):
    pipe, folder = depth
    wanted = as_depth(in_torch(pipe, image, 1))
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
    found = Marigold.from_pretrained(folder)(image, processing_resolution=0).prediction[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


def test_normals_equal_the_published_way_and_point_right(depth, image):
    pipe, folder = depth
    pixels = in_torch(pipe, image, 1)
    assert np.abs(pixels).max() > 1.1  # so that clipping would show
    wanted = pixels
    for _ in range(2):  # so it is done there
        wanted = wanted / (np.linalg.norm(wanted, axis=-1, keepdims=True) + 1e-5)
    found = Marigold.from_pretrained(folder, modality="normals")(image, processing_resolution=0).prediction[0]
    np.testing.assert_allclose(found, wanted * [-1, 1, 1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spacing", ["leading", None])
def test_timesteps_are_trailing_as_the_authors_force_them(depth, tmp_path, caplog, spacing):
    """Leading ones would ask for the cleanest timestep, 1, instead of the noisiest."""
    folder = shutil.copytree(depth[1], tmp_path / "e2e-depth")
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    if spacing is None:
        del config["timestep_spacing"]
    else:
        config["timestep_spacing"] = spacing
    file.write_text(json.dumps(config))
    pipe = Marigold.from_pretrained(folder)
    assert pipe.sampler().timesteps.tolist() == [999]
    assert f"{folder}: timestep_spacing is {spacing or 'absent'}, taking trailing, as the authors" in caplog.text
    assert pipe.sampler(1).b == Marigold.from_pretrained(depth[1]).sampler(1).b


def test_x0_can_be_had_from_noise(depth, image):
    pipe, folder = depth
    latents = np.random.default_rng(1).normal(size=(1, SIZE[0] // 2, SIZE[1] // 2, 4)).astype(np.float32)
    ours = Marigold.from_pretrained(folder, noise="gaussian", stretch=False)
    found = ours(image, num_inference_steps=4, latents=latents, processing_resolution=0).prediction[0]
    np.testing.assert_allclose(found, as_depth(in_torch(pipe, image, 4, latents)), rtol=0, atol=TOLERANCE)
    # The table alone tells DDIM's end from x0, and x0 is its default nowhere but here.
    plain = Marigold.from_pretrained(folder, x0=False)
    assert plain.sampler(1).b != ours.sampler(1).b


def test_zeros_give_the_same_bits_for_any_seed_and_any_batch(depth, image):
    pipe = Marigold.from_pretrained(depth[1])
    images = [image, image[::-1], image[:, ::-1]]
    alone = [pipe(one, processing_resolution=0).prediction[0] for one in images]
    for seed, batch_size in ((0, 1), (5, 2), (7, 3)):
        together = pipe(images, seed=seed, batch_size=batch_size, processing_resolution=0).prediction
        for one, same in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, same)


def test_an_ensemble_of_zeros_is_warned_of(depth, image, caplog, monkeypatch):
    monkeypatch.setattr(
        "marigold_jax.inference.pipeline.denoise_for",
        lambda *_: lambda *_: (np.zeros((1, *SIZE, 1), np.float32), None, None),
    )
    Marigold.from_pretrained(depth[1])(image, ensemble_size=3, processing_resolution=0)
    assert "every member is the same" in caplog.text


def test_stretching_sees_the_picture_and_not_its_padding():
    depth = np.random.default_rng(2).uniform(0.3, 0.6, (2, 5, 6, 1)).astype(np.float32)
    depth[:, 4], depth[:, :, 5] = 0.0, 1.0
    depth[1, :4, :5] = 0.5  # nothing to stretch
    mask = np.zeros((2, 5, 6), bool)
    mask[:, :4, :5] = True
    found = np.asarray(MODALITIES["depth"].alone(jax.numpy.asarray(depth), jax.numpy.asarray(mask), {"stretch": True}))
    inside = depth[0, :4, :5]
    wanted = (inside - inside.min()) / (inside.max() - inside.min())
    np.testing.assert_allclose(found[0, :4, :5], wanted, atol=1e-6)
    assert not found[1, :4, :5].any() and found.min() == 0 and found.max() == 1


# ----------------------------------------------------------------------------------------------------- which modality


def test_a_modality_that_the_checkpoint_denies_is_told(tmp_path, caplog):
    """The flag is obeyed: who names it may know better. But not without a word."""
    folder = oracle.save_pipeline(tmp_path / "checkpoint", "depth")
    assert Marigold.from_pretrained(folder, modality="depth").modality.name == "depth" and not caplog.records
    assert Marigold.from_pretrained(folder, modality="normals").modality.name == "normals"
    (record,) = caplog.records
    assert record.getMessage() == f"{folder}: model_index.json says depth; running it as normals, as requested"


@pytest.mark.parametrize(
    "name, options, modality",
    [
        ("x/stable-diffusion-e2e-ft-normals", {}, "normals"),
        ("marigold-e2e-ft-depth@main", {}, "depth"),
        ("marigold-e2e-ft-depth", {"modality": "normals"}, "normals"),
        ("normals/mine", {"modality": "depth"}, "depth"),
    ],
)
def test_a_flag_or_the_name_tells_depth_from_normals(name, options, modality):
    assert modality_of(override(ModelIndex(INDEX | {"_stretch": True}), name, **options)).name == modality


@pytest.mark.parametrize("name", ["mine", "normals/mine", "depth-and-normals"])
def test_a_name_that_does_not_tell_is_asked_about(name):
    with pytest.raises(ValueError, match="does not tell depth from normals; say which with --modality"):
        modality_of(override(ModelIndex(INDEX), name))


def test_the_name_of_a_checkpoint_that_says_what_it_is_means_nothing():
    assert modality_of(override(ModelIndex({"_class_name": "MarigoldDepthPipeline"}), "normals")).name == "depth"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"noise": "brown"}, "noise is 'brown', wanted one of gaussian, zeros, multi_resolution"),
        ({"modality": "heat"}, "modality is 'heat', wanted one of depth, normals"),
        ({"x_axis": "up"}, "x_axis is 'up', wanted one of right, left"),
    ],
)
def test_unknown_options(options, words):
    with pytest.raises(ValueError, match=words):
        override(ModelIndex(INDEX), "mine", **options)


def test_a_broken_index_is_named(depth):
    index = model_folder.load(depth[1]).index
    with pytest.raises(ValueError, match=r"model_index.json: _noise = 'brown': wanted one of 'gaussian'"):
        index.replace(noise="brown")


def test_every_start_has_its_flag():
    assert set(STARTS) == set(OPTIONS["noise"].values)
    fields = {name: np.asarray(start(jax.random.key(0), (16, 24, 4))) for name, start in STARTS.items()}
    assert not fields["zeros"].any()
    # Neighbours are alike where the noise is coarse.
    alike = {name: np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1] for name, x in fields.items() if name != "zeros"}
    assert alike["multi_resolution"] > 0.1 > abs(alike["gaussian"])


# --------------------------------------------------------------------------------------------------------- the programs


def test_the_flags_of_predict(depth, image, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "enable_cache", lambda: None)
    pipe, folder = depth
    Image.fromarray(image).save(tmp_path / "a.png")
    flags = ["--input", tmp_path / "a.png", "--output_dir", tmp_path / "out", "--checkpoint", folder, "--bucket", "8"]
    more = ["--modality", "normals", "--x_axis", "right", "--noise", "zeros", "--x0", "--no-stretch"]
    assert predict.main([*map(str, flags), *more, "--processing_res", "0"]) == 0
    clipped = in_torch(pipe, image, 1).clip(-1, 1)
    wanted = clipped / np.linalg.norm(clipped, axis=-1, keepdims=True)
    saved = np.load(tmp_path / "out" / "normals_npy" / "a_normals.npy")
    np.testing.assert_allclose(saved, wanted, rtol=0, atol=TOLERANCE)


def test_predict_asks_which_modality_in_one_line(depth, image, tmp_path, capsys):
    Image.fromarray(image).save(tmp_path / "a.png")
    mute = shutil.copytree(depth[1], tmp_path / "mute")
    flags = ["--input", tmp_path / "a.png", "--output_dir", tmp_path / "out", "--checkpoint", mute]
    assert predict.main([*map(str, flags)]) == 1
    assert "say which with --modality" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_evaluate_has_the_flags_too(capsys, tmp_path):
    flags = ["--dataset", "rooms", "--data_dir", str(tmp_path), "--output_dir", "out", "--noise", "zeros", "--x0"]
    arguments = evaluate.parse(flags)
    assert (arguments.noise, arguments.x0, arguments.stretch) == ("zeros", True, None)
    with pytest.raises(SystemExit):
        evaluate.parse([*flags, "--noise", "brown"])
    assert "invalid choice: 'brown'" in capsys.readouterr().err
