"""From section `data` of a configuration to what a training reads: batches without end, and held-out examples."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marigold_jax.data.loader import Augmentation, DataSource, Loader, ProcessShare, make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.primitives import Primitives
from marigold_jax.data.transforms import SampleOptions
from marigold_jax.training import encode_dataset
from marigold_jax.training.targets import TARGETS
from marigold_jax.weights.model import Component

Config = Mapping[str, Mapping[str, Any]]  # section -> its keys
Section = Mapping[str, Any]

NO_VALIDATION = ("", None, "None", "none")  # on the command line, None becomes a string
BUILT_IN = {"primitives/train": {"count": 100_000, "seed": 0}, "primitives/val": {"count": 1000, "seed": 1}}


def batch_keys(config: Config) -> tuple[str, ...]:
    """Returns the keys of a batch that the objective may read."""
    if config["run"].get("latents", ""):
        return ("latents", "latent_mask")
    return ("rgb", TARGETS[config["model"]["prediction"]].key, "mask", "span", "depth")


def training_batches(config: Config, vae: Component, stopping: Callable[[], object] = lambda: False) -> Loader:
    """Returns this process's share of the batches that a run trains on.

    With `run.latents`, frames that are not encoded yet are encoded first. All processes must call this.

    Args:
        config: the sections `data`, `model` and `run` of it are read.
        vae: of the model that trains.
        stopping: anything true that it returns ends the encoding.

    Raises:
        ValueError: a key of the configuration has no sensible value, or a dataset is missing or cannot be used.
        InterruptedError: `stopping` returned something true.
    """
    data, run, target = config["data"], config["run"], config["model"]["prediction"]
    processes, stored = jax.process_count(), run.get("latents", "")
    if data["batch_size"] % processes:
        raise ValueError(f"config.data.batch_size={data['batch_size']}: wanted a multiple of the {processes} processes")
    mix = mixture(data["train"])
    datasets = {name: open_named("train", name, data) for name, _ in mix}
    frames = {
        "size": training_size(data["size"], vae.config.downsampling),
        "antialias": data["antialias"],
        "far_fill": data["far_fill"],
    }
    if stored:
        if built_in := datasets.keys() & BUILT_IN.keys():
            raise ValueError(f"config.run.latents={stored}: wanted prepared datasets, not {min(built_in)}")
        if data["zoom"] != 1:
            raise ValueError(f"config.run.latents={stored}: only whole frames are stored; wanted config.data.zoom=1.0")
        encoding = encode_dataset.Encoding(target, stored, **frames)
        datasets = {
            name: encode_dataset.cached(split, vae, encoding, data["num_workers"], stopping)
            for name, split in datasets.items()
        }
    return make_loader(
        [(datasets[name], share) for name, share in mix],
        batch_size=data["batch_size"] // processes,
        seed=run["seed"],
        target=TARGETS[target].data,
        options=SampleOptions(**frames),
        augmentation=Augmentation(data["flip"], data["zoom"]),
        process=ProcessShare(jax.process_index(), processes),
        num_workers=data["num_workers"],
    )


def validation_examples(config: Config) -> list[dict[str, np.ndarray]]:
    """Returns the examples that a run is validated on, spread evenly over the dataset; empty without validation.

    Raises:
        ValueError: the dataset is missing, or lacks what the model predicts.
    """
    data, run = config["data"], config["run"]
    if not run["evaluate_every"] or data["validation"] in NO_VALIDATION:
        return []
    dataset = open_named("validation", data["validation"], data)
    spread = np.linspace(0, len(dataset) - 1, min(run["validation_images"], len(dataset))).astype(int)
    examples = [dataset[int(index)] for index in spread]
    feature = TARGETS[config["model"]["prediction"]].feature
    if feature not in examples[0]:
        raise ValueError(
            f"config.data.validation={data['validation']} has no {feature}; 0 for config.run.evaluate_every"
        )
    return examples


def mixture(train: Sequence) -> list[tuple[str, float]]:
    """Returns `data.train` as pairs of a dataset and its share. Raises ValueError if it is anything else.

    A value on the command line that Python cannot parse arrives as a string.
    """
    try:
        return [(str(name), float(share)) for name, share in train]
    except (TypeError, ValueError):
        wanted = "(('NAME/SPLIT', 0.9), ('NAME/SPLIT', 0.1))"
        raise ValueError(f"config.data.train: wanted pairs with numbers, {wanted}; found {train}") from None


def training_size(size: Sequence[int], cell: int) -> tuple[int, int] | None:
    """Returns `data.size` as (height, width), or None if each dataset keeps its own size.

    Raises ValueError for a size that is not a multiple of `cell`, the factor by which the VAE downsamples.
    """
    size = tuple(size) if isinstance(size, list | tuple) else size
    if size == ():
        return None
    good = isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    if not good or size[0] % cell or size[1] % cell:
        raise ValueError(
            f"config.data.size={size}: wanted (height, width), multiples of {cell}, or () for each its own"
        )
    return size


def open_named(key: str, name: str, data: Section) -> DataSource | Sequence[dict]:
    """Returns the dataset `name`. Raises ValueError, which says what this `key` of section `data` accepts."""
    wanted = "a prepared NAME/SPLIT, as my_scans/train"
    if key == "validation":
        first = str(mixture(data["train"])[0][0]).rpartition("/")[0] or "my_scans"
        wanted = f"a prepared NAME/SPLIT, as {first}/val, or '' to train without validation"
    try:
        if not isinstance(name, str) or not all(name.rpartition("/")[::2]):
            raise ValueError("is no such name")
        return open_dataset(name, data)
    except ValueError as error:
        raise ValueError(f"config.data.{key}={name}: wanted {wanted}; {error}") from None


def open_dataset(name: str, data: Section) -> DataSource:
    """Returns a built-in dataset, or the prepared split of this name in `data_dir`."""
    if name in BUILT_IN:
        return Primitives(size=tuple(data["size"]), **BUILT_IN[name])
    return PreparedSplit(str(Path(data["data_dir"]) / name))
