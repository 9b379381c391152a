"""What a model says about itself in `model_index.json`, the defaults for what it leaves out, and the caller's options.

Keys of the file that begin with an underscore are our own; diffusers ignores them. End-to-end fine-tuned models as
their authors publish them (arXiv 2409.11355) have the class StableDiffusionPipeline and say nothing else; `PUBLISHED`
is how those are run. The models that we train end to end say so in the file.
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from marigold_jax.runtime.typed import Between, fields_of, fill


class Option(NamedTuple):
    """A field of `ModelIndex` that the caller may override.

    Attributes:
        field: its name.
        values: the possible values.
        help: what it does, for the --help of programs.
    """

    field: str
    values: tuple[Any, ...]
    help: str


OPTIONS = {
    "modality": Option("prediction_type", ("depth", "normals"), "what the network estimates"),
    "noise": Option("noise", ("gaussian", "zeros", "multi_resolution"), "what denoising starts from"),
    "x0": Option("x0", (False, True), "return the last estimate of x0 instead of one DDIM step from it"),
    "stretch": Option(
        "stretch", (False, True), "use the range of each image: stretch depth to [0, 1], do not clip normals"
    ),
    "x_axis": Option("x_axis", ("right", "left"), "direction of x in the network's normals; results point right"),
}

# Field -> key of `model_index.json`, where they differ.
JSON_KEYS = {
    "class_name": "_class_name",
    "noise": "_noise",
    "x0": "_x0",
    "stretch": "_stretch",
    "x_axis": "_x_axis",
    "exported_step": "_exported_step",
}


@dataclass(frozen=True)
class ModelIndex:
    """The scalars of a `model_index.json`. A field is None if the file does not have it, or says null.

    Attributes:
        values: the JSON object, in its order, with the keys that are not read here. It is what gets written back.
        class_name: diffusers' pipeline, such as "MarigoldDepthPipeline".
        prediction_type: "depth", "disparity" or "normals"; other values belong to other kinds of model.
        default_denoising_steps: denoising steps if the caller does not say.
        default_processing_resolution: pixels of the longer side; 0 is the image's own size.
        scale_invariant: the scale of depth is free, so ensembling aligns it.
        shift_invariant: the shift of depth is free, so ensembling aligns it.
        use_full_z_range: the z of normals spans [-1, 1]; otherwise [0, 1] is spread over the decoder's range.
        noise: what denoising starts from.
        x0: sampling returns the last estimate of x0.
        stretch: training left the range free: depth is stretched to [0, 1], normals are not clipped.
        x_axis: where normals point along x.
        exported_step: the training step that the weights are from.

    Raises:
        ValueError: a value has the wrong type or is out of range. The message starts with `source`, the file or the
            setting that `values` came from.
    """

    values: Mapping[str, Any]
    source: InitVar[object] = "model_index.json"
    class_name: str | None = field(init=False, default=None)
    prediction_type: str | None = field(init=False, default=None)
    default_denoising_steps: Annotated[int, Between(1, 1000)] | None = field(init=False, default=None)
    default_processing_resolution: Annotated[int, Between(0, 2**14, multiple=8)] | None = field(
        init=False, default=None
    )
    scale_invariant: bool | None = field(init=False, default=None)
    shift_invariant: bool | None = field(init=False, default=None)
    use_full_z_range: bool | None = field(init=False, default=None)
    noise: Literal["gaussian", "zeros", "multi_resolution"] | None = field(init=False, default=None)
    x0: bool | None = field(init=False, default=None)
    stretch: bool | None = field(init=False, default=None)
    x_axis: Literal["right", "left"] | None = field(init=False, default=None)
    exported_step: int | None = field(init=False, default=None)

    def __post_init__(self, source: object) -> None:
        fill(self, self.values, source, JSON_KEYS)

    def replace(self, **fields: Any) -> "ModelIndex":
        """Returns the index with these fields changed. Raises as the constructor does."""
        return ModelIndex({**self.values, **to_json(**fields)})


# What diffusers does; an index that does not say otherwise is run like this.
DEFAULTS = {"noise": "gaussian", "x0": False, "stretch": False, "x_axis": "right"}
PUBLISHED = {
    "StableDiffusionPipeline": {
        "noise": "zeros",
        "x0": True,
        "stretch": True,
        "x_axis": "left",
        "default_denoising_steps": 1,
    }
}
# What we write for models that we train end to end. Their normals point right, as those in the training data do.
END_TO_END = {"x0": True, "stretch": True}


def to_json(**fields: Any) -> dict[str, Any]:
    """Returns these fields of a `ModelIndex` under their keys in `model_index.json`."""
    if unknown := fields.keys() - fields_of(ModelIndex).keys():
        raise TypeError(f"ModelIndex has no field {', '.join(sorted(unknown))}")
    return {JSON_KEYS.get(name, name): value for name, value in fields.items()}


def read(values: Mapping[str, Any], file: Path) -> ModelIndex:
    """Returns the index of a `model_index.json`, or of the same object in a native folder.

    Args:
        values: the contents of `file`. Lists and objects, which name the components, are left out.
        file: for error messages.

    Raises:
        ValueError: as `ModelIndex`.
    """
    ModelIndex(values, file)  # also checks what is left out below
    scalars = {key: value for key, value in values.items() if isinstance(value, str | int | float | None)}
    return ModelIndex(scalars, file)


def complete(index: ModelIndex) -> ModelIndex:
    """Returns the index with `noise`, `x0`, `stretch` and `x_axis` filled in where it does not say."""
    wanted = DEFAULTS | PUBLISHED.get(index.class_name or "", {})
    return index.replace(**{name: value for name, value in wanted.items() if getattr(index, name) is None})


def override(index: ModelIndex, name: str, **options: Any) -> ModelIndex:
    """Returns the index with the caller's options in place of its own values.

    Where neither says what is estimated, the name of a published end-to-end model may: a folder or a Hugging Face id
    that contains "depth" or "normal".

    Args:
        index: as read from the file.
        name: the folder or the Hugging Face id that the model was loaded from.
        **options: rows of `OPTIONS`; None keeps the value of the index.

    Raises:
        ValueError: an option has none of its possible values.
    """
    chosen = {option: value for option, value in options.items() if value is not None}
    for option, value in chosen.items():
        if value not in OPTIONS[option].values:
            raise ValueError(f"{option} is {value!r}, wanted one of {', '.join(map(str, OPTIONS[option].values))}")
    fields = {OPTIONS[option].field: value for option, value in chosen.items()}
    last = Path(name).name.partition("@")[0].lower()
    named = [modality for modality in OPTIONS["modality"].values if modality.removesuffix("s") in last]
    says_nothing = "prediction_type" not in fields and index.prediction_type is None
    if says_nothing and index.class_name in PUBLISHED and len(named) == 1:
        fields["prediction_type"] = named[0]
    return index.replace(**fields)
