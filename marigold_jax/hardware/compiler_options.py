"""Options for XLA, by platform and by the number of samples that one device computes side by side.

TPU: if a batch does not fill the eight sublanes of a register, XLA moves a part of each row of pixels into the batch
("space to batch"). That helps a single image. For two to seven images it pads the rows and copies whole activations,
partly in float32, and the decoder of Stable Diffusion takes up to three times as many cycles as without. A batch of
eight needs none of it. `python -m marigold_jax.aot --target tpu:v5e-1 --what predict --batch_size N` shows the cycles.

GPU: XLA merges the products for query, key and value into one, and then copies its three parts for cuDNN's attention.
It also concatenates the kernels of all layers that read the same text. Separate products need neither.
"""

from collections.abc import Mapping
from typing import Any

SUBLANES = 8
# One of the two alone changes nothing.
NO_SPACE_TO_BATCH = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}
SEPARATE_PRODUCTS = {"xla_gpu_dot_merger_threshold_mb": 0}


def options(platform: str, samples: int) -> Mapping[str, Any]:
    """Returns the compiler's options for a program that computes this many samples side by side on each device.

    Args:
        platform: "cpu", "gpu" or "tpu".
        samples: of a batch, on one device.
    """
    fills_sublanes = samples == 1 or samples % SUBLANES == 0
    return {"tpu": {} if fills_sublanes else NO_SPACE_TO_BATCH, "gpu": SEPARATE_PRODUCTS}.get(platform, {})
