"""How a model makes the predictions that are scored: the flags, and the record of them beside the predictions."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from marigold_jax.data.geometry import PATCH, RESIZES, fit
from marigold_jax.inference.options import add_flags
from marigold_jax.runtime import seeds
from marigold_jax.runtime.files import printable, read_json

OLD_SETTINGS = {"resize": "diffusers", "vae": None, "bucket": PATCH}  # what runs used before these settings existed


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How a model makes its predictions.

    Attributes:
        checkpoint: a folder, a Hugging Face id or the name of a bundled model; None: marigold-rooms.
        vae: the folder or id of another VAE; None: the checkpoint's own.
        split: the name of the split of prepared datasets.
        denoise_steps: None: the checkpoint's own.
        ensemble_size: predictions merged for each image.
        processing_res: the longer side of the image for the network; None: the checkpoint's own.
        resize: a key of `RESIZES`.
        bucket: sides are multiples of it; 8 is as in diffusers.
        seed: of the noise.
        batch_size: predictions computed together, which changes only their rounding; 0: what suits the device.
        dtype: "float32" or "bfloat16".
        options: further keywords of `Marigold.from_pretrained`; None: the checkpoint's own.
    """

    checkpoint: str | None
    vae: str | None
    split: str
    denoise_steps: int | None
    ensemble_size: int
    processing_res: int | None
    resize: str
    bucket: int
    seed: int
    batch_size: int
    dtype: str
    options: Mapping[str, Any]

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], options: Iterable[str]) -> "ModelSettings":
        """The settings among the flags of a program; `options` names the flags that are further keywords."""
        names = {field.name for field in dataclasses.fields(cls)} - {"options"}
        return cls(**{name: flags[name] for name in names}, options={name: flags[name] for name in options})

    def as_json(self) -> dict[str, Any]:
        """What settings.json records beside the predictions: all that changes them by more than rounding."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        options, _ = values.pop("options"), values.pop("batch_size")
        return values | dict(options)


def add_model_flags(add: Callable[..., Any]) -> None:
    """Adds the flags for `ModelSettings` to a parser, by its `add_argument`; all but `checkpoint` and `split`."""
    number = {"type": int, "metavar": "N"}
    add("--vae", metavar="NAME|DIR", help="another VAE for the same latents; madebyollin/taesd is faster and coarser")
    add("--denoise_steps", **number, help="denoising steps (default: the checkpoint's own)")
    add("--ensemble_size", **number, default=1, help="predictions merged for each image (default: 1)")
    resolution = "longer side of the image for the network; 0: its own size"
    add("--processing_res", **number, help=f"{resolution} (default: the papers', or the checkpoint's own)")
    resizing = "resize images as diffusers does, or as the official code, which made the papers' scores"
    add("--resize", choices=RESIZES, default="diffusers", help=f"{resizing} (default: %(default)s)")
    bucket = "resize to multiples of N: few programs; 8 is as in diffusers"
    add("--bucket", **number, default=PATCH, help=f"{bucket} (default: %(default)s)")
    add("--seed", type=seeds.flag, metavar="N", help="seed of the noise (default: the papers', 1234)")
    add("--batch_size", **number, default=0, help="predictions computed together; 0 suits the device (default: 0)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network (default: %(default)s)")
    add_flags(add)


def check_sizes(resize: str, processing_res: int | None, bucket: int) -> None:
    """Raises ValueError for sizes that no image can be resized to. The arguments are as in `ModelSettings`."""
    RESIZES[resize].fit((8, 8), processing_res or 0)
    fit((8, 8), 0, bucket)
    if resize != "diffusers" and bucket != PATCH:
        raise ValueError(f"--resize {resize} works without a bucket: leave out --bucket {bucket}")


def check_record(file: Path, settings: Mapping[str, Any]) -> None:
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
