import jax
import optax
import pytest

from marigold_jax.hardware import compiler_options
from marigold_jax.hardware.compiler_options import NO_SPACE_TO_BATCH, SEPARATE_PRODUCTS, options
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.step import make_programs


@pytest.mark.parametrize("samples", [1, 8, 16])
def test_nothing_is_changed_for_one_image_or_for_full_sublanes(samples):
    assert options("tpu", samples) == {}


@pytest.mark.parametrize("samples", [2, 4, 5, 7, 12])
def test_a_few_images_stay_a_batch(samples):
    assert options("tpu", samples) == NO_SPACE_TO_BATCH and len(NO_SPACE_TO_BATCH) == 2


def test_training_asks_for_the_samples_of_a_device(monkeypatch):
    asked, eight = [], Layout(make_mesh(2))
    monkeypatch.setattr(compiler_options, "options", lambda *what: asked.append(what) or {})
    for layout, batch_size in ((eight, 32), (eight, 0), (None, 32)):
        make_programs(
            lambda *_: (0.0, {}), optax.sgd(1.0), accumulation=1, seed=0, layout=layout, batch_size=batch_size
        )
    assert asked == [("cpu", 32 // len(jax.devices()))]


def test_of_other_platforms():
    assert options("gpu", 4) == SEPARATE_PRODUCTS
    assert options("cpu", 4) == {}
