"""Options for the TPU's compiler, by the number of samples that one chip computes side by side.

If a batch does not fill the eight sublanes of a register, XLA moves a part of each row of pixels into the batch ("space
to batch"). That helps a single image. For two to seven images it pads the rows and copies whole activations, partly in
float32, and the decoder of Stable Diffusion takes up to three times as many cycles as without. A batch of eight needs
none of it. `python benchmarks/tpu_batches.py` prints the compiler's own estimates of the cycles, with and without.
"""

from collections.abc import Mapping

SUBLANES = 8
# One of the two alone changes nothing.
NO_SPACE_TO_BATCH = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


def options(platform: str, samples: int) -> Mapping[str, bool]:
    """Returns the compiler options for a program that computes this many samples side by side on each device.

    Args:
        platform: "tpu", or another one, which needs no options.
        samples: of a batch, on one device.
    """
    fills_sublanes = samples == 1 or samples % SUBLANES == 0
    return {} if platform != "tpu" or fills_sublanes else NO_SPACE_TO_BATCH
