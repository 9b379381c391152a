"""The light VAE against diffusers' AutoencoderTiny: alone, in the pipeline, in either layout, and in training."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from PIL import Image

from marigold_jax import Marigold, predict
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.export import export
from marigold_jax.runs.start import start_from
from marigold_jax.training.objectives.end_to_end import end_to_end_objective
from marigold_jax.weights import component, model_folder, torch_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A light VAE's own folder, as they are published."""
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    oracle.tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint with a VAE of the usual kind."""
    return oracle.save_pipeline(tmp_path_factory.mktemp("plain") / "checkpoint")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """diffusers' pipeline with a light VAE, and its folder."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    pipe = oracle.pipeline(folder.parent)
    pipe.register_modules(vae=oracle.tiny_vae())
    pipe.save_pretrained(folder)
    return pipe, folder


def photograph(height, width):
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).resize((width, height))


# ------------------------------------------------------------------------------------------------------------ diffusers


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (29, 43)])  # sides that are not multiples of 8 are rounded up
def test_encode_and_decode(tmp_path, size):
    theirs = oracle.tiny_vae(scaling_factor=0.7)
    theirs.save_pretrained(tmp_path)
    part = component.load_part("vae", tmp_path, jnp.float32)
    ours = functional.merge(part.structure, part.params)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    wanted = theirs.encode(oracle.nchw(pixels)).latents * 0.7
    latents = ours.encode(jnp.asarray(pixels))
    assert latents.shape == (2, -(-size[0] // 8), -(-size[1] // 8), 4) and wanted.std() > 0.1
    np.testing.assert_allclose(latents, oracle.nhwc(wanted), rtol=0, atol=1e-5)
    strong = 6 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))  # far beyond the clamp
    wanted = theirs.decode(strong / 0.7).sample
    assert wanted.std() > 0.1
    for more in ((), (jax.checkpoint,)):
        decoded = ours.decode(jnp.asarray(oracle.nhwc(strong)), *more)
        np.testing.assert_allclose(decoded, oracle.nhwc(wanted), rtol=0, atol=1e-4)


def test_the_published_size_has_these_names():
    config = AutoencoderTinyConfig()
    _, shapes = functional.abstract(lambda rngs: AutoencoderTiny(config, rngs))
    theirs = {name: tuple(x.shape) for name, x in diffusers.AutoencoderTiny().state_dict().items()}
    matches = torch_names.match({path: x.shape for path, x in shapes.items()}, theirs)
    assert sorted(matches.values()) == sorted(theirs) and len(matches) == 134


def test_the_whole_pipeline(tiny):
    theirs, folder = tiny
    theirs.set_progress_bar_config(disable=True)
    ours = Marigold.from_pretrained(folder)
    image = photograph(50, 70)
    latents = np.random.default_rng(0).normal(size=(1, 6, 8, 4)).astype(np.float32)
    options = {"num_inference_steps": 2, "output_latent": True}
    wanted = theirs(image, latents=oracle.nchw(latents), **options)
    found = ours(image, latents=latents, **options)
    assert found.prediction.shape == (1, 50, 70, 1) and found.prediction.std() > 0.01
    np.testing.assert_allclose(found.prediction, wanted.prediction, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.latent, oracle.nhwc(wanted.latent), rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("layout", ["diffusers", "native"])
def test_both_layouts_keep_the_class(tiny, tmp_path, layout):
    loaded = model_folder.load(tiny[1])
    model_folder.save(loaded, tmp_path / "copy", layout)
    again = model_folder.load(tmp_path / "copy")
    assert again.vae.config == loaded.vae.config and again.vae.structure == loaded.vae.structure
    jax.tree.map(np.testing.assert_array_equal, again.vae.params, loaded.vae.params)
    if layout == "diffusers":
        assert json.loads((tmp_path / "copy" / "model_index.json").read_text())["vae"] == [
            "diffusers",
            "AutoencoderTiny",
        ]
        theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "copy" / "vae")
        assert theirs.config.block_out_channels == [8] * 4
        for name, tensor in tiny[0].vae.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], tensor), name


def test_any_checkpoint_takes_it(tiny, plain, folder):
    """The oracle's UNet is the same in both checkpoints, so with the same VAE they are the same."""
    wanted = Marigold.from_pretrained(tiny[1])
    for vae in (folder, tiny[1]):
        found = Marigold.from_pretrained(plain, vae=vae)
        assert found.structures == wanted.structures
        jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    assert Marigold.from_pretrained(plain).structures != wanted.structures


def test_predict_takes_it(plain, folder, tmp_path, capsys):
    photograph(24, 32).save(tmp_path / "a.png")
    arguments = ["--input", str(tmp_path / "a.png"), "--checkpoint", str(plain), "--processing_res", "32"]
    assert predict.main([*arguments, "--output_dir", str(tmp_path / "out"), "--vae", str(folder), "--bucket", "8"]) == 0
    wanted = Marigold.from_pretrained(plain, vae=folder)(photograph(24, 32), processing_resolution=32).prediction
    np.testing.assert_allclose(np.load(tmp_path / "out" / "depth_npy" / "a_depth.npy"), wanted[0, ..., 0], atol=1e-5)
    capsys.readouterr()
    assert (
        predict.main([*arguments, "--output_dir", str(tmp_path / "none"), "--vae", str(tmp_path / "no" / "where")]) == 1
    )
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_channels": 16}, r"latents of 16 channels, 8 x 8 pixels each; .* trained with 4 channels, 8 x 8"),
        (
            {key: value[:3] for key, value in oracle.TINY_VAE.items()},
            r"latents of 4 channels, 4 x 4 pixels each; .* trained with 4 channels, 8 x 8 pixels. Take a VAE",
        ),
    ],
)
def test_latents_of_another_shape_are_refused(plain, tmp_path, options, words):
    oracle.tiny_vae(**options).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=words) as error:
        Marigold.from_pretrained(plain, vae=tmp_path / "vae")
    assert str(tmp_path / "vae") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"_class_name": "AsymmetricAutoencoderKL"},
            "class 'AsymmetricAutoencoderKL', wanted AutoencoderKL or Autoencod",
        ),
        ({"act_fn": "silu"}, "act_fn = 'silu', only 'relu' is implemented"),
        ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor = 3, only 2"),
        ({"num_decoder_blocks": [1, 1]}, r"num_decoder_blocks = \(1, 1\): wanted 4 of both"),
        ({"decoder_block_out_channels": [8, 8, 8, 16]}, "all widths equal"),
    ],
)
def test_what_is_not_implemented_is_refused(folder, tmp_path, change, words):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words) as error:
        component.load_part("vae", tmp_path, jnp.float32)
    assert str(tmp_path / "config.json") in str(error.value)


# ------------------------------------------------------------------------------------------------------------- training


def test_a_unet_trains_between_its_halves(tiny, tmp_path):
    """The loss of end-to-end fine-tuning, through both, is PyTorch's. What comes out is such a checkpoint again."""
    theirs, folder = tiny
    base = start_from(ModelOptions(str(folder)))
    schedule = NoiseSchedule.from_config(base.scheduler)
    objective = end_to_end_objective(base.unet.structure, base.vae.structure, schedule, target="normals")
    random = np.random.default_rng(0)
    normals = random.normal(size=(2, 16, 24, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    rgb = random.uniform(-1, 1, normals.shape)
    batch = {"rgb": jnp.asarray(rgb, jnp.float32), "normals": jnp.asarray(normals, jnp.float32)}
    frozen = {"vae": base.vae.params, "empty_prompt": jnp.asarray(base.empty_prompt[2])}
    loss, _ = jax.jit(objective)(base.unet.params, frozen, batch, jax.random.key(0))
    with torch.no_grad():
        rgb = theirs.vae.encode(oracle.nchw(batch["rgb"])).latents
        prompt = torch.from_numpy(base.empty_prompt[2]).expand(2, -1, -1)
        velocity = theirs.unet(torch.cat([rgb, torch.zeros_like(rgb)], 1), 999, prompt).sample
        n = theirs.vae.decode(-float(schedule.sigma[999]) * velocity).sample
        n = (n / (n.norm(dim=1, keepdim=True) + 1e-5)).clamp(-1, 1)
        wanted = torch.arccos((n * oracle.nchw(batch["normals"])).sum(1).clamp(-1, 1)).mean()
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
    exported = export(base, 1, tmp_path)
    assert type(model_folder.load(exported).vae.config) is AutoencoderTinyConfig
