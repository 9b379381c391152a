"""What the papers' numbers were made with: the authors' own inference, told again in PyTorch, and ours beside it.

torchvision's `resize` of a tensor is `interpolate` with antialiasing; a uint8 tensor becomes float32 first, and is
rounded afterwards. The rest of the procedure is that of the authors' depth and normals pipelines; the networks and the
scheduler are diffusers', as theirs are.
"""

import json

import numpy as np
import oracle
import pytest
import torch
from PIL import Image
from torch.nn import functional

from marigold_jax import Marigold, evaluate, prepare

TOLERANCE = 1e-5


def picture(height, width):
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    random = np.random.default_rng(height + width)
    waves = [np.sin(9 * x * random.uniform(0.5, 2) + 7 * y * random.uniform(-1, 1) + c) for c in range(3)]
    image = np.stack(waves, axis=-1) * 100 + 128 + random.normal(size=(height, width, 3)) * 20
    return image.clip(0, 255).astype(np.uint8)


def resized(tensor, size):
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    values = functional.interpolate(tensor.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return values.round().to(torch.uint8) if tensor.dtype == torch.uint8 else values


@torch.no_grad()
def official(pipe, image, latents, resolution, steps):
    """(h, w) depth or (h, w, 3) normals of a uint8 (h, w, 3) picture."""
    rgb = torch.from_numpy(image).permute(2, 0, 1)[None]
    height, width = rgb.shape[-2:]
    if resolution > 0:
        factor = min(resolution / width, resolution / height)
        rgb = resized(rgb, (int(height * factor), int(width * factor)))
    rgb = rgb / 255.0 * 2.0 - 1.0
    mean, _ = pipe.vae.quant_conv(pipe.vae.encoder(rgb)).chunk(2, dim=1)
    condition, x = mean * 0.18215, oracle.nchw(latents)
    assert condition.shape == x.shape
    pipe.scheduler.set_timesteps(steps)
    words = pipe.tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids
    context = pipe.text_encoder(words)[0]
    for timestep in pipe.scheduler.timesteps:
        output = pipe.unet(torch.cat([condition, x], dim=1), timestep, encoder_hidden_states=context).sample
        x = pipe.scheduler.step(output, timestep, x).prev_sample
    pixels = pipe.vae.decoder(pipe.vae.post_quant_conv(x / 0.18215))
    if isinstance(pipe, oracle.PIPELINES["depth"]):
        depth = (pixels.mean(dim=1, keepdim=True).clip(-1, 1) + 1) / 2
        return resized(depth, (height, width))[0, 0].numpy().clip(0, 1)
    normals = pixels.clip(-1, 1)
    normals = normals / normals.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return oracle.nhwc(resized(normals, (height, width)))[0].clip(-1, 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The networks in diffusers, and the folder of the same checkpoint, by modality."""
    made = {}

    def make(modality):
        if modality not in made:
            folder = tmp_path_factory.mktemp(modality)
            theirs = oracle.pipeline(folder, modality)
            if modality == "normals":  # no vector is so short that its direction is the networks' rounding
                theirs.vae.decoder.conv_out.bias.data[2] += 1
            theirs.save_pretrained(folder / "checkpoint")
            made[modality] = theirs, folder / "checkpoint"
        return made[modality]

    return make


@pytest.mark.parametrize(
    ("modality", "size", "resolution", "latent"),
    [
        ("depth", (144, 216), 108, (9, 13)),  # as ETH3D: 72x108, predicted at 72x104
        ("normals", (50, 70), 0, (6, 8)),  # its own size, which is no multiple of 8
        ("depth", (40, 60), 64, (5, 8)),  # grown to 42x64; the prediction shrinks again, antialiased
        ("normals", (75, 50), 60, (7, 5)),  # a resolution that is no multiple of 8
    ],
)
def test_equal_to_the_authors_procedure(pair, modality, size, resolution, latent):
    theirs, checkpoint = pair(modality)
    ours, image = Marigold.from_pretrained(checkpoint), picture(*size)
    latents = np.random.default_rng(0).normal(size=(1, *latent, 4)).astype(np.float32)
    wanted = official(theirs, image, latents, resolution, steps=2)
    options = {"num_inference_steps": 2, "processing_resolution": resolution, "latents": latents}
    (found,) = ours(image, **options, resize="official").prediction
    assert wanted.std() > 0.02  # a flat map would prove nothing
    np.testing.assert_allclose(found.squeeze(), wanted, rtol=0, atol=TOLERANCE)
    if modality == "normals":
        assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() > 1e-3  # they are not restored


def test_an_ensemble_is_stretched_too(pair):
    _, checkpoint = pair("depth")
    image = picture(50, 70)
    out = Marigold.from_pretrained(checkpoint)(
        [image, image[:, ::-1]], ensemble_size=3, processing_resolution=0, resize="official", output_uncertainty=True
    )
    assert out.prediction.shape == out.uncertainty.shape == (2, 50, 70, 1)
    assert np.isfinite(out.prediction).all() and np.isfinite(out.uncertainty).all()
    assert out.prediction.min() >= 0 and out.prediction.max() <= 1 and out.prediction[0].std() > 0.02


def test_there_is_no_bucket_in_it(pair):
    ours = Marigold.from_pretrained(pair("depth")[1])
    for options in ({"resize": "official", "bucket": 16}, {"resize": "theirs"}):
        with pytest.raises(ValueError, match="wanted one of diffusers, official, or a bucket"):
            ours(picture(16, 16), **options)


def test_evaluate_predicts_as_the_authors_do(pair, tmp_path, capsys):
    theirs, checkpoint = pair("depth")
    raw = tmp_path / "raw"
    for kind in ("rgb", "depth"):
        (raw / kind).mkdir(parents=True)
    image = picture(50, 70)
    Image.fromarray(image).save(raw / "rgb" / "a.png")
    Image.fromarray(np.uint16(1000 + 20 * np.arange(3500).reshape(50, 70))).save(raw / "depth" / "a.png")
    flags = ["--data_dir", str(tmp_path), "--name", "mine", "--split", "test", "--unit", "mm", "--workers", "1"]
    assert prepare.main(["folder", "--raw_dir", str(raw), *flags]) == 0
    flags = ["--dataset", "mine", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    flags += ["--checkpoint", str(checkpoint), "--denoise_steps", "1", "--processing_res", "60", "--noise", "zeros"]
    assert evaluate.main([*flags, "--resize", "official"]) == 0
    wanted = official(theirs, image, np.zeros((1, 5, 7, 4), np.float32), 60, steps=1)
    (made,) = (tmp_path / "out" / "mine" / "predictions").rglob("*.npy")
    np.testing.assert_allclose(np.load(made), wanted, rtol=0, atol=TOLERANCE)
    assert json.loads((tmp_path / "out/mine/metrics.json").read_text())["settings"]["resize"] == "official"
    assert evaluate.main([*flags[:-4], "--processing_res", "64", "--noise", "zeros"]) == 1
    assert "resize was official, is diffusers" in capsys.readouterr().err
