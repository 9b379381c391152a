"""Reads the tensors of a checkpoint folder one at a time, for every naming scheme of weight files."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from marigold_jax.runtime.files import below, printable, read_json, regular
from marigold_jax.runtime.typed import shown

# Tried in this order: safetensors before pickles, full precision before half, one file before shards. An index lists
# its shards. Some libraries write ".fp16" before the extension of an index, others after it.
STEMS = {"safetensors": ("diffusion_pytorch_model", "model"), "bin": ("diffusion_pytorch_model", "pytorch_model")}
ORDER = tuple(
    form.format(stem=stem, kind=kind)
    for kind, stems in STEMS.items()
    for forms in (
        ("{stem}.{kind}", "{stem}.{kind}.index.json"),
        ("{stem}.fp16.{kind}", "{stem}.{kind}.index.fp16.json", "{stem}.fp16.{kind}.index.json"),
    )
    for form in forms
    for stem in stems
)
SHARD = re.compile(r"\w+?(\.fp16)?-\d+-of-\d+(\.fp16)?\.(safetensors|bin)")


class Tensors:
    """Names, shapes and contents of a component's tensors.

    Only names and shapes are kept in memory. A file is opened again for each tensor, because its pages are mapped into
    memory while it is open: to keep it open would double the memory needed for loading.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    def __init__(self, source: Path):
        """Reads names and shapes. `source` is the folder of a component, or one file of weights."""
        self._files = list(_weight_files(source)) if source.is_dir() else [source]
        self._pickled: dict[str, Any] = {}
        self._file: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            for name, shape in self._read_names(file):
                if name in self.shapes:
                    raise ValueError(f"{file}: {shown(name)} is in {self._file[name].name} too; download both again")
                self.shapes[name], self._file[name] = shape, file

    def _read_names(self, file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        if file.suffix == ".bin":
            tensors = _unpickle(file)
            self._pickled |= tensors
            yield from ((name, tuple(tensor.shape)) for name, tensor in tensors.items())
            return
        with _open(file) as tensors:
            for name in tensors.keys():
                yield name, tuple(tensors.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Returns the tensor in its stored dtype. Raises ValueError unless it is floating-point and finite."""
        file = self._file[name]
        if name in self._pickled:
            array = _to_numpy(self._pickled.pop(name), name, file)
        else:
            with _open(file) as tensors:
                try:
                    array = tensors.get_tensor(name)
                except (SafetensorError, TypeError, KeyError, AttributeError) as error:  # a dtype that NumPy lacks
                    raise ValueError(f"{file}: {shown(name)} cannot be read ({_line(error)})") from error
        if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
            raise ValueError(f"{file}: {shown(name)} is {array.dtype}, wanted floating-point numbers")
        require_finite(array, f"{file}: {shown(name)}")
        return array

    def __str__(self) -> str:
        return ", ".join(str(file) for file in self._files[:1]) + (" and its shards" if len(self._files) > 1 else "")


def require_finite(array: np.ndarray, name: str) -> None:
    """Raises ValueError, which starts with `name`, if a number is NaN or infinite."""
    wrong = array.size - np.count_nonzero(np.isfinite(array))
    if wrong:
        raise ValueError(f"{name}: {wrong} of {array.size} numbers are NaN or infinite; the weights are damaged")


def choose(names: Iterable[str]) -> str | None:
    """Returns which of the file names in a folder has the weights or is the index of their shards; None if none is."""
    found = set(names)
    return next((name for name in ORDER if name in found), None)


def shards_of(index: str, names: Iterable[str]) -> list[str]:
    """Returns the file names in a folder that have the form of the shards of an index."""
    kind = "bin" if ".bin." in index else "safetensors"
    matches = {name: SHARD.fullmatch(name) for name in names}
    half = ".fp16" in index
    return sorted(
        name for name, found in matches.items() if found and found[3] == kind and bool(found[1] or found[2]) == half
    )


def _weight_files(folder: Path) -> Iterator[Path]:
    found = {path.name for path in folder.iterdir()}
    chosen = choose(found)
    if chosen is None:
        raise FileNotFoundError(f"{folder}: no weights here, wanted {ORDER[0]} (or a sharded, .fp16 or .bin variant)")
    if not chosen.endswith(".json"):
        yield folder / chosen
        return
    file = folder / chosen
    places = read_json(file).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{file}: weight_map = {shown(places)}: wanted an object that names each tensor's shard")
    for name in sorted(set(places.values())):
        try:
            shard = below(folder, name)
        except ValueError as error:
            raise ValueError(f"{file}: weight_map: {error}") from None
        if shard.suffix not in (".safetensors", ".bin"):
            raise ValueError(f"{file}: weight_map: {shown(name)} is neither a .safetensors nor a .bin file")
        if not shard.exists():
            raise FileNotFoundError(f"{printable(shard)}: missing, but {chosen} lists it; download the folder again")
        yield shard


def _open(file: Path):
    try:
        return safe_open(regular(file), framework="numpy")
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file}: truncated, or not a safetensors file ({_line(error)}); download it again") from error


def unpickle(file: Path) -> dict[str, np.ndarray]:
    """Returns the float32 tensors of a pickled checkpoint. No code in it is run. Raises ImportError or ValueError."""
    return {name: _to_numpy(tensor.float(), name, file) for name, tensor in _unpickle(file).items()}


def _unpickle(file: Path) -> dict[str, Any]:
    """Returns PyTorch's tensors as they are stored; an expanded tensor takes no more memory than its storage."""
    regular(file)
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{file}: a pickled checkpoint needs PyTorch to be read: pip install torch, or get the .safetensors file"
        ) from error
    try:
        # Without weights_only, a pickle can run any code.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here: UnpicklingError, EOFError, RuntimeError
        raise ValueError(f"{file}: not a plain checkpoint, or truncated; get the .safetensors file") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file}: holds a {type(state).__name__}, wanted a dict from names to tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file}: {shown(name)} is a {type(tensor).__name__}, wanted names and tensors only")
    return state


def _to_numpy(tensor: Any, name: str, file: Path) -> np.ndarray:
    try:
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # sparse, quantised, or without data; torch raises many types here
        raise ValueError(f"{file}: {shown(name)} is not a plain tensor ({_line(error)})") from error


def _line(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])
