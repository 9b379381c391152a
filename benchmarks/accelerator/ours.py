"""What is measured of marigold_jax: its own pipeline and its own training step, with random weights."""

import functools
import gc
import resource
import runpy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import trace_file
from networks import CELL, PROMPT_TOKENS, Size, picture, training_batches
from timing import Case, attempt, first_that_fits, timed, while_it_gains

from marigold_jax.hardware.chips import chip_of, peak_flops
from marigold_jax.hardware.operations import flops
from marigold_jax.inference.pipeline import Marigold
from marigold_jax.inference.program import denoise
from marigold_jax.models import unet, vae
from marigold_jax.models.functional import abstract
from marigold_jax.training.setup import make_setup
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.weights.component import Component
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.model_index import ModelIndex
from marigold_jax.weights.scratch import SCHEDULER

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL_MEMORY = 24 * 2**30  # of a device: with less, Adam's moments leave no room for activations
PROFILED_CALLS = 3


def device() -> Case:
    """The device and its specification, as far as they are known."""
    first = jax.devices()[0]
    chip = chip_of(first.device_kind)
    memory = (first.memory_stats() or {}).get("bytes_limit") or (chip and chip.memory)
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "peak_flops": peak_flops(first.device_kind),
        "memory_bytes": memory,
    }


def memory() -> Case:
    """The peak so far: of the device, or of this process where the device does not count."""
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"peak_bytes": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


# -------------------------------------------------------------------------------------------------------------- weights


def model(size: Size, dtype: Any) -> DiffusionModel:
    """A model with random weights. One million numbers are drawn and repeated: to draw a billion takes 10 s."""
    pool = np.random.default_rng(0).standard_normal(2**20, np.float32)

    def component(config: Any, make: Callable) -> Component:
        structure, shapes = abstract(lambda rngs: make(config, rngs))
        return Component(config, structure, {path: weight(path, x.shape) for path, x in shapes.items()})

    def weight(path: str, shape: tuple[int, ...]) -> jax.Array:
        leaf = path.rpartition(".")[2]
        if leaf in ("bias", "scale"):
            return jnp.full(shape, leaf == "scale", dtype)
        return jnp.asarray(np.resize(pool / np.float32(np.prod(shape[:-1]) ** 0.5), shape), dtype)

    width = size.unet["cross_attention_dim"]
    return DiffusionModel(
        unet=component(unet.UNetConfig(**size.unet), unet.UNet),
        vae=component(vae.VAEConfig(**size.vae), vae.VAE),
        empty_prompt={length: np.resize(pool, (length, width)) for length in (PROMPT_TOKENS, 77)},
        scheduler=SCHEDULER,
        index=ModelIndex({"_class_name": "MarigoldDepthPipeline", "prediction_type": "depth"}),
        folder=Path("random"),
    )


# ---------------------------------------------------------------------------------------------------------- predictions


class Predictor:
    """The pipeline in bfloat16, and a picture of the size that is measured."""

    def __init__(self, size: Size):
        self.pipe = Marigold(model(size, jnp.bfloat16))
        self.size = size
        self.picture = picture(size)

    def call(self, steps: int, members: int, batch: int) -> None:
        """One call as users make it, from pixels in memory to depth in memory."""
        self.pipe(
            [self.picture] * batch,
            num_inference_steps=steps,
            ensemble_size=members,
            processing_resolution=max(self.size.picture),
            batch_size=batch * members,
        )

    def operations(self, steps: int, members: int, batch: int) -> float:
        table, shape = self.pipe.sampler(steps), (batch, *self.size.picture)
        program = self.pipe.program(table, batch * members, members, batch * members)
        canvases = jax.ShapeDtypeStruct((*shape, 3), jnp.bfloat16)
        sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        return flops(lambda *arrays: denoise(program, *arrays, None), self.pipe.params, table, canvases, sizes, seed)

    def case(self, steps: int = 1, members: int = 1, batch: int = 1) -> Case:
        def measure() -> Case:
            found = timed(lambda: self.call(steps, members, batch), self.size.seconds)
            return found | memory() | {"operations": self.operations(steps, members, batch)}

        return attempt({"steps": steps, "members": members, "batch": batch}, measure)


def latency(size: Size) -> Iterator[Case]:
    predictor = Predictor(size)
    for steps in size.steps:
        yield predictor.case(steps=steps)


def one_step(size: Size) -> Iterator[Case]:
    yield Predictor(size).case()


def ensemble(size: Size) -> Iterator[Case]:
    yield Predictor(size).case(members=size.members)


def throughput(size: Size) -> Iterator[Case]:
    predictor = Predictor(size)
    yield from while_it_gains(predictor.case(batch=batch) for batch in size.batches)


# ------------------------------------------------------------------------------------------------------------- training


def configuration(latents: bool) -> dict[str, dict[str, Any]]:
    """`configs/hypersim_vkitti.py` over `configs/base.py`, in bfloat16; Adafactor where memory is small."""
    base, recipe = (runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]() for name in ("base", "hypersim_vkitti"))
    config = {section: values | recipe.get(section, {}) for section, values in base.items()}
    config["objective"]["compute_dtype"] = "bfloat16"
    config["run"]["latents"] = "bfloat16" if latents else ""
    if (device()["memory_bytes"] or SMALL_MEMORY) < SMALL_MEMORY:
        config["optim"]["name"] = "adafactor"
    return config


def synthetic_batch(size: Size, batch: int, latents: bool) -> dict[str, np.ndarray]:
    random, (height, width) = np.random.default_rng(0), size.training
    if latents:
        shape = (height // CELL, width // CELL)
        values = random.standard_normal((batch, 2, *shape, 4), np.float32)
        return {"latents": values, "latent_mask": np.ones((batch, *shape, 1), bool)}
    pixels = {key: random.uniform(-1, 1, (batch, height, width, c)) for key, c in (("rgb", 3), ("target", 1))}
    mask = np.ones((batch, height, width, 1), bool)
    return {key: value.astype(np.float32) for key, value in pixels.items()} | {"mask": mask}


class Trainer:
    """The two compiled halves of an optimiser step, as `train` runs them, with one micro-batch."""

    def __init__(self, size: Size, batch: int, latents: bool):
        config = configuration(latents)
        setup = make_setup(model(size, jnp.float32), config)
        self.settings = {"optimiser": config["optim"]["name"], "remat": config["objective"]["remat"]}
        self.batch, self.frozen = jax.device_put(synthetic_batch(size, batch, latents)), setup.frozen
        self.operations = flops(
            jax.grad(setup.lean_objective, has_aux=True), setup.params, self.frozen, self.batch, jax.random.key(0)
        )
        self.accumulate, self.update = make_steps(setup.objective, setup.optimiser, accumulation=1, seed=0)
        self.state, self.number = init_state(setup.params, setup.optimiser), 0
        jax.tree.map(lambda x: x.delete(), setup.params)  # the state holds copies

    def call(self) -> None:
        gradient = self.accumulate(None, self.state["params"], self.frozen, self.batch, self.number, 0)
        self.state, metrics = self.update(self.state, gradient)
        self.number += 1
        float(metrics["loss"])  # waits for the device


def _training_case(size: Size, batch: int, latents: bool) -> Case:
    def measure() -> Case:
        gc.collect()  # frees the arrays of a larger batch that did not fit
        trainer = Trainer(size, batch, latents)
        found = timed(trainer.call, size.seconds)
        return found | memory() | trainer.settings | {"operations": trainer.operations}

    return attempt({"batch": batch, "latents": latents}, measure)


def _training(latents: bool, size: Size) -> Iterator[Case]:
    return first_that_fits(
        _training_case(size, batch, latents) for batch in training_batches(size, device()["memory_bytes"])
    )


training_latents = functools.partial(_training, True)
training_images = functools.partial(_training, False)


# ------------------------------------------------------------------------------------------------------------- profiles


def _profiled(call: Callable[[], None]) -> Case:
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(PROFILED_CALLS):
                call()
        return {"calls": PROFILED_CALLS, "kernels": trace_file.dearest(Path(folder))}


def profile(size: Size) -> Iterator[Case]:
    predictor = Predictor(size)
    yield attempt({"steps": 1, "batch": 1}, lambda: _profiled(lambda: predictor.call(1, 1, 1)))


def profile_training(size: Size) -> Iterator[Case]:
    def case(batch: int) -> Case:
        def measure() -> Case:
            gc.collect()
            return _profiled(Trainer(size, batch, True).call)

        return attempt({"batch": batch, "latents": True}, measure)

    yield from first_that_fits(map(case, training_batches(size, device()["memory_bytes"])))
