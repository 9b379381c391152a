"""What a checkpoint says of itself in `model_index.json`, what it leaves unsaid, and what the caller says instead.

Keys that begin with an underscore are our own; diffusers passes over them. End-to-end fine-tuned checkpoints as their
authors publish them (arXiv 2409.11355) call themselves StableDiffusionPipeline and say nothing more; `PUBLISHED` is how
those are run. What we train end to end says so itself.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from marigold_jax.runtime.typed import Between, problems

Description = Mapping[str, Any]  # the scalars of model_index.json


class Option(NamedTuple):
    """`key` of `model_index.json`, its possible `values`, and, for the programs' --help, what it does."""

    key: str
    values: tuple[Any, ...]
    help: str


OPTIONS = {
    "modality": Option("prediction_type", ("depth", "normals"), "what the network estimates"),
    "noise": Option("_noise", ("gaussian", "zeros", "multi_resolution"), "what denoising begins with"),
    "x0": Option("_x0", (False, True), "end in the estimate of the clean latent, not one step of DDIM from it"),
    "stretch": Option("_stretch", (False, True), "each picture's own range: depth to [0, 1], normals not clipped"),
    "x_axis": Option("_x_axis", ("right", "left"), "where the network's normals point along x; ours point right"),
}
# The type and range of what is read here; other keys are passed over.
FIELDS = {
    "_class_name": str | None,
    "prediction_type": str | None,
    "default_denoising_steps": Annotated[int, Between(1, 1000)] | None,
    "default_processing_resolution": Annotated[int, Between(0, 2**14, multiple=8)] | None,
    **dict.fromkeys(("scale_invariant", "shift_invariant", "use_full_z_range"), bool | None),
    **{option.key: Literal[option.values] | None for option in OPTIONS.values() if option.key.startswith("_")},
}
SILENT = {"_noise": "gaussian", "_x0": False, "_stretch": False, "_x_axis": "right"}  # diffusers' behaviour
PUBLISHED = {
    "StableDiffusionPipeline": {
        "_noise": "zeros",
        "_x0": True,
        "_stretch": True,
        "_x_axis": "left",
        "default_denoising_steps": 1,
    }
}
# What stands in the description of what we train end to end. Its normals point right, as those it learned from.
END_TO_END = {"_x0": True, "_stretch": True}


def read(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The scalars of a `model_index.json` or of the same in a native checkpoint: `values` of `file`, checked.

    Raises ValueError, which names the file, for a value of another type, or out of range.
    """
    if wrong := problems(values, FIELDS):
        raise ValueError(f"{file}: {'; '.join(wrong)}")
    return {key: value for key, value in values.items() if isinstance(value, str | int | float | None)}


def complete(description: Description) -> dict[str, Any]:
    """Returns the description with nothing left unsaid but the modality.

    Raises ValueError for a value that is none of its option's; `prediction_type` may be another modality's.
    """
    said = {key: value for key, value in description.items() if value is not None}
    full = SILENT | PUBLISHED.get(said.get("_class_name"), {}) | said
    for option in OPTIONS.values():
        if option.key in SILENT and full[option.key] not in option.values:
            raise ValueError(
                f"model_index.json: {option.key} is {full[option.key]!r}, wanted one of {_listed(option.values)}"
            )
    return full


def override(description: Description, name: str, **options: Any) -> dict[str, Any]:
    """Returns the description with the `options` that are not None in place of what it says.

    Where neither says what is estimated, the checkpoint's `name` may: a folder or a Hugging Face id that speaks of
    depth, or of normals. Raises ValueError for a value that is none of its option's.
    """
    for option, value in options.items():
        if value is not None and value not in OPTIONS[option].values:
            raise ValueError(f"{option} is {value!r}, wanted one of {_listed(OPTIONS[option].values)}")
    given = {OPTIONS[option].key: value for option, value in options.items() if value is not None}
    last = Path(name).name.partition("@")[0].lower()
    named = [modality for modality in OPTIONS["modality"].values if modality.removesuffix("s") in last]
    silent = "prediction_type" not in given and description.get("prediction_type") is None
    if silent and description.get("_class_name") in PUBLISHED and len(named) == 1:
        given["prediction_type"] = named[0]
    return {**description, **given}


def add_flags(add: Callable[..., Any]) -> None:
    """Adds a flag for each option to a parser, by its `add_argument`."""
    for name, option in OPTIONS.items():
        switch = option.values == (False, True)
        kind = {"action": argparse.BooleanOptionalAction} if switch else {"choices": option.values}
        add(f"--{name}", default=None, help=f"{option.help} (default: the checkpoint's own)", **kind)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given as flags."""
    return {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))
