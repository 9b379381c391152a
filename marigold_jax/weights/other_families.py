"""Recognises checkpoints of related model families that are not supported, so that the error can name the family.

They have Stable Diffusion's networks and folder layout, but other inputs and outputs. Each row of `FAMILIES` is a
family, and the signs by which its folder is recognised.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from marigold_jax.runtime.files import printable

LATENT = 4  # channels of Stable Diffusion's latents


class Signs(NamedTuple):
    """The facts that identify a family. Values from JSON may be of any type.

    Attributes:
        class_name: `_class_name` in `model_index.json`; empty if there is none.
        parts: the components in `model_index.json`, and the files and folders in the folder.
        unet: the contents of `unet/config.json`.
        scheduler: the contents of `scheduler_config.json`.
    """

    class_name: str
    parts: frozenset[str]
    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def channels(self) -> tuple[Any, Any]:
        """Input and output channels of the UNet; diffusers' default if the file does not give them."""
        return self.unet.get("in_channels", LATENT), self.unet.get("out_channels", LATENT)

    @property
    def classes(self) -> Any:
        """The size of the vector that the class embedding reads; None if there is no class embedding."""
        embeds = self.unet.get("class_embed_type") == "projection"
        return self.unet.get("projection_class_embeddings_input_dim") if embeds else None


class Family(NamedTuple):
    """A family that is not supported.

    Attributes:
        name: of the family.
        signs: description of a sign -> its test. One sign is enough.
        why: the reason why the family is not supported.
    """

    name: str
    signs: Mapping[str, Callable[[Signs], bool]]
    why: str


def _called(*words: str) -> Callable[[Signs], bool]:
    return lambda signs: any(word in signs.class_name.lower() for word in words)


def _has(*parts: str) -> Callable[[Signs], bool]:
    return lambda signs: not signs.parts.isdisjoint(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


CLASS = "its _class_name"
FAMILIES = (
    Family(
        "Marigold for high resolution",
        {CLASS: _called("marigolddepthhr"), "its boosting_unet/": _has("boosting_unet")},
        "it refines tiles with a second UNet",
    ),
    Family(
        "Marigold for intrinsic images",
        {
            CLASS: _called("intrinsic", "marigoldiid"),
            "a UNet from the latents of the image and of several targets to those of the targets": lambda signs: (
                signs.channels in [((targets + 1) * LATENT, targets * LATENT) for targets in range(2, 9)]
            ),
        },
        "it estimates albedo, material or shading, several images at once",
    ),
    Family(
        "StableNormal",
        {CLASS: _called("stablenormal", "yoso"), "its dino_controlnet/": _has("dino_controlnet")},
        "it needs a ControlNet",
    ),
    Family(
        "a pipeline with a ControlNet, such as StableNormal",
        {CLASS: _called("controlnet"), "its controlnet/": _has("controlnet")},
        "the ControlNet would be ignored",
    ),
    Family(
        "GeoWizard",
        {
            CLASS: _called("geowizard", "depthnormal"),
            "its unet_v2/": _has("unet_v2"),
            "a class embedding of 10 numbers": lambda signs: signs.classes == 10,
            "an image encoder, and no text encoder, beside a UNet from 8 to 4 channels": lambda signs: (
                {"image_encoder", "unet"} <= signs.parts
                and "text_encoder" not in signs.parts
                and signs.channels == (8, 4)
            ),
        },
        "it estimates depth and normals as a pair, from an image embedding",
    ),
    Family(
        "Lotus",
        {
            CLASS: _called("lotus"),
            "a class embedding of 4 numbers before 4 channels": lambda signs: (
                signs.classes == 4 and signs.channels == (4, 4)
            ),
        },
        "it estimates the clean latent in one step, with a class embedding for the task",
    ),
    Family(
        "Lotus-G or GeoWizard 2",
        {"a class embedding of 4 numbers": lambda signs: signs.classes == 4},
        "its class embedding is not implemented here",
    ),
    Family(
        "GenPercept",
        {
            CLASS: _called("genpercept"),
            "its dpt_head_identity/": _has("dpt_head_identity", "vae_post_quant_conv"),
            "a UNet from 4 to 4 channels with betas of 1": lambda signs: (
                signs.channels == (4, 4) and signs.scheduler.get("beta_start") == signs.scheduler.get("beta_end") == 1
            ),
        },
        "it reads the latent of the image instead of noise",
    ),
    Family(
        "RollingDepth",
        {
            CLASS: _called("rollingdepth", "video"),
            "a UNet for several frames": lambda signs: any(
                word in _text(signs.unet.get("_class_name")).lower() for word in ("rolling", "view", "frame", "3d")
            ),
        },
        "it reads several frames of a video together, and estimates inverse depth",
    ),
    Family(
        "Stable Diffusion XL",
        {CLASS: _called("diffusionxl"), "its text_encoder_2/": _has("text_encoder_2")},
        "only the networks of Stable Diffusion 1 and 2 load",
    ),
    Family(
        "a diffusion transformer, such as Stable Diffusion 3, Flux or Marigold 2",
        {"its transformer/": _has("transformer"), "its trainables.safetensors": _has("trainables.safetensors")},
        "only the networks of Stable Diffusion 1 and 2 load",
    ),
    Family(
        "Stable Diffusion for other inputs",
        {
            "a UNet from 9 channels, for inpainting": lambda signs: signs.channels == (9, 4),
            "a UNet from 5 channels, for images from depth": lambda signs: signs.channels == (5, 4),
            "a UNet from 7 channels, for upscaling": lambda signs: signs.channels == (7, 4),
        },
        "training starts from plain Stable Diffusion",
    ),
)
VIDEO_NAMES = ("rollingdepth", "rolling-depth", "rolling_depth")


def family_of(folder: Path, index: Mapping[str, Any], unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    """Returns a sentence about the unsupported family that the folder belongs to; empty if there is no sign of one.

    Args:
        folder: of the checkpoint.
        index: the contents of `model_index.json`, empty if it is missing.
        unet: likewise, of `unet/config.json`.
        scheduler: likewise, of `scheduler_config.json`.
    """
    named = (key for key, value in index.items() if isinstance(value, list) and any(value))
    held = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    signs = Signs(_text(index.get("_class_name")), frozenset([*named, *held]), unet, scheduler)
    for family in FAMILIES:
        for reason, shows in family.signs.items():
            if shows(signs):
                by = f"{reason} is {printable(signs.class_name)}" if reason == CLASS else reason
                return f"looks like {family.name} ({by}): {family.why}, and that is not supported here"
    return ""


def looks_like_video(folder: Path) -> bool:
    """Whether the name of the folder, or of the repository of which it is a snapshot, contains that of RollingDepth."""
    name = folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name
    return any(word in name.lower() for word in VIDEO_NAMES)
