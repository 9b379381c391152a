"""Runs a model on the images of a split and saves its predictions. An interrupted run continues where it stopped."""

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation.estimators import prediction_file
from marigold_jax.evaluation.model_settings import ModelSettings, check_record
from marigold_jax.evaluation.quantities import QUANTITIES
from marigold_jax.evaluation.splits import Split, count_pixels, in_message, read_example, read_name
from marigold_jax.inference.stream import Picture, Prediction, Settings, predict_all
from marigold_jax.runtime.files import printable, write, write_json


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
    check_record(record, settings.as_json())
    paths, failures = prediction_files(folder, split, indices)
    if failures and not allow_missing:
        raise ValueError(f"{split.path}: {next(iter(failures.values()))}; --allow_missing leaves it out")
    todo = [index for index, path in paths.items() if not path.exists()]
    if not todo:
        return failures
    pipe = _load(settings, split)
    write_json(record, settings.as_json())
    pictures = (
        Picture(index, partial(_read_image, split, index), partial(count_pixels, split, index)) for index in todo
    )

    def save(index: int, made: Prediction) -> None:
        depth = made.prediction.shape[2] == 1
        write(paths[index], _npy(made.prediction.squeeze(2) if depth else made.prediction))

    with (
        tqdm(total=len(todo), desc="predicting", unit="image", disable=None) as bar,
        contextlib.closing(predict_all(pipe, pictures, _for_stream(settings), save)) as outcomes,
    ):
        for index, _, error in outcomes:
            if isinstance(error, ValueError):  # from reading or resizing this image
                failures[index] = str(error)
            elif error:  # a full disk or too little memory would fail for the others too
                raise error
            bar.update()
    return failures


def _for_stream(settings: ModelSettings) -> Settings:
    return Settings(
        num_inference_steps=settings.denoise_steps,
        ensemble_size=settings.ensemble_size,
        processing_resolution=settings.processing_res,
        bucket=settings.bucket,
        resize=settings.resize,
        batch_size=settings.batch_size or None,
        seed=settings.seed,
    )


def _load(settings: ModelSettings, split: Split) -> Any:
    """The pipeline. Raises ValueError if it cannot be loaded, or estimates what the split does not hold."""
    # JAX starts here, so that --help and a mistyped flag need not wait for it.
    from marigold_jax import Marigold
    from marigold_jax.runtime import compilation_cache

    compilation_cache.enable_cache()
    options = {name: value for name, value in settings.options.items() if value is not None}
    try:
        pipe = Marigold.from_pretrained(settings.checkpoint, dtype=settings.dtype, vae=settings.vae, **options)
        pipe.sampler(settings.denoise_steps)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(error) from None
    if pipe.modality.name not in split.features:
        held = " and ".join(name for name in QUANTITIES if name in split.features)
        name = settings.checkpoint or "the default checkpoint"
        raise ValueError(f"{name} estimates {pipe.modality.name}; {split.path} holds {held}")
    return pipe


def _read_image(split: Split, index: int) -> np.ndarray:
    """The image. Raises ValueError, with the reason in one line, if its record cannot be read."""
    try:
        return read_example(split, index)["rgb"]
    except BadFrame as error:
        raise ValueError(printable(f"{error.kind}: {error.detail}")) from None


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


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
