import pytest

from marigold_jax.hardware.compiler_options import NO_SPACE_TO_BATCH, SEPARATE_PRODUCTS, options


@pytest.mark.parametrize("samples", [1, 8, 16])
def test_nothing_is_changed_for_one_image_or_for_full_sublanes(samples):
    assert options("tpu", samples) == {}


@pytest.mark.parametrize("samples", [2, 4, 5, 7, 12])
def test_a_few_images_stay_a_batch(samples):
    assert options("tpu", samples) == NO_SPACE_TO_BATCH and len(NO_SPACE_TO_BATCH) == 2


def test_of_other_platforms():
    assert options("gpu", 4) == SEPARATE_PRODUCTS
    assert options("cpu", 4) == {}
