"""Encodes every frame of a prepared split once, so that training need not: no VAE in the step, no pixels to read.

A frame is seen as it is or mirrored, and the latent is the mean of what the encoder says; so two encodings are all
there are. `data.latent_store` keeps them. They are computed in float32 whatever training computes in.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from marigold_jax.data import latent_store as store
from marigold_jax.data.latent_store import LatentSplit
from marigold_jax.data.loader import BothWays, Loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.diffusion.losses import latent_mask
from marigold_jax.models import functional
from marigold_jax.runtime import distributed
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.training.objectives.contract import TARGETS
from marigold_jax.weights.component import Component

DECODER = ("decoder.", "post_quant_conv.")  # parameters that no latent depends on


def cached(
    split: PreparedSplit,
    vae: Component,
    *,
    target: str,
    dtype: str,
    size: tuple[int, int] | None,
    antialias: bool,
    far_fill: bool,
    num_workers: int = 0,
    stopping: Callable[[], object] = lambda: False,
) -> LatentSplit:
    """Returns the latents of a split, computed first where they are missing; a run that was stopped goes on.

    The processes of a run share the work, and must all call this.

    Args:
        target: a row of `TARGETS`.
        dtype: as which they are stored, "float32" or "bfloat16". A frame at 480x640 takes 308 kB, or half of that.
        size, antialias, far_fill: as for `data.loader.make_loader`.
        num_workers: processes that read frames while the devices encode.
        stopping: asked before each few frames; anything true ends the work, with an InterruptedError.

    Raises:
        ValueError: the split has no such target; there is no such dtype; or the latents that lie there are those of
            another VAE, other frames or other options.
    """
    if dtype not in store.DTYPES:
        raise ValueError(f"latents stored as {dtype!r}: wanted one of {', '.join(store.DTYPES)}")
    key = TARGETS[target][0]
    if key == "normals" and "normals" not in split.features:
        raise ValueError(f"{split.path} has no normals")
    options = {"size": size or split.size, "antialias": antialias, "far_fill": far_fill}
    fingerprint = {
        **{"vae": identity(vae), "frames": len(split), "bytes": split.num_bytes},
        **{"target": target, "dtype": dtype, **options},
    }
    folder, speaks = store.folder_of(split), jax.process_index() == 0
    if speaks:
        with contextlib.suppress(ValueError):  # which then all processes raise together
            store.begin(folder, fingerprint)
    distributed.wait_for_all(f"{folder} begun")
    store.begin(folder, fingerprint)
    if not folder.exists():
        mine = store.shards(folder, len(split))[jax.process_index() :: jax.process_count()]
        todo = [(path, shard) for path, shard in mine if not path.exists()]
        total, left = (sum(len(frames) for _, frames in some) for some in (mine, todo))
        bar = {"desc": f"encoding {split.path}", "unit": " frames", "disable": None if speaks else True}
        with tqdm(total=total, initial=total - left, **bar) as bar:
            _encode(split, vae, todo, target, dtype, options, num_workers, stopping, bar)
        distributed.wait_for_all(f"{folder} encoded")
        if speaks:
            store.publish(folder, len(split))
        distributed.wait_for_all(f"{folder} published")
    return LatentSplit(folder)


def identity(vae: Component) -> str:
    """A checksum of all that decides what a VAE's latents are: its configuration and its encoder's weights."""
    digest = hashlib.sha256(repr(vae.config).encode())
    for path in sorted(path for path in vae.params if not path.startswith(DECODER)):
        digest.update(path.encode() + np.asarray(vae.params[path]).tobytes())
    return digest.hexdigest()[:16]


def _encode(
    split: PreparedSplit,
    vae: Component,
    todo: Sequence[tuple[Path, range]],
    target: str,
    dtype: str,
    options: dict[str, Any],
    num_workers: int,
    stopping: Callable[[], object],
    bar: tqdm,
) -> None:
    """Writes the shards; each of this process's devices encodes a frame at a time."""
    key, to_pixels = TARGETS[target]
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
        pairs = jnp.stack([rgb, to_pixels(pixels)], axis=2)
        latents = module.encode(pairs.reshape(-1, *pairs.shape[3:]))
        valid = latent_mask(mask.reshape(-1, *mask.shape[2:]), module.config.downsampling)
        return latents.reshape(*pairs.shape[:3], *latents.shape[1:]), valid.reshape(*mask.shape[:2], *valid.shape[1:])

    def records(samples: Sequence[dict[str, np.ndarray]]) -> Iterator[bytes]:
        if stopping():
            raise InterruptedError(f"stopped while encoding {split.path}; what is whole is kept")
        for _, alike in groupby(samples, key=lambda sample: sample["mask"].shape):
            some = list(alike)
            full = some + some[-1:] * (places - len(some))
            batch = (np.stack([sample[name] for sample in full]) for name in ("rgb", key, "mask"))
            latents, valid = jax.device_get(encode(params, *(jax.device_put(x, layout.batch) for x in batch)))
            for place in range(len(some)):
                yield from (store.to_record(latents[place, way], valid[place, way], dtype) for way in (0, 1))
            bar.update(len(some))

    frames = tuple(frame for _, shard in todo for frame in shard)
    loader = Loader(BothWays(split, frames, key == "normals", options), num_workers)
    try:
        for path, shard in todo:
            groups = ([next(loader) for _ in shard[i : i + places]] for i in range(0, len(shard), places))
            store.write_shard(path, (record for group in groups for record in records(group)))
    finally:
        loader.close()
