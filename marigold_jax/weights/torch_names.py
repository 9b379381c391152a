"""Which tensor of a PyTorch file is which parameter: one table, used in both directions.

Modules carry diffusers' attribute names, so a name changes only where PyTorch wraps a layer in a list, and an array
only by its layout (NCHW and [out, in] there, NHWC and [in, out] here).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from marigold_jax.runtime.files import printable

# Segments of a name: in the PyTorch file, here.
RENAMED = (
    ("to_out.0", "to_out"),
    ("ff.net.0.proj", "ff.proj"),
    ("ff.net.2", "ff.out"),
)

# Segments of a name in the PyTorch file: in older files, today.
LEGACY = (
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("proj_attn", "to_out.0"),
)
LEGACY_PREFIX = "text_model."  # transformers < 5 puts it before every name of the text encoder
# Matrices of a transformer that files of Stable Diffusion 1 keep as 1x1 convolutions.
SPATIAL = (".proj_in.kernel", ".proj_out.kernel")
LONGEST_NAME = 120  # characters of a name that an error message shows; real names have half as many
IGNORED = ("position_ids",)  # a buffer that older text encoders saved


class Leaf(NamedTuple):
    """The last segment of a name.

    Attributes:
        name: in the PyTorch file.
        here: from PyTorch's layout to ours.
        there: from our layout to PyTorch's.
    """

    name: str
    here: Callable[[np.ndarray], np.ndarray]
    there: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


# (our last segment, rank of the array) -> PyTorch's.
LEAVES = {
    ("kernel", 4): Leaf("weight", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    ("kernel", 2): Leaf("weight", np.transpose, np.transpose),
    ("embedding", 2): Leaf("weight", _same, _same),
    ("scale", 1): Leaf("weight", _same, _same),
    ("bias", 1): Leaf("bias", _same, _same),
}


def leaf(path: str, rank: int) -> Leaf:
    return LEAVES[path.rpartition(".")[2], rank]


def torch_name(path: str, rank: int) -> str:
    """Returns the name that today's diffusers gives to the parameter at `path`, which has that rank."""
    stem, _, _ = path.rpartition(".")
    return f"{_replace(stem, ((here, there) for there, here in RENAMED))}.{leaf(path, rank).name}"


def modern_name(name: str) -> str:
    """Returns today's name for a tensor of an older file."""
    stem, _, last = name.removeprefix(LEGACY_PREFIX).rpartition(".")
    return f"{_replace(stem, LEGACY)}.{last}"


def _replace(stem: str, table: Iterable[tuple[str, str]]) -> str:
    for old, new in table:
        stem = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, stem)
    return stem


def match(shapes: Mapping[str, tuple[int, ...]], available: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Finds the tensor of a PyTorch file for each parameter.

    Args:
        shapes: the parameters: path -> shape in our layout.
        available: the file: name -> shape in PyTorch's layout.

    Returns:
        path -> name.

    Raises:
        ValueError: one line that names every tensor that is missing, extra, doubled or has the wrong shape.
    """
    present: dict[str, str] = {}
    problems = []
    for name in available:
        if name.endswith(IGNORED):
            continue
        modern = modern_name(name)
        if modern in present:
            problems.append(f"doubled: {_short(name)} and {_short(present[modern])}")
        present[modern] = name

    matches = {}
    for path, shape in shapes.items():
        wanted = torch_name(path, len(shape))
        name = present.pop(wanted, None)
        if name is None:
            problems.append(f"missing: {wanted}")
            continue
        matches[path] = name
        expected = tuple(leaf(path, len(shape)).there(np.broadcast_to(np.float32(0), shape)).shape)
        found = squeezed(available[name], len(shape))
        if found != expected:
            problems.append(f"wrong shape: {name} is {list(available[name])}, wanted {list(expected)}")
    problems += [f"extra: {_short(name)}" for name in present.values()]
    if problems:
        some = problems[:20] + [f"and {len(problems) - 20} more"] * (len(problems) > 20)
        raise ValueError(f"{len(problems)} tensors do not fit the configuration: {'; '.join(some)}")
    return matches


def _short(name: str) -> str:
    """Returns a name from a file, for an error message."""
    return printable(name) if len(name) <= LONGEST_NAME else f"{printable(name[:LONGEST_NAME])}..."


def squeezed(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Returns [out, in] for [out, in, 1, 1] if rank 2 is wanted: very old files have 1x1 convolutions there."""
    return tuple(shape[:2]) if rank == 2 and len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)


def from_torch(path: str, rank: int, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor of the file in the layout of the parameter at `path`."""
    return leaf(path, rank).here(tensor.reshape(squeezed(tensor.shape, rank)))


def to_torch(path: str, array: np.ndarray, spatial: bool = False) -> np.ndarray:
    """Returns the parameter at `path` in PyTorch's layout.

    `spatial`: it belongs to a UNet whose `use_linear_projection` is false.
    """
    tensor = np.ascontiguousarray(leaf(path, array.ndim).there(array))
    return tensor[:, :, None, None] if spatial and path.endswith(SPATIAL) else tensor
