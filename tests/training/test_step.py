"""The training step against PyTorch, and its promises: no step on bad numbers, the same result on any devices."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import torch
from jax.sharding import PartitionSpec

from marigold_jax.diffusion import noise
from marigold_jax.diffusion.losses import latent_mask, masked_mse
from marigold_jax.diffusion.optimiser import iter_exponential, make_optimiser
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.models import functional, unet, vae
from marigold_jax.models.config import config_from_dict
from marigold_jax.runtime import sharding
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.objectives.contract import REMAT
from marigold_jax.training.objectives.diffusion import diffusion_draw, diffusion_loss, diffusion_objective
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.weights import torch_names
from marigold_jax.weights.component import load_component

ZERO_SNR = oracle.SCHEDULE | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
SCHEDULE = NoiseSchedule.from_config(SchedulerConfig({"_class_name": "DDIMScheduler"} | ZERO_SNR))
PROMPT = np.random.default_rng(9).normal(size=(2, 24)).astype(np.float32)
LARGE = 3e-4  # a learning rate at which five steps move parameters by far more than the tolerance


def a_batch(seed, b=2, h=64, w=64, valid=0.995):
    random = np.random.default_rng(seed)
    return {
        "rgb": random.uniform(-1, 1, (b, h, w, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (b, h, w, 1)).astype(np.float32),
        "mask": random.random((b, h, w, 1)) < valid,
    }


def with_draw(batch, seed, cell=8):
    """The batch with its timesteps and noise, which both sides then share."""
    random = np.random.default_rng(seed)
    b, h, w, _ = batch["rgb"].shape
    return batch | {
        "timesteps": random.integers(0, 1000, b).astype(np.int32),
        "noise": random.normal(size=(b, h // cell, w // cell, 4)).astype(np.float32),
    }


def drawn(loss):
    """The objective that takes its timesteps and noise from the batch."""

    def objective(params, frozen, batch, key):
        return loss(params, frozen, batch, batch["timesteps"], batch["noise"])

    return objective


# ----------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("cell", [8, 2])
def test_a_latent_counts_if_all_its_pixels_do(cell):
    mask = np.random.default_rng(0).random((3, 32, 48, 1)) < 0.99
    invalid = oracle.nchw(~mask).float()
    wanted = torch.nn.functional.max_pool2d(invalid, cell, cell) == 0
    found = latent_mask(jnp.asarray(mask), cell)
    assert 0 < found.mean() < 1
    np.testing.assert_array_equal(found, oracle.nhwc(wanted))


def test_images_that_do_not_fill_their_latents_are_refused():
    with pytest.raises(ValueError, match="images are 12 x 16, wanted multiples of 8"):
        latent_mask(jnp.ones((1, 12, 16, 1), bool))


def test_masked_mse_pools_all_valid_elements():
    random = np.random.default_rng(0)
    prediction, target = random.normal(size=(2, 2, 4, 5, 3)).astype(np.float32)
    mask = random.random((2, 4, 5, 1)) < np.array([0.9, 0.2])[:, None, None, None]
    prediction[~np.broadcast_to(mask, prediction.shape)] = np.inf  # what is invalid must not matter
    value, gradient = jax.value_and_grad(masked_mse)(jnp.asarray(prediction), jnp.asarray(target), jnp.asarray(mask))
    everywhere = np.broadcast_to(mask, target.shape)
    error = prediction[everywhere].astype(np.float64) - target[everywhere]
    np.testing.assert_allclose(value, np.mean(error**2), rtol=1e-6)
    np.testing.assert_allclose(gradient[everywhere], 2 * error / error.size, rtol=1e-5)
    assert not gradient[~everywhere].any()


def test_masked_mse_of_nothing_is_zero():
    x = jnp.ones((1, 2, 2, 4))
    value, gradient = jax.value_and_grad(masked_mse)(x, 3 * x, jnp.zeros((1, 2, 2, 1), bool))
    assert value == 0 and not gradient.any()


@pytest.mark.slow
def test_draws_are_the_noise_of_the_table():
    key, shape = jax.random.key(3), (4, 6, 8, 4)
    timestep_key, noise_key = jax.random.split(key)
    for annealed in (True, False):
        timesteps, found = diffusion_draw(SCHEDULE, strength=0.7, annealed=annealed)(key, shape)
        assert (timesteps.dtype, timesteps.shape) == (jnp.int32, (4,))
        strength = 0.7 * timesteps.astype(jnp.float32) / 1000 if annealed else jnp.full(4, 0.7)
        wanted = noise.multi_resolution_noise(noise_key, shape, strength)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        wanted = noise.offset_noise(noise_key, shape, strength)
        _, found = diffusion_draw(SCHEDULE, noise="offset", strength=0.7, annealed=annealed)(key, shape)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    _, found = diffusion_draw(SCHEDULE, noise="gaussian")(key, shape)
    np.testing.assert_array_equal(found, noise.gaussian(noise_key, shape))
    many, _ = diffusion_draw(SCHEDULE, noise="gaussian")(timestep_key, (20_000, 1, 1, 1))
    assert (int(many.min()), int(many.max())) == (0, 999)
    assert abs(float(many.mean()) - 499.5) < 4 * 289 / 20_000**0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": "pink"}, "noise is 'pink', wanted one of gaussian, offset, multi_resolution"),
        ({"target": "albedo"}, "target is 'albedo', wanted one of depth, normals"),
        ({"remat": "all"}, "remat is 'all', wanted one of none, blocks, dots"),
    ],
)
def test_unknown_options_are_refused(mini, options, words):
    with pytest.raises(ValueError, match=words):
        diffusion_objective(mini[0], mini[2], SCHEDULE, **options)


# -------------------------------------------------------------------------------------------------------------- PyTorch


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Random PyTorch networks, and the same here: (theirs, structure, params) of the UNet and of the VAE."""
    folder = tmp_path_factory.mktemp("networks")
    theirs = {"unet": oracle.unet(), "vae": oracle.vae()}
    kinds = {"unet": (unet.UNetConfig, unet.UNet, unet.FIXED), "vae": (vae.VAEConfig, vae.VAE, vae.FIXED)}
    for name, network in theirs.items():
        network.save_pretrained(folder / name)
    return {name: (theirs[name], *load_component(folder / name, *kinds[name])[1:]) for name in kinds}


@pytest.fixture(scope="module")
def steps(networks):
    """Compiled once: `accumulate`, `update`, and a fresh state; two micro-batches to a step."""
    (_, unet_structure, params), (_, vae_structure, vae_params) = networks["unet"], networks["vae"]
    optimiser = make_optimiser("adam", iter_exponential(LARGE, total_steps=6, warmup_steps=2))
    objective = drawn(diffusion_loss(unet_structure, vae_structure, SCHEDULE))
    accumulate, update = make_steps(objective, optimiser, accumulation=2, seed=0)
    frozen = {"vae": vae_params, "empty_prompt": jnp.asarray(PROMPT)}
    fresh = jax.tree.map(np.asarray, init_state(params, optimiser))

    def init():
        return jax.tree.map(jnp.array, fresh)

    def one_step(state, batches):
        accumulator = None
        for micro, batch in enumerate(batches):
            accumulator = accumulate(accumulator, state["params"], frozen, batch, state["step"], micro)
        return accumulator

    return one_step, update, init


class Pytorch:
    """The published training loop, in its own words: PyTorch, diffusers, NCHW."""

    def __init__(self, networks):
        self.unet, self.vae = (networks[name][0] for name in ("unet", "vae"))
        self.unet.load_state_dict(oracle.unet().state_dict())
        self.scheduler = diffusers.DDIMScheduler(**ZERO_SNR)
        self.optimiser = torch.optim.Adam(self.unet.parameters(), lr=LARGE)
        multiplier = iter_exponential(1.0, total_steps=6, warmup_steps=2)  # compared with theirs in test_optimiser.py
        self.decay = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda n: float(multiplier(n)))

    @torch.no_grad()
    def encode(self, pixels):
        return self.vae.encode(pixels).latent_dist.mode() * 0.18215

    def loss(self, batch):
        rgb, x0 = self.encode(oracle.nchw(batch["rgb"])), self.encode(oracle.nchw(batch["target"]).repeat(1, 3, 1, 1))
        invalid = torch.nn.functional.max_pool2d(oracle.nchw(~batch["mask"]).float(), 8, 8).bool()
        mask = ~invalid.repeat(1, 4, 1, 1)
        timesteps, noise = torch.from_numpy(batch["timesteps"]).long(), oracle.nchw(batch["noise"])
        noisy = self.scheduler.add_noise(x0, noise, timesteps)
        prompt = torch.from_numpy(PROMPT)[None].repeat(len(rgb), 1, 1)
        output = self.unet(torch.cat([rgb, noisy], dim=1), timesteps, prompt).sample
        target = self.scheduler.get_velocity(x0, noise, timesteps)
        return torch.nn.functional.mse_loss(output[mask], target[mask])

    def backward(self, batches):
        self.optimiser.zero_grad()
        losses = [self.loss(batch) for batch in batches]
        for loss in losses:
            (loss / len(batches)).backward()
        return sum(losses).item() / len(batches)

    def step(self):
        rate = self.decay.get_last_lr()[0]
        self.optimiser.step()
        self.decay.step()
        return rate


def assert_same_parameters(ours, theirs, close):
    """Calls close(name, ours, theirs) on every parameter in PyTorch's layout."""
    theirs = dict(theirs)
    assert len(ours) == len(theirs)
    for path, array in ours.items():
        name = torch_names.torch_name(path, array.ndim)
        close(name, torch_names.to_torch(path, np.asarray(array)), theirs[name].detach().numpy())


@pytest.mark.slow
def test_loss_and_gradients_are_pytorchs(networks, steps):
    one_step, _, init = steps
    batches = [with_draw(a_batch(seed), seed) for seed in (1, 2)]
    batches[0]["timesteps"][0] = 999  # pure noise, under zero terminal SNR
    pytorch = Pytorch(networks)
    wanted = pytorch.backward(batches)
    accumulator = one_step(init(), batches)
    np.testing.assert_allclose(accumulator["loss"], wanted, rtol=1e-6)

    def close(name, ours, theirs):
        assert np.linalg.norm(theirs) > 1e-4, f"{name}: no gradient to compare"
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 2e-5, f"{name}: {error:.1e}"

    assert_same_parameters(accumulator["gradients"], ((n, p.grad) for n, p in pytorch.unet.named_parameters()), close)


@pytest.mark.slow
def test_five_steps_are_pytorchs(networks, steps):
    """Two micro-batches to a step, of one shape or of two: sources of different sizes are mixed."""
    one_step, update, init = steps
    pytorch, state = Pytorch(networks), init()
    sizes = {"square": (64, 64), "wide": (32, 96)}
    plan = [("square", "wide"), ("wide", "wide"), ("square", "square"), ("wide", "square"), ("square", "wide")]
    start = jax.tree.map(np.asarray, state["params"])
    for step, shapes in enumerate(plan):
        batches = [
            with_draw(a_batch(10 * step + micro, 2, *sizes[shape]), step + micro) for micro, shape in enumerate(shapes)
        ]
        wanted = pytorch.backward(batches)
        norm = torch.nn.utils.clip_grad_norm_(pytorch.unet.parameters(), float("inf"))
        rate = pytorch.step()
        state, metrics = update(state, one_step(state, batches))
        np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
        np.testing.assert_allclose(metrics["lr"], rate, rtol=1e-6)
        masks = [np.asarray(latent_mask(jnp.asarray(batch["mask"]))) for batch in batches]
        np.testing.assert_allclose(metrics["valid_latents"], np.mean([mask.mean() for mask in masks]), rtol=1e-6)
    assert int(state["step"]) == 5

    def close(name, ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6, err_msg=name)

    assert_same_parameters(state["params"], pytorch.unet.named_parameters(), close)
    moved = [np.abs(np.asarray(state["params"][name]) - start[name]).max() for name in start]
    assert min(moved) > 1e-4


def test_the_first_step_moves_only_the_moments(steps):
    one_step, update, init = steps
    start = init()
    before = jax.tree.map(np.asarray, start["params"])
    state, metrics = update(start, one_step(start, [with_draw(a_batch(1), 1)] * 2))
    assert float(metrics["lr"]) == 0 and int(state["step"]) == 1
    for name in before:
        np.testing.assert_array_equal(state["params"][name], before[name])
        assert optax.tree.get(state["opt_state"], "mu")[name].any()


def test_a_batch_without_valid_pixels_teaches_nothing(steps):
    one_step, update, init = steps
    nothing = with_draw(a_batch(1, valid=0.0), 1)
    accumulator = one_step(init(), [nothing, nothing])
    assert float(accumulator["loss"]) == 0
    assert all(not gradient.any() for gradient in accumulator["gradients"].values())
    _, metrics = update(init(), accumulator)
    assert (float(metrics["grad_norm"]), int(metrics["skipped"]), float(metrics["valid_latents"])) == (0, 0, 0)


def test_a_batch_that_is_not_finite_is_skipped(steps):
    one_step, update, init = steps
    good, bad = with_draw(a_batch(1), 1), with_draw(a_batch(2), 2)
    bad["rgb"][0, 0, 0, 0] = np.nan
    state, _ = update(init(), one_step(init(), [good, good]))
    before = jax.tree.map(np.asarray, state)
    for count in (1, 2):
        state, metrics = update(state, one_step(state, [good, bad]))
        assert not np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == int(state["skipped"]) == count
    assert int(state["step"]) == 3
    for key in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, state[key], before[key])
    state, metrics = update(state, one_step(state, [good, good]))
    assert int(state["skipped"]) == 0 and float(metrics["lr"]) == pytest.approx(LARGE / 2)  # the second that counts


# ------------------------------------------------------------------------------------------------ the smallest networks


@pytest.fixture(scope="module")
def mini():
    """One-level networks, quick to compile: UNet structure, its params, VAE structure, frozen; 2 pixels to a latent."""
    levels = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    config = oracle.UNET | levels | {"block_out_channels": (16,), "attention_head_dim": 2}
    config = config_from_dict(unet.UNetConfig, config, unet.FIXED)
    vae_config = oracle.VAE | {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae_config = config_from_dict(vae.VAEConfig, vae_config, vae.FIXED)
    unet_structure, params = functional.initialise(lambda rngs: unet.UNet(config, rngs), seed=1)
    vae_structure, vae_params = functional.initialise(lambda rngs: vae.VAE(vae_config, rngs), seed=2)
    return unet_structure, params, vae_structure, {"vae": vae_params, "empty_prompt": jnp.asarray(PROMPT)}


@pytest.fixture(scope="module")
def mini_batch():
    return with_draw(a_batch(1, 2, 16, 16, valid=1.0), 1, cell=2)


def mini_gradient(mini, batch, **options):
    unet_structure, params, vae_structure, frozen = mini
    objective = drawn(diffusion_loss(unet_structure, vae_structure, SCHEDULE, **options))
    (loss, _), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, frozen, batch, None)
    return loss, gradients


@pytest.fixture(scope="module")
def plain(mini, mini_batch):
    return mini_gradient(mini, mini_batch)


def test_bfloat16_stays_close_to_float32(mini, mini_batch, plain):
    with jax.numpy_dtype_promotion("standard"):  # flax's own normalisation needs it
        loss, gradients = mini_gradient(mini, mini_batch, compute_dtype=jnp.bfloat16)
    assert loss.dtype == jnp.float32 and {x.dtype for x in gradients.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(loss, plain[0], rtol=0.02)
    flat, wanted = (np.concatenate([np.ravel(x) for x in tree.values()]) for tree in (gradients, plain[1]))
    assert np.linalg.norm(flat - wanted) < 0.1 * np.linalg.norm(wanted)


def test_normals_are_encoded_as_they_are_and_need_no_mask(mini, mini_batch, plain):
    unet_structure, params, vae_structure, frozen = mini
    batch = {key: x for key, x in mini_batch.items() if key not in ("target", "mask")}
    batch["normals"] = np.repeat(mini_batch["target"], 3, axis=-1)
    objective = drawn(diffusion_loss(unet_structure, vae_structure, SCHEDULE, target="normals"))
    loss, metrics = jax.jit(objective)(params, frozen, batch, None)
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    assert float(metrics["valid_latents"]) == 1


@pytest.mark.slow
def test_rematerialisation_saves_memory_and_changes_nothing(mini):
    unet_structure, params, _, _ = mini
    random = np.random.default_rng(0)
    x, weights, context = (
        jnp.asarray(random.normal(size=size), jnp.float32) for size in ((2, 24, 24, 8), (2, 24, 24, 4), (2, 2, 24))
    )

    def gradient(remat):
        def loss(params):
            network = functional.merge(unet_structure, params)
            return jnp.mean(weights * network(x, jnp.asarray([1, 999]), context, REMAT[remat]))

        # The pullback is a pytree of what the forward pass keeps for it.
        _, pullback = jax.eval_shape(lambda params: jax.vjp(loss, params), params)
        return jax.jit(jax.value_and_grad(loss))(params), sum(kept.size for kept in jax.tree.leaves(pullback))

    (wanted_loss, wanted), whole = gradient("none")
    for remat, share in {"blocks": 0.05, "dots": 0.2}.items():
        (loss, gradients), kept = gradient(remat)
        np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
        for name in wanted:
            error = np.linalg.norm(np.ravel(gradients[name] - wanted[name]))
            assert error <= 1e-6 * max(1.0, np.linalg.norm(np.ravel(wanted[name]))), name
        assert kept < share * whole, remat


def test_a_unet_without_room_for_the_image_is_refused(mini, mini_batch):
    _, _, vae_structure, frozen = mini
    narrow = config_from_dict(unet.UNetConfig, oracle.UNET | {"in_channels": 4}, unet.FIXED)
    structure, params = functional.abstract(lambda rngs: unet.UNet(narrow, rngs))
    objective = drawn(diffusion_loss(structure, vae_structure, SCHEDULE))
    with pytest.raises(ValueError, match="the UNet reads 4 channels, wanted 8"):
        jax.eval_shape(objective, params, frozen, mini_batch, None)


@pytest.mark.slow
def test_eight_devices_train_as_one(mini, monkeypatch):
    """data=4 × fsdp=2 against one device, through the whole objective: its draws too are the same."""
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)  # these networks have nothing larger
    unet_structure, params, vae_structure, frozen = mini
    objective = diffusion_objective(unet_structure, vae_structure, SCHEDULE)
    optimiser = make_optimiser("adamw", iter_exponential(1e-3, 10, warmup_steps=1), 0.01, clip_norm=1.0)
    layout = Layout(make_mesh(fsdp=2), ((r"bias$|scale$", "replicate"), ("", "fsdp")))
    assert layout.mesh.shape == {"data": 4, "fsdp": 2}

    def losses(layout):
        accumulate, update = make_steps(objective, optimiser, accumulation=1, seed=5, ema_decay=0.9, layout=layout)
        state = init_state(params, optimiser, ema=True, layout=layout)
        here = frozen if layout is None else jax.device_put(frozen, layout.replicated)
        found = []
        for step in range(3):
            batch = a_batch(step, 8, 16, 16, valid=0.9)
            batch = batch if layout is None else layout.place_batch(batch)
            accumulator = accumulate(None, state["params"], here, batch, state["step"], 0)
            if layout is not None:
                assert_lies(accumulator["gradients"], layout)
            state, metrics = update(state, accumulator)
            found.append(float(metrics["loss"]))
        return found, state

    (alone, one), (together, eight) = losses(None), losses(layout)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert len(set(alone)) == 3
    for name, x in one["ema"].items():
        np.testing.assert_allclose(eight["ema"][name], x, rtol=0, atol=1e-5)
    for tree in (eight["params"], eight["ema"], optax.tree.get(eight["opt_state"], "nu")):
        assert_lies(tree, layout)
        split = [x for x in tree.values() if x.sharding.spec != PartitionSpec()]
        assert split and all(x.addressable_shards[0].data.size * 2 == x.size for x in split)


def assert_lies(tree, layout):
    for name, x in tree.items():
        assert x.sharding.is_equivalent_to(layout.sharding(name, x.shape), x.ndim), name


# ------------------------------------------------------------------------------------------ the step on a toy objective


def toy(params, frozen, batch, key):
    """A quadratic; its gradient is params − batch["wanted"]. Its one metric is what the key draws."""
    return 0.5 * jnp.sum((params["x"] - batch["wanted"]) ** 2), {"drawn": jax.random.uniform(key)}


def toy_steps(**options):
    optimiser = make_optimiser("adam", optax.constant_schedule(0.1))
    options = {"accumulation": 1, "seed": 7} | options
    return optimiser, *make_steps(toy, optimiser, **options)


def test_average_of_parameters():
    optimiser, accumulate, update = toy_steps(ema_decay=0.9)
    params = {"x": jnp.asarray([1.0, -2.0])}
    state = init_state(params, optimiser, ema=True)
    wanted = np.array([1.0, -2.0])
    for step in range(4):
        state, _ = update(state, accumulate(None, state["params"], {}, {"wanted": jnp.zeros(2)}, step, 0))
        wanted = 0.9 * wanted + 0.1 * np.asarray(state["params"]["x"], np.float64)
        np.testing.assert_allclose(state["ema"]["x"], wanted, rtol=1e-6)
    bad = {"wanted": jnp.asarray([0.0, jnp.inf])}
    state, metrics = update(state, accumulate(None, state["params"], {}, bad, 4, 0))
    assert int(metrics["skipped"]) == 1
    np.testing.assert_allclose(state["ema"]["x"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(params["x"], [1, -2])  # the state held a copy


@pytest.mark.parametrize(("decay", "ema"), [(0.9, False), (None, True)])
def test_an_average_is_kept_by_both_or_neither(decay, ema):
    optimiser, accumulate, update = toy_steps(ema_decay=decay)
    state = init_state({"x": jnp.ones(2)}, optimiser, ema=ema)
    with pytest.raises(ValueError, match="give both or neither"):
        update(state, accumulate(None, state["params"], {}, {"wanted": jnp.ones(2)}, 0, 0))


def test_random_numbers_depend_on_seed_step_and_micro_batch_alone():
    params, batch = {"x": jnp.ones(2)}, {"wanted": jnp.ones(2)}

    halves = [toy_steps(seed=seed)[1] for seed in (0, 1)]

    def draw(seed, step, micro):
        return float(halves[seed](None, params, {}, batch, step, micro)["metrics"]["drawn"])

    places = [(seed, step, micro) for seed in (0, 1) for step in (0, 1) for micro in (0, 1)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(0, 1, 1) == draw(0, jnp.asarray(1, jnp.int32), 1)


def test_accumulated_gradients_and_metrics_are_means():
    params = {"x": jnp.asarray([1.0, 2.0])}
    _, accumulate, _ = toy_steps(accumulation=3)
    _, alone, _ = toy_steps()
    accumulator, singles = None, []
    for micro, wanted in enumerate(([0.0, 0.0], [1.0, 1.0], [5.0, 2.0])):
        batch = {"wanted": jnp.asarray(wanted)}
        accumulator = accumulate(accumulator, params, {}, batch, 0, micro)
        singles.append(alone(None, params, {}, batch, 0, micro))
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *singles)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), accumulator, mean)


def test_state_and_accumulator_are_donated():
    optimiser, accumulate, update = toy_steps(accumulation=2)
    state = init_state({"x": jnp.ones(2)}, optimiser)
    batch = {"wanted": jnp.zeros(2)}
    first = accumulate(None, state["params"], {}, batch, 0, 0)
    second = accumulate(first, state["params"], {}, batch, 0, 1)
    assert first["gradients"]["x"].is_deleted()
    new, metrics = update(state, second)
    assert state["params"]["x"].is_deleted() and second["gradients"]["x"].is_deleted()
    assert np.isfinite([float(value) for value in metrics.values()]).all()
    assert not new["params"]["x"].is_deleted()


# ------------------------------------------------------------------------------------------------------------- sharding


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((3, 3, 320, 640), (None, None, None, "fsdp")),  # the largest axis
        ((1280, 1280), (None, "fsdp")),  # of equals, the last
        ((2560, 1280), ("fsdp",)),
        ((1001, 999), ()),  # nothing divides
        ((1001, 320), (None, "fsdp")),  # the largest that divides
        ((1280,), ()),  # too small to be worth it
        ((2**16,), ("fsdp",)),
        ((), ()),
    ],
)
def test_fsdp_splits_the_largest_axis_that_divides(shape, wanted):
    layout = Layout(make_mesh(fsdp=4), (("", "fsdp"),))
    assert layout.sharding("kernel", shape).spec == PartitionSpec(*wanted)
    assert Layout(layout.mesh).sharding("kernel", shape).spec == PartitionSpec()


def test_the_first_rule_that_matches_decides():
    layout = Layout(make_mesh(fsdp=2), ((r"^conv_in\.", "replicate"), (r"kernel$", "fsdp")))
    large = (256, 512)
    assert layout.sharding("conv_in.kernel", large).spec == PartitionSpec()
    assert layout.sharding("conv_out.kernel", large).spec == PartitionSpec(None, "fsdp")
    with pytest.raises(ValueError, match=r"no rule matches 'conv_out\.bias'"):
        layout.sharding("conv_out.bias", large)
    with pytest.raises(ValueError, match=r"unknown rules \['row'\], wanted among replicate, fsdp"):
        Layout(layout.mesh, (("", "row"),))


def test_optimiser_state_lies_where_its_parameters_lie():
    layout = Layout(make_mesh(fsdp=2), ((r"bias$", "replicate"), ("", "fsdp")))
    params = {"a.kernel": np.ones((512, 256), np.float32), "a.bias": np.ones(2**17, np.float32)}
    state = init_state(params, make_optimiser("adam", iter_exponential(1e-3)), ema=True, layout=layout)
    for tree in (state["params"], state["ema"], *(optax.tree.get(state["opt_state"], x) for x in ("mu", "nu"))):
        assert tree["a.kernel"].sharding.spec == PartitionSpec("fsdp")
        assert tree["a.bias"].sharding.is_fully_replicated
    assert len(state["step"].sharding.device_set) == 8
    placed = layout.place(params)
    assert placed["a.kernel"].sharding.spec == PartitionSpec("fsdp")


def test_batches_are_split_over_all_devices():
    layout = Layout(make_mesh(fsdp=2))
    batch = layout.place_batch({"rgb": np.arange(16.0, dtype=np.float32).reshape(16, 1)})
    assert [shard.data.ravel().tolist() for shard in batch["rgb"].addressable_shards][:2] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="'rgb' has 12 samples, wanted a multiple of the 8 devices"):
        layout.place_batch({"rgb": np.zeros((12, 1))})
    with pytest.raises(ValueError, match="fsdp is 3, wanted a divisor of the number of devices, 8"):
        make_mesh(fsdp=3)


def test_the_loop_needs_no_implicit_transfers():
    layout = Layout(make_mesh())
    optimiser, accumulate, update = toy_steps(accumulation=2, layout=layout)
    state = init_state({"x": np.ones((8, 2), np.float32)}, optimiser, layout=layout)
    batch = layout.place_batch({"wanted": np.zeros((8, 2), np.float32)})
    with jax.transfer_guard("disallow"):
        accumulator = None
        for micro in range(2):
            accumulator = accumulate(accumulator, state["params"], {}, batch, state["step"], micro)
        state, _ = update(state, accumulator)
    assert int(state["step"]) == 1
