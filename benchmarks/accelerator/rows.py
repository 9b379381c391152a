"""What is measured, the most important first: where time runs out, the last rows are left out.

A row is one process. It measures several cases one after the other, such as 1, 4 and 50 steps, so that they share the
start of the process and, in PyTorch, the compiled UNet. What a process has measured before it fails is kept.
"""

from collections.abc import Mapping
from typing import NamedTuple

OURS, PEER = "ours", "peer"


class Row(NamedTuple):
    """One process that measures.

    Attributes:
        side: OURS, or PEER for diffusers and PyTorch.
        what: the name of a function in `ours.py` and `peer.py`.
        limit: seconds until it is stopped.
        least: seconds that must be left of the whole run's time, or it is not started.
        env: variables that it is run with.
        platforms: on which it means something.
    """

    side: str
    what: str
    limit: int
    least: int
    env: Mapping[str, str] = {}
    platforms: tuple[str, ...] = ("gpu", "tpu", "cpu")


NO_TPU = ("gpu", "cpu")
ROWS = {
    "latency": Row(OURS, "latency", limit=150, least=40),
    "latency, diffusers": Row(PEER, "latency", limit=120, least=30, platforms=NO_TPU),
    "training, latents": Row(OURS, "training_latents", limit=150, least=50),
    "training, latents, PyTorch": Row(PEER, "training_latents", limit=90, least=30, platforms=NO_TPU),
    "ensemble": Row(OURS, "ensemble", limit=90, least=35),
    "ensemble, diffusers": Row(PEER, "ensemble", limit=75, least=30, platforms=NO_TPU),
    "throughput": Row(OURS, "throughput", limit=200, least=45),
    "throughput, diffusers": Row(PEER, "throughput", limit=90, least=30, platforms=NO_TPU),
    "profile": Row(OURS, "profile", limit=60, least=25),
    "training, images": Row(OURS, "training_images", limit=150, least=50),
    "training, images, PyTorch": Row(PEER, "training_images", limit=90, least=30, platforms=NO_TPU),
    "latency, no cuDNN attention": Row(
        OURS, "one_step", limit=75, least=35, env={"MARIGOLD_JAX_ATTENTION": "blockwise"}, platforms=NO_TPU
    ),
    "latency, strips": Row(OURS, "one_step", limit=75, least=35, env={"MARIGOLD_JAX_STRIPS": "always"}),
    "latency, no strips": Row(OURS, "one_step", limit=75, least=35, env={"MARIGOLD_JAX_STRIPS": "never"}),
    "training, latents, no cuDNN attention": Row(
        OURS, "training_latents", limit=150, least=50, env={"MARIGOLD_JAX_ATTENTION": "blockwise"}, platforms=NO_TPU
    ),
    "profile, training": Row(OURS, "profile_training", limit=90, least=40),
}
