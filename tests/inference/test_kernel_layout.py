import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax import Marigold
from marigold_jax.inference import kernel_layout

PICTURE = np.random.default_rng(0).random((48, 64, 3)).astype(np.float32)


def test_kernels_are_reordered_once_and_predictions_stay(monkeypatch):
    plain = Marigold.from_pretrained()
    wanted = plain(PICTURE, processing_resolution=64).prediction
    monkeypatch.setitem(kernel_layout.ORDERS, "cpu", (3, 0, 1, 2))
    reordered = Marigold.from_pretrained()
    kernel = reordered.params["unet"]["conv_in.kernel"]
    assert kernel.format.layout.major_to_minor == (3, 0, 1, 2)
    np.testing.assert_array_equal(kernel, plain.params["unet"]["conv_in.kernel"])
    assert reordered.params["unet"]["conv_in.bias"].format.layout.major_to_minor == (0,)
    np.testing.assert_allclose(reordered(PICTURE, processing_resolution=64).prediction, wanted, rtol=0, atol=1e-5)


def test_a_program_is_compiled_for_the_order_of_its_kernels():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for name, shape in {"kernel": (3, 3, 4, 5), "bias": (5,)}.items()
    }
    assert kernel_layout.arranged(shapes, "cpu") == shapes
    arranged = kernel_layout.arranged(shapes, "gpu")
    assert arranged["bias"] == shapes["bias"] and arranged["kernel"].shape == (3, 3, 4, 5)
    compiled = jax.jit(lambda params: params["kernel"] * 2).lower(arranged).compile()
    assert compiled.input_formats[0][0]["kernel"].layout.major_to_minor == (3, 0, 1, 2)
