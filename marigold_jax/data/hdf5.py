"""Reads one array of an HDF5 file that need not be trusted.

An HDF5 file can refer to data in any other file on the machine: by external storage, a link, or a virtual dataset. It
can also claim any shape, whatever its size. Both are refused before the HDF5 library acts on them.
"""

import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from marigold_jax.runtime import extras
from marigold_jax.runtime.files import printable, regular

with extras.needed("prepare"):
    import h5py

LARGEST = 2**30  # bytes of an array, and of the chunks that it is stored in; 16 times a 4k image of four doubles
MOST_LINKS = 8  # one after another


def read_dataset(source: str | Path | bytes, name: str, key: str | None = None) -> Shaped[np.ndarray, "..."]:
    """Reads one array of numbers.

    Args:
        source: the file, or its content.
        name: what errors call the file.
        key: the dataset's path in the file; None for the only one that the file holds at its top.

    Raises:
        ValueError: one line that begins with `name`, for all that can be wrong: no such file or dataset, no HDF5,
            damaged, data that lies outside of the file, no numbers, or too many.
    """
    try:
        content = io.BytesIO(source) if isinstance(source, bytes) else regular(source)
        with h5py.File(content, "r") as file:
            dataset = _find(file, _only(file) if key is None else key)
            _check(dataset)
            return dataset[()]
    except _Refused as error:
        raise ValueError(f"{name}: {printable(error)}") from None
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except Exception as error:  # HDF5 raises nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: cannot be read as HDF5: {printable(reason)}") from None


class _Refused(Exception):
    """The file is valid HDF5, but its content is not what is wanted."""


def _only(file: h5py.File) -> str:
    """The name of the one dataset at the top of a file."""
    names = [name for name in file if _link(file, name) is not None]
    found = [name for name in names if isinstance(_find(file, name), h5py.Dataset)]
    if len(found) != 1:
        raise _Refused(f"wanted one dataset, found {', '.join(map(repr, found[:8])) or 'none'}")
    return found[0]


def _link(group: h5py.Group, name: str) -> h5py.HardLink | h5py.SoftLink | h5py.ExternalLink | None:
    return group.get(name, getlink=True)


def _find(file: h5py.File, path: str) -> h5py.Dataset | h5py.Group:
    """Finds an object step by step, because HDF5 itself would open other files on the way."""
    links, place, steps = 0, file["/"], path.split("/")
    while steps:
        if (step := steps.pop(0)) in ("", "."):
            continue
        link = _link(place, step) if isinstance(place, h5py.Group) else None
        if link is None:
            raise _Refused(f"has no dataset {path!r}")
        if isinstance(link, h5py.ExternalLink):
            raise _Refused(f"{step!r} is a link to another file; only data inside of the file is read")
        if isinstance(link, h5py.SoftLink):
            if (links := links + 1) > MOST_LINKS:
                raise _Refused(f"{step!r}: more than {MOST_LINKS} links, one after another")
            place = file["/"] if link.path.startswith("/") else place
            steps = [*link.path.split("/"), *steps]
        else:
            place = place[step]
    return place


def _check(dataset: h5py.Dataset | h5py.Group) -> None:
    if not isinstance(dataset, h5py.Dataset):
        raise _Refused(f"{dataset.name} is a {type(dataset).__name__.lower()}, wanted a dataset")
    if dataset.is_virtual or dataset.external:
        raise _Refused(f"{dataset.name} lies in other files; only data inside of the file is read")
    if dataset.dtype.kind not in "biuf":
        raise _Refused(f"{dataset.name} holds {dataset.dtype}, wanted numbers")
    if dataset.shape is None:
        raise _Refused(f"{dataset.name} is empty")
    for what, shape in (("shape", dataset.shape), ("chunks", dataset.chunks or ())):
        if (size := math.prod(shape) * dataset.dtype.itemsize) > LARGEST:
            raise _Refused(f"{dataset.name}: {what} {shape} would take {size} bytes, wanted at most {LARGEST}")
