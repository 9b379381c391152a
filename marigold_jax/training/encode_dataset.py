"""Encodes every frame of a prepared split once, so that training steps need no VAE encoder and read no images.

Training uses a frame unchanged or mirrored, and the latent is the mean of the encoder's distribution, so each frame has
only two encodings. `data.latent_store` keeps them. They are computed in float32, whatever dtype training computes in.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from marigold_jax.data import latent_store as store
from marigold_jax.data.latent_store import LatentSplit
from marigold_jax.data.loader import BothWays, Loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.transforms import SampleOptions
from marigold_jax.diffusion.losses import latent_mask
from marigold_jax.models import functional
from marigold_jax.runtime import distributed
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.targets import TARGETS
from marigold_jax.weights.component import Component

Sample = dict[str, np.ndarray]  # a frame and its mirror image, stacked: of `data.loader.BothWays`
DECODER = ("decoder.", "post_quant_conv.")  # parameters that do not affect latents


@dataclass(frozen=True)
class Encoding:
    """The options that determine the latents of a frame, besides the VAE.

    Attributes:
        target: a row of `TARGETS`.
        dtype: of the stored latents, "float32" or "bfloat16". A frame at 480x640 takes 308 kB, or half of that.
        size, antialias, far_fill: as for `data.loader.make_loader`.

    Raises:
        ValueError: the dtype is unknown.
    """

    target: str
    dtype: str
    size: tuple[int, int] | None
    antialias: bool
    far_fill: bool

    def __post_init__(self) -> None:
        if self.dtype not in store.DTYPES:
            raise ValueError(f"latents stored as {self.dtype!r}: wanted one of {', '.join(store.DTYPES)}")

    def options(self, split: PreparedSplit) -> dict[str, Any]:
        """Returns the options of `data.transforms.transform` for frames of this split."""
        return {"size": self.size or split.size, "antialias": self.antialias, "far_fill": self.far_fill}


def cached(
    split: PreparedSplit,
    vae: Component,
    encoding: Encoding,
    num_workers: int = 0,
    stopping: Callable[[], object] = lambda: False,
) -> LatentSplit:
    """Returns the latents of a split. Missing ones are computed first, so a stopped run can be continued.

    The processes of a run share the work, and all of them must call this.

    Args:
        split: of a prepared dataset.
        vae: encodes images and targets.
        encoding: what to encode and how to store it.
        num_workers: processes that read frames during encoding.
        stopping: called every few frames; if it returns something true, an InterruptedError is raised.

    Raises:
        ValueError: the split has no such target; or latents of another VAE, other frames or other options are stored.
        InterruptedError: `stopping` returned something true.
    """
    feature = TARGETS[encoding.target].feature
    if feature not in split.features:
        raise ValueError(f"{split.path} has no {feature}")
    fingerprint = {
        **{"vae": identity(vae), "frames": len(split), "bytes": split.num_bytes},
        **{"target": encoding.target, "dtype": encoding.dtype, **encoding.options(split)},
    }
    folder, is_main_process = store.folder_of(split), jax.process_index() == 0
    if is_main_process:
        with contextlib.suppress(ValueError):  # all processes raise it together below
            store.begin(folder, fingerprint)
    distributed.wait_for_all(f"{folder} begun")
    store.begin(folder, fingerprint)
    if not folder.exists():
        mine = store.shards(folder, len(split))[jax.process_index() :: jax.process_count()]
        todo = [(path, shard) for path, shard in mine if not path.exists()]
        total, left = (sum(len(frames) for _, frames in some) for some in (mine, todo))
        bar = {"desc": f"encoding {split.path}", "unit": " frames", "disable": None if is_main_process else True}
        with tqdm(total=total, initial=total - left, **bar) as bar:
            _write_shards(todo, split, encoding, _make_encoder(vae, encoding.target), num_workers, stopping, bar.update)
        distributed.wait_for_all(f"{folder} encoded")
        if is_main_process:
            store.publish(folder, len(split))
        distributed.wait_for_all(f"{folder} published")
    return LatentSplit(folder)


def identity(vae: Component) -> str:
    """Returns a checksum of everything that determines latents: the configuration and the weights of the encoder."""
    digest = hashlib.sha256(repr(vae.config).encode())
    for path in sorted(path for path in vae.params if not path.startswith(DECODER)):
        digest.update(path.encode() + np.asarray(vae.params[path]).tobytes())
    return digest.hexdigest()[:16]


class Encoder(NamedTuple):
    """`encode(samples)` returns latents and masks on the host, for up to `places` samples of the same size."""

    encode: Callable[[Sequence[Sample]], tuple[np.ndarray, np.ndarray]]
    places: int


def _make_encoder(vae: Component, target: str) -> Encoder:
    """Returns the encoder; each of this process's devices encodes one frame at a time."""
    modality = TARGETS[target]
    layout = Layout(make_mesh(devices=jax.local_devices()))
    params, places = layout.place(vae.params), layout.mesh.size

    @jax.jit
    def encode(
        params: functional.Params,
        rgb: Float[Array, "n 2 h w 3"],
        pixels: Float[Array, "n 2 h w c"],
        mask: Bool[Array, "n 2 h w 1"],
    ) -> tuple[Float[Array, "n 2 2 i j z"], Bool[Array, "n 2 i j 1"]]:
        module = functional.merge(vae.structure, params)
        pairs = jnp.stack([rgb, modality.to_pixels(pixels)], axis=2)
        latents = module.encode(pairs.reshape(-1, *pairs.shape[3:]))
        valid = latent_mask(mask.reshape(-1, *mask.shape[2:]), module.config.downsampling)
        return latents.reshape(*pairs.shape[:3], *latents.shape[1:]), valid.reshape(*mask.shape[:2], *valid.shape[1:])

    def encode_samples(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        full = [*samples, *[samples[-1]] * (places - len(samples))]  # one compiled shape
        batch = (np.stack([sample[name] for sample in full]) for name in ("rgb", modality.key, "mask"))
        return jax.device_get(encode(params, *(jax.device_put(x, layout.batch) for x in batch)))

    return Encoder(encode_samples, places)


def _write_shards(
    todo: Sequence[tuple[Path, range]],
    split: PreparedSplit,
    encoding: Encoding,
    encoder: Encoder,
    num_workers: int,
    stopping: Callable[[], object],
    progress: Callable[[int], object],
) -> None:
    """Writes each shard of frames to its path. `progress(count)` is called after each few frames."""

    def records(samples: Sequence[Sample]) -> Iterator[bytes]:
        if stopping():
            raise InterruptedError(f"stopped while encoding {split.path}; finished shards are kept")
        for _, alike in groupby(samples, key=lambda sample: sample["mask"].shape):
            group = list(alike)
            latents, valid = encoder.encode(group)
            for place in range(len(group)):
                yield from (store.to_record(latents[place, way], valid[place, way], encoding.dtype) for way in (0, 1))
            progress(len(group))

    frames, places = tuple(frame for _, shard in todo for frame in shard), encoder.places
    options = SampleOptions(**encoding.options(split))
    loader = Loader(BothWays(split, frames, TARGETS[encoding.target].data, options), num_workers)
    try:
        for path, shard in todo:
            groups = ([next(loader) for _ in shard[i : i + places]] for i in range(0, len(shard), places))
            store.write_shard(path, (record for group in groups for record in records(group)))
    finally:
        loader.close()
