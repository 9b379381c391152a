"""Adam, AdamW and their learning rate against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from marigold_jax.diffusion.optimiser import iter_exponential, make_optimiser


def official_multiplier(completed, total=25_000, final_ratio=0.01, warmup=100):
    """The published training code's formula, in float64."""
    if completed < warmup:
        return completed / warmup
    if completed >= total:
        return final_ratio
    return np.exp((completed - warmup) / (total - warmup) * np.log(final_ratio))


@pytest.mark.parametrize("completed", [0, 1, 50, 99, 100, 101, 5000, 10_000, 18_000, 24_999, 25_000, 30_000])
def test_learning_rate_is_the_published_one(completed):
    found = iter_exponential(3e-5)(jnp.asarray(completed, jnp.int32))
    np.testing.assert_allclose(found, 3e-5 * official_multiplier(completed), rtol=1e-5)


def test_learning_rate_at_known_points():
    schedule = iter_exponential(3e-5)
    for completed, wanted in {0: 0.0, 100: 3.00e-5, 5000: 1.21e-5, 10_000: 4.81e-6, 25_000: 3.0e-7}.items():
        assert float(schedule(completed)) == pytest.approx(wanted, rel=3e-3)


def test_learning_rate_without_warmup():
    schedule = iter_exponential(1.0, total_steps=10, final_ratio=0.1, warmup_steps=0)
    np.testing.assert_allclose([schedule(n) for n in (0, 5, 10, 11)], [1, 0.1**0.5, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"warmup_steps": 25_000}, {"warmup_steps": -1}, {"final_ratio": 0.0}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted 0 <= warmup_steps < total_steps"):
        iter_exponential(3e-5, **wrong)


SIZES = {"kernel": (3, 4), "bias": (4,)}
PYTORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_optimiser_is_pytorchs(name, weight_decay, clip_norm):
    random = np.random.default_rng(0)
    start = {key: random.normal(size=size).astype(np.float32) for key, size in SIZES.items()}
    # Gradients from 1e-8, where epsilon matters, to 1, where the clip does.
    gradients = [
        {key: (scale * random.normal(size=size)).astype(np.float32) for key, size in SIZES.items()}
        for scale in (1e-8, 1e-8, 1e-3, 1.0, 1e-8)
    ]

    theirs = {key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in start.items()}
    pytorch = PYTORCH[name](theirs.values(), lr=1e-2, betas=(0.8, 0.99), eps=1e-7, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.LambdaLR(pytorch, lambda n: official_multiplier(n, total=4, warmup=1))

    schedule = iter_exponential(1e-2, total_steps=4, warmup_steps=1)
    optimiser = make_optimiser(name, schedule, weight_decay, clip_norm, betas=(0.8, 0.99), epsilon=1e-7)
    ours = {key: jnp.asarray(value) for key, value in start.items()}
    state = optimiser.init(ours)
    step = jax.jit(optimiser.update)
    for gradient in gradients:
        rate = decay.get_last_lr()[0]
        for key, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[key].copy())
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
        pytorch.step()
        decay.step()
        updates, state = step(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(rate, rel=1e-6)
        for key in SIZES:
            np.testing.assert_allclose(ours[key], theirs[key].detach().numpy(), rtol=0, atol=1e-6)


def test_adafactor_is_that_of_its_paper():
    """Algorithm 4 of arXiv 1804.04235 in float64, with the learning rate as it is and 0.8 for the decay's exponent."""
    random = np.random.default_rng(0)
    start = {"kernel": random.normal(size=(3, 3, 130, 128)), "bias": random.normal(size=130)}
    wanted = {key: value.copy() for key, value in start.items()}
    rows, columns, plain = np.zeros((3, 3, 128)), np.zeros((3, 3, 130)), np.zeros(130)
    optimiser = make_optimiser("adafactor", iter_exponential(1e-2, total_steps=9, final_ratio=1.0, warmup_steps=0))
    ours = {key: jnp.asarray(value, jnp.float32) for key, value in start.items()}
    state = optimiser.init(ours)
    assert sum(x.size for x in jax.tree.leaves(state)) < 0.02 * sum(x.size for x in ours.values())
    step = jax.jit(optimiser.update)
    for n in range(1, 4):
        gradient = {key: random.normal(size=value.shape) for key, value in start.items()}
        decay = 1 - n**-0.8
        square = gradient["kernel"] ** 2 + 1e-30
        rows = decay * rows + (1 - decay) * square.mean(2)
        columns = decay * columns + (1 - decay) * square.mean(3)
        second = columns[..., None] * rows[..., None, :] / rows.mean(-1)[..., None, None]
        plain = decay * plain + (1 - decay) * (gradient["bias"] ** 2 + 1e-30)
        for key, moment in (("kernel", second), ("bias", plain)):
            update = gradient[key] / np.sqrt(moment)
            wanted[key] -= 1e-2 * update / max(1.0, np.sqrt((update**2).mean()))
        updates, state = step({key: jnp.asarray(g, jnp.float32) for key, g in gradient.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
    for key, value in wanted.items():
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-5)


def test_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="'sgd', wanted one of adam, adamw, adafactor"):
        make_optimiser("sgd", iter_exponential(1e-3))
