"""Turns any objective into one of low-rank corrections (LoRA, arXiv 2106.09685); see `weights.lora`."""

from marigold_jax.training.objectives.contract import Objective
from marigold_jax.weights import lora


def of_corrections(objective: Objective) -> Objective:
    """Returns the objective of the corrections to a UNet whose base weights are frozen.

    Args:
        objective: of the whole UNet's parameters.

    Returns:
        The objective of a tree made by `weights.lora.init`. It reads the base parameters from `frozen["unet"]`. If
        `frozen["target"]` holds an average of such trees, it is merged with the same base.
    """

    def adapted(trained, frozen, batch, key):
        base = frozen["unet"]
        merged = {"target": lora.merge(base, frozen["target"])} if "target" in frozen else {}
        return objective(lora.merge(base, trained), {**frozen, **merged}, batch, key)

    return adapted
