"""End-to-end fine-tuning against PyTorch: losses, their alignment, and gradients through the frozen decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch

from marigold_jax.diffusion.losses import aligned, angular_error, scale_and_shift, weighted_l1
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.training.objectives.contract import REMAT
from marigold_jax.training.objectives.end_to_end import UNITS, end_to_end_objective
from marigold_jax.weights import model_folder, torch_names

SIZE = (32, 48)
TOKENS = 77


def torch_depth(pixels, batch):
    """As published: (b, 1, h, w) pictures, sums over valid pixels, one 2 x 2 system an image."""
    p, g, m = pixels.mean(1, keepdim=True).clamp(-1, 1), batch["target"], batch["mask"]
    fitted = []
    for i in range(len(p)):
        x, y = p[i][m[i]], g[i][m[i]]
        a00, a01, a11, b0, b1 = (x * x).sum(), x.sum(), float(x.numel()), (x * y).sum(), y.sum()
        determinant = a00 * a11 - a01 * a01
        scale, shift = (a11 * b0 - a01 * b1) / determinant, (-a01 * b0 + a00 * b1) / determinant
        fitted.append(scale * p[i] + shift)
    return torch.stack(fitted)


def torch_normals(pixels, batch):
    return (pixels / (pixels.norm(p=2, dim=1, keepdim=True) + 1e-5)).clamp(-1, 1)


def torch_l1(a, b, mask, weight):
    return ((weight * (a - b).abs())[mask]).mean()


def torch_angle(a, b, mask, weight):
    return torch.arccos((a * b).sum(1, keepdim=True).clamp(-1, 1)[mask]).mean()


TORCH_LOSSES = {"depth": (torch_depth, torch_l1, "target"), "normals": (torch_normals, torch_angle, "normals")}


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    normals = random.normal(size=(2, *SIZE, 3))
    return {
        "rgb": random.uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (2, *SIZE, 1)).astype(np.float32),
        "normals": (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32),
        "mask": random.random((2, *SIZE, 1)) < 0.7,
        "depth": random.uniform(0.5, 40, (2, *SIZE, 1)).astype(np.float32),
        "span": np.float32([3.0, 40.0]),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same random networks on both sides."""
    folder = tmp_path_factory.mktemp("end_to_end") / "checkpoint"
    pipe = oracle.pipeline(folder.parent, scheduler="v1-0")  # the schedule of the published models
    pipe.save_pretrained(folder)
    return pipe, model_folder.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("units", "spread"), [*((units, 0.0) for units in UNITS), ("relative", 0.4)])
@pytest.mark.parametrize("target", TORCH_LOSSES)
def test_loss_and_gradients_equal_pytorch(both, batch, target, units, spread):
    pipe, ours = both
    schedule = NoiseSchedule.from_config(ours.scheduler)
    prompt = np.random.default_rng(1).normal(size=(TOKENS, pipe.unet.config.cross_attention_dim)).astype(np.float32)
    objective = end_to_end_objective(
        ours.unet.structure,
        ours.vae.structure,
        schedule,
        target=target,
        units=units,
        noise="gaussian" if spread else "zeros",
        spread=spread,
    )
    frozen = {"vae": ours.vae.params, "empty_prompt": jnp.asarray(prompt)}
    (loss, _), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        ours.unet.params, frozen, batch, jax.random.key(0)
    )

    pipe.unet.zero_grad()
    scaling = pipe.vae.config.scaling_factor
    with torch.no_grad():
        rgb = pipe.vae.encode(oracle.nchw(batch["rgb"])).latent_dist.mean * scaling
    theirs = {key: oracle.nchw(value) for key, value in batch.items() if value.ndim == 4}
    read, distance, key_of_target = TORCH_LOSSES[target]
    members = 2 if spread else 1
    noise = jax.random.normal(jax.random.key(0), (2 * members, SIZE[0] // 8, SIZE[1] // 8, 4), jnp.float32)
    predictions = []
    for x_t in torch.split(oracle.nchw(np.asarray(noise)) if spread else torch.zeros_like(rgb), 2):
        velocity = pipe.unet(torch.cat([rgb, x_t], 1), 999, torch.from_numpy(prompt).expand(2, -1, -1)).sample
        x0 = float(schedule.signal[999]) * x_t - float(schedule.sigma[999]) * velocity
        predictions.append(read(pipe.vae.decode(x0 / scaling).sample, theirs))
    weight = {
        "metres": torch.from_numpy(batch["span"] / 2)[:, None, None, None],
        "normalised": torch.ones(1),
        "relative": oracle.nchw(batch["span"][:, None, None, None] / 2 / batch["depth"]),
    }[units]
    apart = [distance(prediction, theirs[key_of_target], theirs["mask"], weight) for prediction in predictions]
    wanted = sum(apart) / members
    if spread:
        wanted = wanted - spread / 2 * distance(*predictions, theirs["mask"], weight)
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=2e-6)
    parameters = dict(pipe.unet.named_parameters())
    for path, gradient in gradients.items():
        want = parameters[torch_names.torch_name(path, gradient.ndim)].grad.numpy()
        got = torch_names.to_torch(path, np.asarray(gradient)).reshape(want.shape)
        assert np.linalg.norm(got - want) <= 1e-4 * max(np.linalg.norm(want), 1e-6), path


@pytest.mark.slow
def test_what_is_computed_again_changes_nothing(both, batch):
    _, ours = both
    schedule = NoiseSchedule.from_config(ours.scheduler)
    frozen = {"vae": ours.vae.params, "empty_prompt": jnp.asarray(ours.empty_prompt[2])}
    losses, gradients = {}, {}
    for remat in REMAT:
        objective = end_to_end_objective(
            ours.unet.structure, ours.vae.structure, schedule, noise="multi_resolution", remat=remat
        )
        compute = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, _), gradients[remat] = compute(ours.unet.params, frozen, batch, jax.random.key(0))
        losses[remat] = float(loss)
    assert len({round(loss, 4) for loss in losses.values()}) == 1, losses
    for path, wanted in gradients.pop("none").items():
        for got in gradients.values():
            assert np.linalg.norm(got[path] - wanted) <= 1e-4 * max(np.linalg.norm(wanted), 1e-6), path


def scale_and_shift_invariant_l1(prediction, target, mask, weight):
    return weighted_l1(aligned(prediction, target, mask), target, mask, weight)


def test_the_gradient_of_the_alignment_equals_finite_differences():
    random = np.random.default_rng(0)
    prediction, target = random.normal(size=(2, 2, 5, 6, 1))
    mask = random.random((2, 5, 6, 1)) < 0.6
    weight = random.uniform(0.5, 3, mask.shape)

    def loss(x):
        """In float64, by lstsq."""
        total = 0.0
        for i in range(2):
            a = np.stack([x[i][mask[i]], np.ones(mask[i].sum())], 1)
            error = a @ np.linalg.lstsq(a, target[i][mask[i]])[0] - target[i][mask[i]]
            total += weight[i][mask[i]] @ np.abs(error)
        return total / mask.sum()

    got = jax.grad(scale_and_shift_invariant_l1)(
        jnp.float32(prediction), jnp.float32(target), jnp.asarray(mask), jnp.float32(weight)
    )
    step = 1e-6
    want = np.zeros_like(prediction)
    for index in np.ndindex(prediction.shape):
        nudge = np.zeros_like(prediction)
        nudge[index] = step
        want[index] = (loss(prediction + nudge) - loss(prediction - nudge)) / (2 * step)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_members_that_see_no_noise_cannot_differ(both):
    _, ours = both
    schedule = NoiseSchedule.from_config(ours.scheduler)
    with pytest.raises(ValueError, match=r"spread is 0\.3 and noise is 'zeros': wanted noise"):
        end_to_end_objective(ours.unet.structure, ours.vae.structure, schedule, spread=0.3)


def test_nothing_to_align_is_no_nan():
    zeros, target = jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4, 1))
    everything, nothing = jnp.ones((1, 4, 4, 1), bool), jnp.zeros((1, 4, 4, 1), bool)
    scale, shift = scale_and_shift(zeros, target, everything)
    assert not scale.any() and not shift.any()
    for mask, wanted in ((everything, 1.0), (nothing, 0.0)):
        loss, gradient = jax.value_and_grad(scale_and_shift_invariant_l1)(zeros, target, mask, jnp.ones((1, 1, 1, 1)))
        assert loss == wanted and jnp.isfinite(gradient).all()
    loss, gradient = jax.value_and_grad(angular_error)(jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 4, 4, 3)), nothing)
    assert loss == 0 and jnp.isfinite(gradient).all()
