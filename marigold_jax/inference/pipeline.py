"""From images to depth or normals: prepare, run on the device, finish. One program is compiled for each canvas size.

Results follow diffusers' Marigold pipelines to the last digit, with two intended differences. The noise of a member
depends on the seed alone, so the prediction for an image does not depend on its batch. And the ensemble is aligned in
closed form, on the device.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from marigold_jax.data.geometry import PATCH, RESIZES, Geometry, Resize, fit
from marigold_jax.data.images import in_network_range, pixels_of
from marigold_jax.diffusion.samplers import SamplerTable, sampler_table
from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.inference.kernel_layout import arranged
from marigold_jax.inference.modality import Modality, modality_of, says_otherwise
from marigold_jax.inference.program import Program, denoise_for
from marigold_jax.runs.locate import locate
from marigold_jax.runtime import seeds
from marigold_jax.runtime.files import printable
from marigold_jax.weights import model_folder
from marigold_jax.weights.hub import resolve_vae
from marigold_jax.weights.model import DiffusionModel, unsuitable, with_vae
from marigold_jax.weights.model_index import PUBLISHED, ModelIndex, complete, override

logger = logging.getLogger(__name__)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Used where model_index.json has no value. The resolution is that of every released model.
DEFAULT_STEPS = {"leading": 10, "linspace": 10, "trailing": 4, "LCMScheduler": 1}
DEFAULT_RESOLUTION = 768
# UNet passes side by side: a CPU gains nothing from more than one; four fit any GPU of 16 GB. Eight fill the sublanes
# of a TPU, and fit a chip of 16 GB up to the resolution of the released models; of larger images, half as many.
DEFAULT_BATCH_SIZE = {"cpu": 1, "gpu": 4, "tpu": 8}


@dataclasses.dataclass(frozen=True)
class MarigoldOutput:
    """What a call returns. If the images differ in size, each field is a list with one array for each image.

    Attributes:
        prediction: float32 (n, h, w, 1) depth in [0, 1], 0 is near, 1 is far; or (n, h, w, 3) unit normals.
        uncertainty: (n, h, w, 1), or None.
        latent: (n · ensemble_size, i, j, 4), or None.
    """

    prediction: np.ndarray | list[np.ndarray]
    uncertainty: np.ndarray | list[np.ndarray] | None
    latent: np.ndarray | list[np.ndarray] | None


class Prepared(NamedTuple):
    """A picture as the network sees it.

    Attributes:
        canvas: pixels in [-1, 1].
        geometry: the sizes of the picture and of the canvas.
        resizing: how it was resized, and how its prediction is resized back.
    """

    canvas: Float32[np.ndarray, "height width 3"]
    geometry: Geometry
    resizing: Resize


class CanvasOutput(NamedTuple):
    """Predictions at the size of the canvas, still on the device and perhaps still being computed."""

    prediction: Float[Array, "n h w c"]
    uncertainty: Float[Array, "n h w 1"] | None
    latent: Float[Array, "m i j z"]


class Marigold:
    """A depth or normals estimator: `Marigold.from_pretrained(...)(images)`."""

    def __init__(self, checkpoint: DiffusionModel):
        unet, vae = checkpoint.unet, checkpoint.vae
        latent = vae.config.latent_channels
        if why := unsuitable(checkpoint):
            raise ValueError(why)
        try:
            index = complete(checkpoint.index)
            self.modality: Modality = modality_of(index)
        except ValueError as error:
            raise ValueError(f"{checkpoint.folder}: {error}") from None
        self.noise: str = index.noise or "gaussian"
        self.final_x0: bool = bool(index.x0)
        self.scheduler = self._scheduler(checkpoint, index)
        self.downsampling: int = vae.config.downsampling
        self.latent_channels: int = latent
        self.structures = (unet.structure, vae.structure)
        self.dtype = unet.params["conv_in.kernel"].dtype
        context = jnp.asarray(checkpoint.empty_prompt[2], self.dtype)
        kernels = {name: arranged(part.params, jax.default_backend()) for name, part in (("unet", unet), ("vae", vae))}
        self.params = {**kernels, "empty_prompt": context}
        by_spacing = DEFAULT_STEPS[self.scheduler.timestep_spacing]
        by_sampler = DEFAULT_STEPS.get(self.scheduler.class_name or "", by_spacing)
        self.default_denoising_steps: int = index.default_denoising_steps or by_sampler
        resolution = index.default_processing_resolution
        self.default_processing_resolution: int = DEFAULT_RESOLUTION if resolution is None else resolution

    @staticmethod
    def _scheduler(checkpoint: DiffusionModel, index: ModelIndex) -> SchedulerConfig:
        """The checkpoint's own scheduler, which must be one that runs here; ValueError, which names the folder, if not.

        Authors of published end-to-end checkpoints force trailing timesteps on whatever their files say: with leading
        ones a single step would be asked for the cleanest timestep, and not for the noisiest.
        """
        scheduler = checkpoint.scheduler
        if index.class_name in PUBLISHED and scheduler.timestep_spacing != "trailing":
            found = scheduler.values.get("timestep_spacing", "absent")
            logger.warning(
                "%s: timestep_spacing is %s, taking trailing, as the authors of end-to-end checkpoints do",
                checkpoint.folder,
                found,
            )
            scheduler = scheduler.replace({"timestep_spacing": "trailing"})
        try:
            sampler_table(scheduler, 1)
        except ValueError as error:
            raise ValueError(f"{checkpoint.folder}: {error}") from None
        return scheduler

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        vae: str | Path | None = None,
        *,
        modality: str | None = None,
        noise: str | None = None,
        x0: bool | None = None,
        stretch: bool | None = None,
        x_axis: str | None = None,
    ) -> "Marigold":
        """Loads a model.

        Options that are None are taken from the model index; see `weights.model_index`.

        Args:
            name_or_path: a folder (diffusers' layout, native, or a training run), a Hugging Face id, or the name of a
                bundled model; None means marigold-rooms.
            dtype: "float32" or "bfloat16", of weights and computation.
            revision: of a Hugging Face id.
            vae: the folder or id of another VAE with the same latents, such as "madebyollin/taesd", which decodes many
                times faster.
            modality: "depth" or "normals", for a model that does not say.
            noise: what denoising starts from: "gaussian", "zeros" (the seed then has no effect) or "multi_resolution".
            x0: return the last estimate of x0, without the 3 % of noise that DDIM leaves.
            stretch: for a model whose training left the range free: depth is stretched to [0, 1] for each image, and
                normals are not clipped before they are scaled to unit length.
            x_axis: "right" or "left", where the network's normals point along x. Returned normals point right.

        Raises:
            FileNotFoundError, ValueError: each with one line that says what to do.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: wanted one of {', '.join(DTYPES)}")
        checkpoint = model_folder.load(locate(name_or_path, revision), DTYPES[dtype])
        if vae is not None:
            checkpoint = with_vae(checkpoint, locate(vae, find=resolve_vae), DTYPES[dtype])
        if (said := says_otherwise(checkpoint.index, modality)) is not None:
            folder = printable(checkpoint.folder)
            logger.warning("%s: model_index.json says %s; running it as %s, as requested", folder, said, modality)
        options = {"modality": modality, "noise": noise, "x0": x0, "stretch": stretch, "x_axis": x_axis}
        index = override(checkpoint.index, str(name_or_path), **options)
        return cls(dataclasses.replace(checkpoint, index=index))

    def __call__(
        self,
        images: Any,
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        resample_method_input: str = "bilinear",
        resample_method_output: str = "bilinear",
        batch_size: int | None = None,
        seed: int = 0,
        latents: Float[np.ndarray | Array, "m i j z"] | None = None,
        ensembling_kwargs: Mapping[str, Any] | None = None,
        output_uncertainty: bool = False,
        output_latent: bool = False,
        bucket: int = 8,
        resize: str = "diffusers",
    ) -> MarigoldOutput:
        """Predicts for one image or many.

        Args:
            images: a PIL image, a uint8, uint16 or float array (h, w, 3) or (n, h, w, 3), or a list of these, of
                any sizes. Floats lie in [0, 1].
            num_inference_steps: denoising steps; None is the model's own number.
            ensemble_size: predictions from different noise to merge; 1 for no ensemble, otherwise 3 or more.
            processing_resolution: the longer side that the network sees, a multiple of 8; 0 is the image's own size,
                None is the model's own resolution.
            match_input_resolution: resize the prediction to the image's size.
            resample_method_input: "nearest", "nearest-exact", "bilinear", "bicubic" or "area".
            resample_method_output: likewise.
            batch_size: UNet passes side by side, over images and members. It changes memory and speed, not the result.
            seed: of the noise, from 0 to 2**32 - 1.
            latents: the initial noise, (n · ensemble_size, i, j, 4), in place of the seed's.
            ensembling_kwargs: options of `ensemble_depth` or `ensemble_normals`.
            output_uncertainty: also return how much the members differ; needs an ensemble.
            output_latent: also return the denoised latents.
            bucket: 8 pads to multiples of 8, as diffusers does. A larger multiple of 8 resizes to multiples of itself,
                so that images of many sizes need few compilations.
            resize: "diffusers"; or "official", which resizes as Marigold's authors do (see `data.geometry`). It is
                bilinear and has no bucket.

        Raises:
            ValueError: an argument or an image that cannot be used.
        """
        if ensemble_size < 1:
            raise ValueError(f"ensemble_size {ensemble_size}: wanted at least 1")
        if output_uncertainty and ensemble_size == 1:
            raise ValueError("output_uncertainty=True needs ensemble_size > 1")
        pictures = [
            self.prepare(image, processing_resolution, resample_method_input, bucket, resize)
            for image in _as_list(images)
        ]
        if not pictures:
            raise ValueError("images: an empty list, wanted at least one image")
        batch_size = batch_size or self.default_batch_size(processing_resolution)
        together = max(1, batch_size // ensemble_size)

        runs: dict[int, tuple[CanvasOutput, int]] = {}  # image -> where its prediction is being computed
        for indices in _groups([picture.geometry.canvas for picture in pictures], together):
            raw = self.run(
                np.stack([pictures[i].canvas for i in indices]),
                np.asarray([pictures[i].geometry.resized for i in indices]),
                num_inference_steps,
                ensemble_size,
                batch_size=batch_size,
                seed=seed,
                latents=None if latents is None else _members(latents, indices, ensemble_size, len(pictures)),
                ensembling_kwargs=ensembling_kwargs,
                output_uncertainty=output_uncertainty,
            )
            runs |= {index: (raw, place) for place, index in enumerate(indices)}

        predictions, uncertainties, all_latents = [], [], []
        for i, picture in enumerate(pictures):
            raw, place = runs[i]
            prediction, uncertainty = self.finish(
                picture,
                np.asarray(raw.prediction[place]),
                None if raw.uncertainty is None else np.asarray(raw.uncertainty[place]),
                match_input_resolution,
                resample_method_output,
            )
            predictions.append(prediction)
            if uncertainty is not None:
                uncertainties.append(uncertainty)
            if output_latent:
                all_latents.append(np.asarray(raw.latent[place * ensemble_size : (place + 1) * ensemble_size]))
        return MarigoldOutput(
            _together(predictions, np.stack),
            _together(uncertainties, np.stack) if uncertainties else None,
            _together(all_latents, np.concatenate) if all_latents else None,
        )

    def prepare(
        self,
        image: Any,
        processing_resolution: int | None = None,
        resample_method: str = "bilinear",
        bucket: int = 8,
        resize: str = "diffusers",
    ) -> Prepared:
        """Resizes and pads one picture for `run`. Runs on the host; threads may call it.

        Args:
            image: as in `__call__`, which explains the other arguments too. Integers are converted to floats a few
                rows at a time, so that a large photograph takes little more memory than its pixels.

        Raises:
            ValueError: an argument or an image that cannot be used.
        """
        if bucket % self.downsampling:
            raise ValueError(f"bucket {bucket}: wanted a multiple of {self.downsampling}")
        if resize not in RESIZES or (bucket != PATCH and resize != "diffusers"):
            raise ValueError(f"resize {resize!r}, bucket {bucket}: wanted one of {', '.join(RESIZES)}, or a bucket")
        resizing = RESIZES[resize]
        if bucket != PATCH:
            resizing = dataclasses.replace(resizing, fit=functools.partial(fit, bucket=bucket))
        resolution = self.default_processing_resolution if processing_resolution is None else processing_resolution
        pixels = pixels_of(image)
        geometry = resizing.fit(pixels.shape[:2], resolution)
        return Prepared(resizing.to_canvas(pixels, geometry, resample_method, in_network_range), geometry, resizing)

    def finish(
        self,
        prepared: Prepared,
        prediction: Float32[np.ndarray, "height width c"],
        uncertainty: Float32[np.ndarray, "height width 1"] | None = None,
        match_input_resolution: bool = True,
        resample_method: str = "bilinear",
    ) -> tuple[Float32[np.ndarray, "h w c"], Float32[np.ndarray, "h w 1"] | None]:
        """Brings what `run` returned for one picture back to the picture. Runs on the host; threads may call it.

        Args:
            prepared: the picture, from `prepare`.
            prediction: its prediction at the size of the canvas.
            uncertainty: likewise, or None.
            match_input_resolution: resize to the picture's own size; otherwise only the padding is cropped.
            resample_method: how.

        Returns:
            The prediction, in the range that `MarigoldOutput` promises, and the uncertainty.
        """

        def resized(values: np.ndarray) -> np.ndarray:
            return prepared.resizing.from_canvas(values, prepared.geometry, match_input_resolution, resample_method)

        restore = self.modality.finish if prepared.resizing.restore else self.modality.clip
        return restore(resized(prediction)), None if uncertainty is None else resized(uncertainty)

    def default_batch_size(self, processing_resolution: int | None = None) -> int:
        """UNet passes side by side if the caller does not choose; the argument is that of `__call__`."""
        own = self.default_processing_resolution
        return default_batch_size(own if processing_resolution is None else processing_resolution)

    def sampler(self, num_inference_steps: int | None = None) -> SamplerTable:
        """The sampler for a number of steps; None is the model's own. Raises ValueError for a number it cannot have."""
        steps = self.default_denoising_steps if num_inference_steps is None else num_inference_steps
        return sampler_table(self.scheduler, steps, final_x0=self.final_x0)

    def program(
        self,
        table: SamplerTable,
        members: int,
        ensemble_size: int,
        batch_size: int,
        ensembling_kwargs: Mapping[str, Any] | None = None,
    ) -> Program:
        """What is fixed when `denoise` is compiled for this many members, counted over all images."""
        # The fewest chunks that the batch size allows, all of the same size.
        chunks = -(-members // batch_size)
        return Program(
            *self.structures,
            self.modality.name,
            tuple(sorted(self.modality.traits.items())),
            self.noise,
            ensemble_size,
            chunk=-(-members // chunks),
            stochastic=bool(np.any(table.c)),
            ensembling=tuple(sorted((ensembling_kwargs or {}).items())),
        )

    def run(
        self,
        canvases: Float[np.ndarray, "n h w 3"],
        sizes: Int[np.ndarray, "n 2"],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        latents: Float[np.ndarray | Array, "m i j z"] | None = None,
        ensembling_kwargs: Mapping[str, Any] | None = None,
        output_uncertainty: bool = False,
    ) -> CanvasOutput:
        """Predicts on the device. Returns at once, while the device is still computing.

        Where denoising starts from zeros, nothing is random. Each image is then run by itself, so that its prediction
        is the same to the bit in any batch.

        Args:
            canvases: pixels in [-1, 1], as `prepare` makes them, all of one size.
            sizes: (height, width) of the image in the top left corner of each canvas; the rest is padding.

        The other arguments are those of `__call__`.
        """
        if ensemble_size == 2:
            logger.warning("an ensemble of 2 is hardly better than one prediction; use 3 or more")
        table = self.sampler(num_inference_steps)
        if ensemble_size > 1 and latents is None and self.noise == "zeros" and not np.any(table.c):
            logger.warning("an ensemble of %d that starts from zeros: every member is the same", ensemble_size)
        n, height, width, _ = canvases.shape
        if self.noise == "zeros" and latents is None and n > 1:
            alone = [
                self.run(
                    canvas,
                    size,
                    num_inference_steps,
                    ensemble_size,
                    batch_size=batch_size,
                    seed=seed,
                    ensembling_kwargs=ensembling_kwargs,
                    output_uncertainty=output_uncertainty,
                )
                for canvas, size in zip(canvases[:, None], sizes[:, None], strict=True)
            ]
            return jax.tree.map(lambda *parts: jnp.concatenate(parts), *alone)
        members = n * ensemble_size
        shape = (members, height // self.downsampling, width // self.downsampling, self.latent_channels)
        if latents is not None and latents.shape != shape:
            raise ValueError(f"latents: wanted shape {shape}, found {latents.shape}")
        batch_size = batch_size or default_batch_size(max(height, width))
        program = self.program(table, members, ensemble_size, batch_size, ensembling_kwargs)
        prediction, uncertainty, latent = denoise_for(jax.default_backend(), program.chunk)(
            program,
            self.params,
            table,
            jnp.asarray(canvases, self.dtype),
            jnp.asarray(sizes, jnp.int32),
            jnp.uint32(seeds.check(seed)),
            None if latents is None else jnp.asarray(latents, jnp.float32),
        )
        return CanvasOutput(prediction, uncertainty if output_uncertainty else None, latent)


def default_batch_size(resolution: int) -> int:
    """Returns the number of UNet passes side by side if the caller does not choose.

    Args:
        resolution: the longer side that the network sees, in pixels; 0 if it may be anything.
    """
    platform = jax.default_backend()
    size = DEFAULT_BATCH_SIZE.get(platform, 1)
    return size // 2 if platform == "tpu" and not 0 < resolution <= DEFAULT_RESOLUTION else size


def _as_list(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return list(images)
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _groups(keys: Sequence[Any], most: int) -> Iterator[list[int]]:
    """Indices of equal keys, at most `most` together."""
    by_key: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        by_key.setdefault(key, []).append(index)
    for indices in by_key.values():
        yield from (indices[start : start + most] for start in range(0, len(indices), most))


def _members(latents: Any, images: Sequence[int], ensemble_size: int, count: int) -> np.ndarray:
    """The latents that belong to these images."""
    if len(latents) != count * ensemble_size:
        raise ValueError(f"latents: wanted {count * ensemble_size} (images x ensemble_size), found {len(latents)}")
    return np.concatenate([latents[i * ensemble_size : (i + 1) * ensemble_size] for i in images])


def _together(results: list[np.ndarray], join: Callable) -> np.ndarray | list[np.ndarray]:
    """One array where the sizes agree, else the list."""
    return join(results) if len({result.shape[-3:] for result in results}) == 1 else results
