"""The contents of diffusers' `scheduler_config.json`, as a frozen dataclass."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any

from marigold_jax.runtime.typed import Between, fields_of, fill, shown

_Beta = Annotated[float, Between(0, 1000)]
_Steps = Annotated[int, Between(1, 10**5)]

# The classes that can be sampled. A DDPM or PNDM config gets the defaults of `DDIMScheduler`, as
# `DDIMScheduler.from_config` would give it.
_DEFAULTS = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": {},
    "LCMScheduler": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    },
}


@dataclass(frozen=True)
class SchedulerConfig:
    """What a `scheduler_config.json` says, completed with diffusers' defaults.

    A file keeps the keys of whichever scheduler first wrote it, so every class accepts the keys of all four. Keys that
    start with an underscore are notes of the library that wrote the file; they are kept, and only `_class_name` is
    read. A class that cannot be sampled is accepted here, because training may replace it; see `require_known_class`.

    Attributes:
        values: the JSON object, in its order. It is what gets written back.
        class_name: `_class_name`; None if the file does not have it.

    Raises:
        ValueError: a key is unknown, or a value has the wrong type or is out of range. The message starts with
            `source`, the file or the setting that `values` came from.
    """

    values: Mapping[str, Any]
    source: InitVar[object] = "scheduler config"
    class_name: str | None = field(init=False, default=None)
    num_train_timesteps: _Steps = field(init=False, default=1000)
    beta_start: _Beta = field(init=False, default=0.0001)
    beta_end: _Beta = field(init=False, default=0.02)
    beta_schedule: str = field(init=False, default="linear")
    trained_betas: Annotated[tuple[_Beta, ...], Between(1, 10**5)] | None = field(init=False, default=None)
    clip_sample: bool = field(init=False, default=True)
    clip_sample_range: float = field(init=False, default=1.0)
    set_alpha_to_one: bool = field(init=False, default=True)
    steps_offset: Annotated[int, Between(0, 10**5)] = field(init=False, default=0)
    prediction_type: str = field(init=False, default="epsilon")
    thresholding: bool = field(init=False, default=False)
    dynamic_thresholding_ratio: float = field(init=False, default=0.995)
    sample_max_value: float = field(init=False, default=1.0)
    timestep_spacing: str = field(init=False, default="leading")
    rescale_betas_zero_snr: bool = field(init=False, default=False)
    original_inference_steps: _Steps = field(init=False, default=50)
    timestep_scaling: Annotated[float, Between(1e-6, 1e6)] = field(init=False, default=10.0)
    variance_type: str | None = field(init=False, default=None)
    skip_prk_steps: bool = field(init=False, default=False)

    def __post_init__(self, source: object) -> None:
        if unknown := unknown_keys(self.values):
            expected = sorted(fields_of(SchedulerConfig).keys() - {"class_name"})
            raise ValueError(f"{source}: unknown keys {unknown}, expected among {expected}; remove them")
        class_name = self.values.get("_class_name")
        defaults = _DEFAULTS.get(class_name, {}) if isinstance(class_name, str) else {}
        fill(self, {**defaults, **self.values}, source, JSON_KEYS)

    def replace(self, changes: Mapping[str, Any], source: object = "scheduler config") -> "SchedulerConfig":
        """Returns the config with these keys of the JSON object replaced or added. Raises as the constructor does."""
        return SchedulerConfig({**self.values, **changes}, source)

    def require_known_class(self) -> None:
        """Raises ValueError unless `class_name` is DDIM, DDPM, PNDM or LCM."""
        if self.class_name not in _DEFAULTS:
            raise ValueError(
                f"scheduler config: _class_name is {shown(self.class_name)}, expected one of {sorted(_DEFAULTS)}; "
                "save the scheduler as one of these"
            )


JSON_KEYS = {"class_name": "_class_name"}  # attribute -> key of the JSON object, where they differ


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """Returns the keys that none of the four schedulers has, sorted."""
    known = fields_of(SchedulerConfig)
    return sorted(key for key in values if not key.startswith("_") and (key not in known or key in JSON_KEYS))
