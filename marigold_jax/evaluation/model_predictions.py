"""Runs a model on the images of a split and saves its predictions. An interrupted run continues where it stopped."""

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax.data.geometry import RESIZES
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation.estimators import prediction_file
from marigold_jax.evaluation.quantities import QUANTITIES
from marigold_jax.evaluation.splits import Split, in_message, read_example, read_name
from marigold_jax.runtime.files import printable, read_json, write, write_json

IMAGES_PER_CALL = 16
OLD_SETTINGS = {"resize": "diffusers"}  # what runs used before the setting existed


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How a model makes its predictions.

    Attributes:
        checkpoint: a folder, a Hugging Face id or the name of a bundled model; None: marigold-rooms.
        split: the name of the split of prepared datasets.
        denoise_steps: None: the checkpoint's own.
        ensemble_size: predictions merged for each image.
        processing_res: the longer side of the image for the network; None: the checkpoint's own.
        resize: a key of `RESIZES`.
        seed: of the noise.
        dtype: "float32" or "bfloat16".
        options: further keywords of `Marigold.from_pretrained`; None: the checkpoint's own.
    """

    checkpoint: str | None
    split: str
    denoise_steps: int | None
    ensemble_size: int
    processing_res: int | None
    resize: str
    seed: int
    dtype: str
    options: Mapping[str, Any]

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], options: Iterable[str]) -> "ModelSettings":
        """The settings among the flags of a program; `options` names the flags that are further keywords."""
        names = {field.name for field in dataclasses.fields(cls)} - {"options"}
        return cls(**{name: flags[name] for name in names}, options={name: flags[name] for name in options})

    def as_json(self) -> dict[str, Any]:
        """What settings.json records beside the predictions."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        options = values.pop("options")
        return values | dict(options)


def predict_split(
    settings: ModelSettings, folder: Path, split: Split, indices: Sequence[int], allow_missing: bool
) -> dict[int, str]:
    """Makes the predictions that are not in the folder yet.

    Args:
        settings: how to make them.
        folder: where NAME.npy is written for each image NAME.
        split: the images.
        indices: the images of the split to predict.
        allow_missing: accept images whose name cannot be a file.

    Returns:
        Why an image has no prediction, by its index.

    Raises:
        ValueError: in one line: the model cannot be loaded or does not fit the split, or the folder holds predictions
            that were made with other settings.
    """
    record = folder / "settings.json"
    check_settings(record, settings.as_json())
    paths, failures = prediction_files(folder, split, indices)
    if failures and not allow_missing:
        raise ValueError(f"{split.path}: {next(iter(failures.values()))}; --allow_missing leaves it out")
    todo = [index for index, path in paths.items() if not path.exists()]
    if not todo:
        return failures
    pipe = _load(settings, split)
    resolution = pipe.default_processing_resolution if settings.processing_res is None else settings.processing_res
    write_json(record, settings.as_json())
    with tqdm(total=len(todo), desc="predicting", unit="image", disable=None) as bar:
        for start in range(0, len(todo), IMAGES_PER_CALL):
            some = todo[start : start + IMAGES_PER_CALL]
            images, unreadable = _read_images(split, some, settings.resize, resolution)
            failures |= unreadable
            predictions = ()
            if images:
                predictions = pipe(
                    list(images.values()),
                    num_inference_steps=settings.denoise_steps,
                    ensemble_size=settings.ensemble_size,
                    processing_resolution=resolution,
                    seed=settings.seed,
                    resize=settings.resize,
                ).prediction
            for index, prediction in zip(images, predictions, strict=True):
                write(paths[index], _npy(prediction.squeeze(2) if prediction.shape[2] == 1 else prediction))
            bar.update(len(some))
    return failures


def _load(settings: ModelSettings, split: Split) -> Any:
    """The pipeline. Raises ValueError if it cannot be loaded, or estimates what the split does not hold."""
    # JAX starts here, so that --help and a mistyped flag need not wait for it.
    from marigold_jax import Marigold
    from marigold_jax.runtime import compilation_cache

    compilation_cache.enable_cache()
    options = {name: value for name, value in settings.options.items() if value is not None}
    try:
        pipe = Marigold.from_pretrained(settings.checkpoint, dtype=settings.dtype, **options)
        pipe.sampler(settings.denoise_steps)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(error) from None
    if pipe.modality.name not in split.features:
        held = " and ".join(name for name in QUANTITIES if name in split.features)
        name = settings.checkpoint or "the default checkpoint"
        raise ValueError(f"{name} estimates {pipe.modality.name}; {split.path} holds {held}")
    return pipe


def _read_images(
    split: Split, indices: Sequence[int], resize: str, resolution: int
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """The images by index, and why the others cannot be predicted."""
    images, failures = {}, {}
    for index in indices:
        try:
            rgb = read_example(split, index)["rgb"]
            RESIZES[resize].fit(rgb.shape[:2], resolution)
            images[index] = rgb
        except BadFrame as error:
            failures[index] = printable(f"{error.kind}: {error.detail}")
        except ValueError as error:
            failures[index] = str(error)
    return images, failures


def prediction_files(folder: Path, split: Split, indices: Sequence[int]) -> tuple[dict[int, Path], dict[int, str]]:
    """The file of each image's prediction, and why some images can have none; both by index."""
    paths, failures, taken = {}, {}, {}
    for index in indices:
        try:
            name = read_name(split, index)
            path = prediction_file(folder, name)
            if (other := taken.setdefault(path, name)) != name or path in paths.values():
                raise ValueError(f"{in_message(name)}: its prediction would overwrite that of {in_message(other)}")
            paths[index] = path
        except BadFrame as error:
            failures[index] = printable(f"{error.kind}: {error.detail}")
        except ValueError as error:
            failures[index] = str(error)
    return paths, failures


def check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError if there are predictions beside `file` that were made with other or unknown settings."""
    if next(file.parent.rglob("*.npy"), None) is None:
        return  # an earlier run ended before its first prediction
    try:
        found = OLD_SETTINGS | read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error}: the settings of the predictions beside it are unknown; choose another --output_dir, or remove "
            f"{printable(file.parent)}"
        ) from None
    changed = [f"{key} was {found.get(key)}, is {value}" for key, value in settings.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{file.parent} holds predictions made with other settings ({'; '.join(changed)}); choose another "
            "--output_dir"
        )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
