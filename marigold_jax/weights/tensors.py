"""The tensors of one component of a checkpoint folder, read one at a time, whatever the files are called."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

# Tried in this order: safetensors before pickles, full precision before half.
SAFETENSORS = ("diffusion_pytorch_model", "model")
PICKLES = ("diffusion_pytorch_model", "pytorch_model")
INDEX = (  # (index file, what it points to)
    *(f"{stem}.safetensors.index{variant}.json" for variant in ("", ".fp16") for stem in SAFETENSORS),
)


class Tensors:
    """Names, shapes and contents of a component's tensors.

    Only names and shapes are kept. A file is opened anew for each tensor: its pages are mapped into memory while it
    is open, and keeping them would double the memory that loading takes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files = list(_weight_files(folder))
        self._pickled: dict[str, np.ndarray] = {}
        self._file: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            if file.suffix == ".bin":
                self._pickled |= unpickle(file)
                continue
            with _open(file) as tensors:
                for name in tensors.keys():
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    self._file[name] = file
        self.shapes |= {name: array.shape for name, array in self._pickled.items()}

    def read(self, name: str) -> np.ndarray:
        """The tensor in the dtype it was stored in."""
        if name in self._pickled:
            return self._pickled.pop(name)
        with _open(self._file[name]) as tensors:
            return tensors.get_tensor(name)

    def __str__(self) -> str:
        return ", ".join(str(file) for file in self._files[:1]) + (" and its shards" if len(self._files) > 1 else "")


def _weight_files(folder: Path) -> Iterator[Path]:
    indices = [*INDEX, *(f"{stem}.bin.index.json" for stem in PICKLES)]
    singles = [
        *(f"{stem}{variant}.safetensors" for variant in ("", ".fp16") for stem in SAFETENSORS),
        *(f"{stem}{variant}.bin" for variant in ("", ".fp16") for stem in PICKLES),
    ]
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # A single safetensors file, then shards, then pickles.
    order = sorted(singles + indices, key=lambda name: (".bin" in name, "index" in name))
    chosen = next((name for name in order if name in found), None)
    if chosen is None:
        raise FileNotFoundError(f"{folder}: no weights here, wanted {singles[0]} (or a sharded, .fp16 or .bin variant)")
    if not chosen.endswith(".json"):
        yield folder / chosen
        return
    for shard in sorted(set(json.loads((folder / chosen).read_text())["weight_map"].values())):
        if shard not in found:
            raise FileNotFoundError(f"{folder / shard}: missing, though {chosen} names it; download the folder again")
        yield folder / shard


def _open(file: Path):
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); download it again") from error


def unpickle(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{file}: a pickled checkpoint needs PyTorch to be read: pip install torch, or get the .safetensors file"
        ) from error
    try:
        # weights_only: a pickle may otherwise run any code it likes.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, EOFError, RuntimeError: torch has many words for it
        raise ValueError(f"{file}: not a plain checkpoint, or not a whole one; get the .safetensors file") from error
    return {name: tensor.float().numpy() for name, tensor in state.items()}
