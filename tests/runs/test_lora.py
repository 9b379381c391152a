"""Low-rank adaptation: what it touches, where it starts, and that only it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from marigold_jax.diffusion.optimiser import make_optimiser
from marigold_jax.models import functional, unet
from marigold_jax.models.config import config_from_dict
from marigold_jax.training.objectives.low_rank import of_corrections
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.weights import lora

RANK = 3


@pytest.fixture(scope="module")
def base():
    config = config_from_dict(unet.UNetConfig, oracle.UNET, unet.FIXED)
    return functional.initialise(lambda rngs: unet.UNet(config, rngs))[1]


@pytest.fixture(scope="module")
def tree(base):
    return lora.init(base, RANK, jax.random.key(0))


def test_every_attention_projection_is_adapted_and_nothing_else(base, tree):
    transformers = {name.partition(".attn1.")[0] for name in base if ".attn1.to_q." in name}
    paths = {
        f"{block}.{attention}.{projection}"
        for block in transformers
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out")
    }
    assert len(transformers) == 4  # one in the encoder, one in the middle, two in the decoder
    corrections = {f"{path}.lora_{side}.kernel" for path in paths for side in "AB"}
    assert set(tree) == corrections | {"conv_in.kernel", "conv_in.bias"}
    for path in paths:
        inputs, outputs = base[f"{path}.kernel"].shape
        a, b = tree[f"{path}.lora_A.kernel"], tree[f"{path}.lora_B.kernel"]
        assert (a.shape, b.shape) == ((inputs, RANK), (RANK, outputs))
        assert not b.any()
        assert 0.5 * inputs**-0.5 < jnp.abs(a).max() <= inputs**-0.5
    corners = {float(tree[f"{path}.lora_A.kernel"][0, 0]) for path in paths}
    assert len(corners) == len(paths)  # independent draws


def test_training_starts_from_the_base(base, tree):
    merged = lora.merge(base, tree)
    assert merged.keys() == base.keys()
    for name in base:
        np.testing.assert_array_equal(merged[name], base[name])


def test_merge_adds_the_product(base, tree):
    trained = {name: x + 1 if "lora_B" in name else x for name, x in tree.items()}
    merged = lora.merge(base, trained)
    changed = {name for name in base if not np.array_equal(merged[name], base[name])}
    assert changed == {name.replace(".lora_A", "") for name in tree if ".lora_A" in name}
    path = min(changed).removesuffix(".kernel")
    a, b = (np.asarray(trained[f"{path}.lora_{side}.kernel"], np.float64) for side in "AB")
    wanted = np.asarray(base[f"{path}.kernel"], np.float64) + a @ b
    np.testing.assert_allclose(merged[f"{path}.kernel"], wanted, rtol=0, atol=1e-6)


def test_only_the_adapter_trains(base):
    """Fit one projection to a target that differs from the base by a matrix of rank 1: it must get there."""
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    frozen = {"unet": {f"{path}.kernel": base[f"{path}.kernel"], "other": jnp.ones(2)}}
    side = base[f"{path}.kernel"].shape[0]
    wanted = base[f"{path}.kernel"] + jnp.outer(jnp.linspace(-1, 1, side), jnp.linspace(0, 1, side))

    def objective(params, frozen, batch, key):
        return jnp.mean((params[f"{path}.kernel"] - batch["wanted"]) ** 2), {}

    tree = lora.init(frozen["unet"], RANK, jax.random.key(1))
    optimiser = make_optimiser("adam", optax.constant_schedule(3e-2))
    accumulate, update = make_steps(of_corrections(objective), optimiser, accumulation=1, seed=0)
    state = init_state(tree, optimiser)
    losses = []
    for step in range(100):
        accumulator = accumulate(None, state["params"], frozen, {"wanted": wanted}, step, 0)
        state, metrics = update(state, accumulator)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 1e-3 * losses[0]
    assert set(state["params"]) == {f"{path}.lora_A.kernel", f"{path}.lora_B.kernel"}
    np.testing.assert_array_equal(frozen["unet"][f"{path}.kernel"], base[f"{path}.kernel"])
    merged = lora.merge(frozen["unet"], state["params"])
    np.testing.assert_allclose(jnp.mean((merged[f"{path}.kernel"] - wanted) ** 2), losses[-1], rtol=0.5)


@pytest.mark.parametrize(("names", "rank"), [(["conv_in.kernel"], 4), (["x.attn1.to_q.kernel"], 0)])
def test_nothing_to_adapt_is_an_error(names, rank):
    with pytest.raises(ValueError, match="wanted at least 1 of each"):
        lora.init({name: jnp.zeros((2, 2)) for name in names}, rank, jax.random.key(0))
