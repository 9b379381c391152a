"""Memory of Stable Diffusion 2 at full size, from shapes alone: no weights are loaded and nothing is run.

    python benchmarks/memory.py                                          prediction at 768 and 2048, on CPUs
    python benchmarks/memory.py --parts decode --dtypes bfloat16 --target tpu:v5e-1          ('.[tpu]', no TPU)
    python benchmarks/memory.py --training                               memory stored for a training step's gradient

The first two compile each program whole and in strips (`models/strips.py`) and print the compiler's own analysis:
arguments, temporaries and results for one image, 4:3, one step. CPUs compute bfloat16 in float32, so their compiler
overestimates it: half of the float32 figure is closer to what an accelerator needs.

The third needs no compiler. It lists the arrays that JAX's derivative keeps between the forward and the backward pass
(without those that exist anyway: parameters and images), and the arithmetic of the step, for each rematerialisation
policy. A compiler that fuses operations may keep less, but needs temporary memory in addition.
"""

import argparse
import dataclasses
import datetime
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.hardware import slices
from marigold_jax.hardware.operations import flops
from marigold_jax.inference.pipeline import DTYPES, Marigold
from marigold_jax.inference.program import denoise
from marigold_jax.models import functional
from marigold_jax.runtime import sharding
from marigold_jax.training.objectives import OBJECTIVES
from marigold_jax.training.objectives.contract import REMAT
from marigold_jax.weights.diffusers_folder import shapes_of
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.model_index import ModelIndex

GB = 1e9
PARTS = ("encode", "unet", "decode", "prediction")
MODES = {"whole": "never", "strips": "auto"}
Shape = jax.ShapeDtypeStruct


def programs(base: DiffusionModel, resolution: int, dtype: jnp.dtype) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """Each part of a prediction at resolution x resolution * 3 / 4, and all of it, with the shapes of its arguments."""
    pipe = Marigold(base)
    params = jax.tree.map(lambda x: Shape(x.shape, dtype), pipe.params)
    height, width = resolution * 3 // 4, resolution
    side = pipe.downsampling
    picture, latent = Shape((1, height, width, 3), dtype), (1, height // side, width // side)
    table = pipe.sampler(1)
    numbers = Shape((1, 2), jnp.int32), Shape((), jnp.uint32)

    def of(part: int, method: str) -> Callable:
        return lambda params, *inputs: getattr(functional.merge(pipe.structures[part], params), method)(*inputs)

    both, text = Shape((*latent, 2 * pipe.latent_channels), dtype), Shape((1, *params["empty_prompt"].shape), dtype)
    whole = functools.partial(denoise.__wrapped__, pipe.program(table, 1, 1, 1))
    return {
        "encode": (of(1, "encode"), (params["vae"], picture)),
        "unet": (of(0, "__call__"), (params["unet"], both, Shape((1,), jnp.int32), text)),
        "decode": (of(1, "decode"), (params["vae"], Shape((*latent, pipe.latent_channels), dtype))),
        "prediction": (lambda *arrays: whole(*arrays, None), (params, table, picture, *numbers)),
    }


def measure(function: Callable, arguments: tuple[Any, ...], layout: sharding.Layout) -> tuple[list[float], float]:
    """Bytes of arguments, temporaries and results, and the seconds that compiling took."""
    started = time.perf_counter()
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        # A new function each time: JAX caches traces, and strips are chosen during tracing.
        lowered = jax.jit(lambda *arrays: function(*arrays)).lower(*layout.shapes(arguments))
    memory = lowered.compile().memory_analysis()
    sizes = [memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes]
    return sizes, time.perf_counter() - started


def prediction(arguments: argparse.Namespace) -> None:
    layout = sharding.Layout(sharding.make_mesh(1, slices.devices(arguments.target)[:1]))
    base = dataclasses.replace(shapes_of(None), index=ModelIndex({"prediction_type": "depth"}))
    print(f"compiled for {arguments.target}; GB (1e9 bytes); strips where they are chosen by size")
    print(f"{'':24} {'arguments':>9} {'temporaries':>11} {'sum':>6} {'compiling':>10}")
    for resolution in arguments.resolutions:
        for dtype in arguments.dtypes:
            for part in arguments.parts:
                function, shapes = programs(base, resolution, DTYPES[dtype])[part]
                print(f"{resolution}x{resolution * 3 // 4}, {dtype}, {part}", flush=True)
                for name, mode in MODES.items():
                    os.environ["MARIGOLD_JAX_STRIPS"] = mode
                    sizes, seconds = measure(function, shapes, layout)
                    given, temporaries, _ = (size / GB for size in sizes)
                    total = sum(sizes) / GB
                    print(f"  {name:22} {given:9.2f} {temporaries:11.2f} {total:6.2f} {seconds:8.0f} s", flush=True)


def stored(loss: Callable, *arguments: Any) -> Iterator[Any]:
    """Shapes of the arrays that the gradient by the first argument keeps, without the arguments themselves."""
    traced = jax.make_jaxpr(lambda first, *rest: jax.tree.leaves(jax.vjp(lambda p: loss(p, *rest), first)[1]))(
        *arguments
    ).jaxpr
    seen = set(map(id, (*traced.invars, *traced.constvars)))
    for array in traced.outvars:
        if not isinstance(array, Literal) and id(array) not in seen:
            seen.add(id(array))
            yield array.aval


def training(arguments: argparse.Namespace) -> None:
    base, size = shapes_of(None), (1, 480, 640)
    batch = {
        "rgb": Shape((*size, 3), jnp.float32),
        "target": Shape((*size, 1), jnp.float32),
        "mask": Shape((*size, 1), bool),
        "span": Shape(size[:1], jnp.float32),
    }
    frozen = {"vae": base.vae.params, "empty_prompt": Shape((2, 1024), jnp.float32)}
    structures, schedule = (base.unet.structure, base.vae.structure), NoiseSchedule.from_config(base.scheduler)
    key = jax.eval_shape(lambda: jax.random.key(0))
    print("one picture of 480x640, forward and backward, from JAX's own derivation; GB (1e9 bytes)")
    print(f"{'objective':12} {'dtype':9} {'remat':7} {'stored':>7} {'TFLOP':>7} {'of none':>8}")
    for objective in ("diffusion", "end_to_end"):
        for dtype in arguments.dtypes:
            first = None
            for remat in REMAT:
                options = {"compute_dtype": DTYPES[dtype], "remat": remat}
                compute = OBJECTIVES[objective].make(*structures, schedule, **options)
                loss = lambda *arrays, compute=compute: compute(*arrays)[0]  # noqa: E731
                kept = total(stored(loss, base.unet.params, frozen, batch, key))
                work = flops(jax.grad(loss), base.unet.params, frozen, batch, key)
                first = first or work
                print(
                    f"{objective:12} {dtype:9} {remat:7} {kept / GB:7.2f} {work / 1e12:7.2f} {work / first:8.2f}",
                    flush=True,
                )
    # A recomputed block keeps what its own gradient needs during the backward pass, one block at a time.
    for dtype in arguments.dtypes:
        params = {path: Shape(x.shape, DTYPES[dtype]) for path, x in base.vae.params.items()}
        latent = Shape((1, 60, 80, 4), DTYPES[dtype])
        for remat in ("none", "blocks"):
            inside: list[int] = []
            decode = functools.partial(_decode, base.vae.structure, REMAT[remat], inside)
            kept = total(stored(decode, latent, params))
            print(f"{'the decoder':12} {dtype:9} {remat:7} {kept / GB:7.2f}", end="")
            print(f"; inside its largest block {max(inside) / GB:.2f}", flush=True)


def _decode(structure: Any, checkpoint: Callable, inside: list[int], latents: Any, params: Any) -> Any:
    """Decodes, and appends to `inside` the bytes that each block stores for its own gradient."""

    def wrap(block: Callable) -> Callable:
        def call(x: Any) -> Any:
            inside.append(total(stored(block, x)))
            return checkpoint(block)(x)

        return call

    return functional.merge(structure, params).decode(latents, wrap)


def total(arrays: Iterable[Any]) -> int:
    """Total number of bytes."""
    return sum(array.size * array.dtype.itemsize for array in arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu:1", help="as for marigold_jax.aot (default: %(default)s)")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[768, 2048])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--training", action="store_true", help="a training step instead of a prediction")
    arguments = parser.parse_args()
    print(f"{datetime.date.today()}, jax {jax.__version__}", flush=True)
    (training if arguments.training else prediction)(arguments)


if __name__ == "__main__":
    main()
