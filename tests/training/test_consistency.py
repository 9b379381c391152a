"""Few-step distillation against PyTorch and diffusers' schedulers: loss, gradients, and what enters where."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch

from marigold_jax.diffusion.losses import masked_pseudo_huber
from marigold_jax.diffusion.samplers import boundary_scalings, sampler_table
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.models import unet, vae
from marigold_jax.training.objectives.consistency import consistency_draw, consistency_loss, consistency_objective
from marigold_jax.training.objectives.low_rank import of_corrections
from marigold_jax.weights import lora, torch_names
from marigold_jax.weights.component import load_component

GRID = [199, 399, 599, 799, 999]
HUBER = 1e-3
UNET = {  # one level, quick to compile
    "block_out_channels": (16,),
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
VAE = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
ROLES = {"student": 1, "teacher": 2, "target": 3}  # three networks that agree in nothing but their structure


def scheduler_config(prediction_type):
    return oracle.SCHEDULE | {"rescale_betas_zero_snr": True, "prediction_type": prediction_type}


def schedule_of(prediction_type):
    return NoiseSchedule.from_config(
        SchedulerConfig({"_class_name": "LCMScheduler"} | scheduler_config(prediction_type))
    )


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """In PyTorch the three UNets and the VAE; here the structures and parameters of the same."""
    folder = tmp_path_factory.mktemp("networks")
    theirs = {role: oracle.unet(seed, **UNET) for role, seed in ROLES.items()} | {"vae": oracle.vae(**VAE)}
    ours = {}
    for name, network in theirs.items():
        network.save_pretrained(folder / name)
        kind = (vae.VAEConfig, vae.VAE, vae.FIXED) if name == "vae" else (unet.UNetConfig, unet.UNet, unet.FIXED)
        ours[name] = load_component(folder / name, *kind)[1:]
    return theirs, ours


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    count = len(GRID)
    return {
        "rgb": random.uniform(-1, 1, (count, 16, 24, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (count, 16, 24, 1)).astype(np.float32),
        "mask": random.random((count, 16, 24, 1)) < 0.95,
        "noise": random.normal(size=(count, 8, 12, 4)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def prompt():
    return np.random.default_rng(9).normal(size=(2, 24)).astype(np.float32)


def torch_loss(networks, batch, prompt, prediction_type):
    """Sample by sample, one timestep of the grid each, every step of a schedule taken by diffusers."""
    ddim = diffusers.DDIMScheduler(**scheduler_config(prediction_type))
    ddim.set_timesteps(len(GRID))  # one step of DDIM is then 200 timesteps long
    lcm = diffusers.LCMScheduler(**scheduler_config(prediction_type), timestep_scaling=10.0)
    scaling = networks["vae"].config.scaling_factor
    errors = []
    for i, timestep in enumerate(GRID):
        one = {key: oracle.nchw(value[i : i + 1]) for key, value in batch.items()}
        with torch.no_grad():
            pictures = torch.cat([one["rgb"], one["target"].repeat(1, 3, 1, 1)])
            rgb, x0 = (networks["vae"].encode(pictures).latent_dist.mode() * scaling).split(1)

        def network(role, x, t, rgb=rgb):
            return networks[role](torch.cat([rgb, x], 1), t, torch.from_numpy(prompt)[None]).sample

        def consistent(role, x, t, network=network):
            c_skip, c_out = lcm.get_scalings_for_boundary_condition_discrete(t)
            return c_skip * x + c_out * ddim.step(network(role, x, t), t, x).pred_original_sample

        x_t = ddim.add_noise(x0, one["noise"], torch.tensor([timestep]))
        found = consistent("student", x_t, timestep)
        with torch.no_grad():
            before = ddim.step(network("teacher", x_t, timestep), timestep, x_t).prev_sample
            wanted = consistent("target", before, max(timestep - 200, 0))
        invalid = torch.nn.functional.max_pool2d((~one["mask"]).float(), 2, 2).bool().repeat(1, 4, 1, 1)
        errors.append((found - wanted)[~invalid])
    return (torch.sqrt(torch.cat(errors) ** 2 + HUBER**2) - HUBER).mean()


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_loss_and_gradients_equal_pytorch(networks, batch, prompt, prediction_type):
    theirs, ours = networks
    loss_of = consistency_loss(ours["student"][0], ours["vae"][0], schedule_of(prediction_type), huber=HUBER)
    frozen = {"vae": ours["vae"][1], "empty_prompt": prompt, "unet": ours["teacher"][1], "target": ours["target"][1]}
    (loss, metrics), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        ours["student"][1], frozen, batch, jnp.asarray(GRID), batch["noise"]
    )
    theirs["student"].zero_grad()
    wanted = torch_loss(theirs, batch, prompt, prediction_type)
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=2e-6)  # float32 is 1.0e-6 from float64 here
    assert 0.5 < metrics["valid_latents"] < 1
    parameters = dict(theirs["student"].named_parameters())
    assert len(parameters) == len(gradients)
    for path, gradient in gradients.items():
        want = parameters[torch_names.torch_name(path, gradient.ndim)].grad.numpy()
        got = torch_names.to_torch(path, np.asarray(gradient))
        assert np.linalg.norm(want) > 1e-6, f"{path}: no gradient to compare"
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want), path


def test_draws_are_the_timesteps_of_the_sampler():
    schedule, shape = schedule_of("v_prediction"), (2000, 1, 1, 4)
    timesteps, noise = consistency_draw(schedule)(jax.random.key(0), shape)
    assert (timesteps.dtype, noise.shape, noise.dtype) == (jnp.int32, shape, jnp.float32)
    found, counts = np.unique(timesteps, return_counts=True)
    lcm = {"_class_name": "LCMScheduler", "original_inference_steps": 5}
    config = SchedulerConfig(scheduler_config("v_prediction") | lcm)
    assert found.tolist() == GRID == sampler_table(config, 5).timesteps[::-1].tolist()
    assert abs(counts - 400).max() < 80
    assert abs(float(noise.std()) - 1) < 0.05 and abs(float(noise.mean())) < 0.05


def test_the_answer_at_timestep_zero_is_what_came_in():
    c_skip, c_out = boundary_scalings(np.array([0, 199]), 10.0)
    assert (c_skip[0], c_out[0]) == (1, 0)
    np.testing.assert_allclose((c_skip[1], c_out[1]), (0.25 / (1990**2 + 0.25), 1990 / (1990**2 + 0.25) ** 0.5))


def test_pseudo_huber_equals_numpy():
    random = np.random.default_rng(0)
    prediction = random.normal(size=(2, 4, 5, 3)).astype(np.float32)
    target = prediction + np.float32(10.0) ** random.uniform(-6, 1, prediction.shape).astype(np.float32)
    mask = random.random((2, 4, 5, 1)) < 0.6
    everywhere = np.broadcast_to(mask, target.shape)
    prediction[~everywhere] = np.inf  # what is invalid must not matter
    error = prediction[everywhere].astype(np.float64) - target[everywhere]
    value, gradient = jax.value_and_grad(masked_pseudo_huber)(
        jnp.asarray(prediction), jnp.asarray(target), jnp.asarray(mask), HUBER
    )
    np.testing.assert_allclose(value, np.mean(np.sqrt(error**2 + HUBER**2) - HUBER), rtol=1e-6)
    np.testing.assert_allclose(gradient[everywhere], error / np.sqrt(error**2 + HUBER**2) / error.size, rtol=1e-5)
    assert not gradient[~everywhere].any()
    nothing = masked_pseudo_huber(jnp.ones((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 1), bool), HUBER)
    assert nothing == 0


def test_corrections_of_low_rank_reach_student_and_target_alike():
    """Both are the base with a tree of corrections; the teacher is the base."""
    random = np.random.default_rng(0)
    base = {name: random.normal(size=(4, 4)) for name in ("a.attn1.to_q.kernel", "conv_in.kernel")}
    trees = [lora.init(base, 2, jax.random.key(seed)) for seed in (1, 2)]
    trees = [{name: x + 1 for name, x in tree.items()} for tree in trees]

    def objective(params, frozen, batch, key):
        return params, frozen

    params, frozen = of_corrections(objective)(trees[0], {"unet": base, "target": trees[1]}, {}, None)
    for found, tree in ((params, trees[0]), (frozen["target"], trees[1])):
        jax.tree.map(np.testing.assert_array_equal, found, lora.merge(base, tree))
    assert frozen["unet"] is base
    _, frozen = of_corrections(objective)(trees[0], {"unet": base}, {}, None)
    assert frozen.keys() == {"unet"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": 7}, "grid is 7, wanted a divisor of the 1000 timesteps"),
        ({"grid": 0}, "grid is 0"),
        ({"huber": 0.0}, "huber is 0.0, wanted more than 0"),
        ({"target": "albedo"}, "target is 'albedo', wanted one of depth, normals"),
        ({"remat": "all"}, "remat is 'all', wanted one of none, blocks, dots"),
    ],
)
def test_unknown_options_are_refused(networks, options, words):
    _, ours = networks
    with pytest.raises(ValueError, match=words):
        consistency_objective(ours["student"][0], ours["vae"][0], schedule_of("v_prediction"), **options)
