"""Shows what training and prediction would need on TPUs or GPUs, by compiling for them without having any.

    python -m marigold_jax.aot --target tpu:v5e-8 --config quickstart
    python -m marigold_jax.aot --target gpu:h100 --config quickstart --what predict --batch_size 8
    python -m marigold_jax.aot --target tpu:v5e-8 --what train --config hypersim_vkitti \\
        --config.data.batch_size=32 --config.data.accumulation=1 --config.run.fsdp=8 \\
        --config.objective.compute_dtype=bfloat16

Compiles the programs that `train` would run for this configuration on all chips, and the program that `predict` would
run on one chip. For each program it prints the memory that a chip needs and has, the arithmetic, the traffic of the
memory and between chips, and the shortest time that a roofline model allows. On TPUs the compiler estimates the cycles
of each instruction: their sum, and the dearest with the lines that they come from, are shown as well; on GPUs the
roofline of each kernel. No weights are read and nothing is downloaded: a checkpoint that is not on this machine is
assumed to have the size of Stable Diffusion 2. If `config.data.size` is empty, images are assumed to have Hypersim's
size, 480x640.

--json FILE keeps all figures; --diff FILE, in a later run, shows both side by side with their ratios.

TPU targets need the compiler libtpu: pip install -e '.[train,tpu]'. GPU targets need JAX's plugin for CUDA:
pip install -e '.[train,cuda]'. Without them, --target cpu:8 compiles for eight simulated devices, and --target here for
the devices of this machine. A configuration is a Python file, and it is executed: use only files whose authors you
trust.
Exit status: 0 compiled; 1 failed; 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marigold_jax.data.geometry import default_bucket, fit
from marigold_jax.hardware import comparison, forecast, gpus, roofline, slices
from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.compiled import Compiled, compile_for, per_chip
from marigold_jax.hardware.operations import flops
from marigold_jax.hardware.report import report, timing
from marigold_jax.hardware.units import in_words
from marigold_jax.inference.kernel_layout import arranged
from marigold_jax.inference.pipeline import DEFAULT_BATCH_SIZE, DTYPES, Marigold
from marigold_jax.inference.program import denoise, denoise_for
from marigold_jax.runs.base_model import SCRATCH, ModelOptions
from marigold_jax.runs.start import start_from
from marigold_jax.runtime import extras, files, sharding, terminal
from marigold_jax.training.setup import make_setup
from marigold_jax.training.step import make_programs, state_shapes
from marigold_jax.training.targets import TARGETS
from marigold_jax.weights.hub import local

with extras.needed("train", __name__):
    from ml_collections import ConfigDict

    from marigold_jax.training import configuration, overrides

WHAT = {"train": ("train",), "predict": ("predict",), "both": ("train", "predict")}
HYPERSIM = (480, 640)


class Prediction(NamedTuple):
    """The program that `predict` would run: see its flags of the same names. 0 and None stand for its defaults."""

    dtype: str = "bfloat16"
    batch_size: int = 0
    processing_res: int | None = None


# ----------------------------------------------------------------------------------------------------------- programs


def train(config: ConfigDict, devices: list[jax.Device]) -> Iterator[Compiled]:
    """Yields the gradient of a micro-batch and the update, as `train` compiles them on these devices."""
    layout = sharding.Layout(sharding.make_mesh(config.run.fsdp, devices), (("", "fsdp"),))
    chips, data = len(devices), config.data
    if data.batch_size % chips:
        raise ValueError(f"config.data.batch_size={data.batch_size}: wanted a multiple of the {chips} chips")
    base = start_from(ModelOptions(**config.model.to_dict()), config.objective.to_dict(), shapes_only=True)
    setup = make_setup(base, config.to_dict())
    programs = make_programs(
        setup.objective,
        setup.optimiser,
        accumulation=data.accumulation,
        seed=config.run.seed,
        ema_decay=setup.ema_decay,
        layout=layout,
        batch_size=data.batch_size,
    )

    state = state_shapes(setup.params, setup.optimiser, setup.ema_decay is not None, layout)
    frozen = layout.shapes(setup.frozen | ({"target": setup.params} if setup.uses_ema_target else {}))
    batch = layout.batch_shapes(micro_batch(config, base.vae.config))
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated)
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        operations, useful = (
            flops(jax.grad(one, has_aux=True), state["params"], frozen, batch, jax.random.key(0))
            for one in (setup.objective, setup.lean_objective)
        )
        total = layout.shapes(jax.eval_shape(programs.zeros, state["params"], frozen, batch))
    begun = None if data.accumulation == 1 else total

    gradient = (begun, state["params"], frozen, batch, number, number)
    # These arrays are in memory even if a program does not read them, such as the optimiser's moments or the decoder.
    resident = state, frozen, batch
    work = {"samples": data.batch_size, "operations": operations, "useful": useful}
    yield compile_for("gradient", programs.add, gradient, chips, **work, resident=per_chip((*resident, begun)))
    update, samples = (state, total), data.batch_size * data.accumulation
    yield compile_for("update", programs.apply, update, chips, samples=samples, resident=per_chip((*resident, total)))


def micro_batch(config: ConfigDict, vae: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch from the loader: images, or latents if they were computed in advance."""
    count, (height, width) = config.data.batch_size, tuple(config.data.size) or HYPERSIM
    if config.run.get("latents", ""):
        latent = height // vae.downsampling, width // vae.downsampling
        return {
            "latents": jax.ShapeDtypeStruct((count, 2, *latent, vae.latent_channels), jnp.float32),
            "latent_mask": jax.ShapeDtypeStruct((count, *latent, 1), bool),
        }
    target = TARGETS[config.model.prediction]
    channels = {"rgb": 3, target.key: target.channels, "depth": 1}
    images = {key: jax.ShapeDtypeStruct((count, height, width, c), jnp.float32) for key, c in channels.items()}
    mask, span = jax.ShapeDtypeStruct((count, height, width, 1), bool), jax.ShapeDtypeStruct((count,), jnp.float32)
    return images | {"mask": mask, "span": span}


def predict(config: ConfigDict, devices: list[jax.Device], wanted: Prediction) -> Compiled:
    """Returns what `predict` compiles on one chip for 4:3 images."""
    layout = sharding.Layout(sharding.make_mesh(1, devices[:1]))
    base = start_from(ModelOptions(**config.model.to_dict()), config.objective.to_dict(), shapes_only=True)
    pipe, dtype = Marigold(base), DTYPES[wanted.dtype]
    params = layout.shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), pipe.params))
    platform = devices[0].platform
    images = wanted.batch_size or DEFAULT_BATCH_SIZE[platform]
    longer = pipe.default_processing_resolution if wanted.processing_res is None else wanted.processing_res
    canvas = fit((longer * 3 // 4, longer), longer, default_bucket(longer)).canvas
    table = pipe.sampler()
    shapes = (
        table,
        jax.ShapeDtypeStruct((images, *canvas, 3), dtype),
        jax.ShapeDtypeStruct((images, 2), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )
    params |= {part: arranged(params[part], platform) for part in ("unet", "vae")}
    arguments = (pipe.program(table, images, 1, images), params, *layout.shapes(shapes), None)
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        operations = flops(lambda *arrays: denoise(arguments[0], *arrays), *arguments[1:])
        steps = len(table.timesteps)
        name = f"prediction of {images} x {canvas[0]}x{canvas[1]}, {steps} step(s), {wanted.dtype}, on one chip"
        return compile_for(
            name, denoise_for(platform, images), arguments, 1, samples=images, operations=operations, useful=operations
        )


# ----------------------------------------------------------------------------------------------------------- the report


def run(config: ConfigDict, target: str, what: str, wanted: Prediction) -> Iterator[dict[str, Any]]:
    """Compiles the programs of a target one after the other, prints what they need, and yields their figures."""
    devices = slices.devices(target)
    chip, data = slices.chip(target, devices[0]), config.data
    introduce(config, target, devices, chip)
    if "train" in WHAT[what]:
        height, width = tuple(data.size) or HYPERSIM
        print(f"train: {data.accumulation} x {data.batch_size} images of {height}x{width} per step", flush=True)
        step = []
        for program, count in zip(train(config, devices), (data.accumulation, 1), strict=True):
            print(report(program, chip), flush=True)
            step.append((program, count))
            yield comparison.figures(program, chip)
        if chip:
            print(timing("a step", step, chip, data.batch_size * data.accumulation), flush=True)
    if "predict" in WHAT[what]:
        program = predict(config, devices, wanted)
        print(report(program, chip), flush=True)
        if chip:
            print(timing("a prediction", [(program, 1)], chip, program.samples), flush=True)
        yield comparison.figures(program, chip)


def introduce(config: ConfigDict, target: str, devices: list[jax.Device], chip: Chip | None) -> None:
    """Prints what is compiled for, and how the estimates come about."""
    name, (_, shape) = config.model.checkpoint, slices.parse(target)
    print(f"{target}: {len(devices)} x {devices[0].device_kind}{f' ({shape})' if shape else ''}", flush=True)
    if chip:
        print(
            f"  each {in_words(chip.memory)} of memory at {chip.bandwidth / 1e9:.0f} GB/s, "
            f"{chip.peak_flops / 1e12:.0f} TFLOP/s in bfloat16, links {chip.links / 1e9:.0f} GB/s in each direction"
        )
        print(f"  {roofline.STATEMENT}")
        print(f"  {forecast.statement(chip)}")
    else:
        print("  no roofline: the specification of these devices is unknown")
    if name != SCRATCH and local(name) is None:
        print(f"  {name} is not on this machine: assumed to have the size of Stable Diffusion 2")


def parse(argv: Sequence[str] | None) -> tuple[ConfigDict, argparse.Namespace]:
    """Returns the configuration and the other flags. Wrong flags end the program with one line and status 2."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = terminal.Parser("python -m marigold_jax.aot", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    configuration.add_flags(parser)
    gpu = f"gpu:NAME with one of {', '.join(gpus.GPUS)}; gpu:h100:8"
    targets = f"tpu:NAME with one of {', '.join(slices.SLICES)}; tpu:v5e:2x4; {gpu}; cpu:8; or here"
    add("--target", required=True, help=f"what to compile for: {targets}")
    add("--what", choices=WHAT, default="both", help="which programs to compile (default: %(default)s)")
    dtype = "of predictions (default: %(default)s); training uses config.objective.compute_dtype"
    add("--dtype", choices=DTYPES, default="bfloat16", help=dtype)
    number = {"type": int, "metavar": "N"}
    add("--batch_size", **number, default=0, help="pictures that are predicted at once; 0: what predict would choose")
    add("--processing_res", **number, help="longer side of 4:3 pictures to predict (default: the model's)")
    add("--json", type=Path, metavar="FILE", help="write all figures into this file")
    add("--diff", type=Path, metavar="FILE", help="show the figures beside those that --json wrote into this file")
    rest, changes = overrides.split(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(rest)
    longer = 64 if arguments.processing_res is None else arguments.processing_res
    if arguments.batch_size < 0 or longer < 64 or longer % 8:
        parser.error("wanted --batch_size 0 or more, and --processing_res a multiple of 8 from 64 up")
    try:
        slices.parse(arguments.target)
        return configuration.load(arguments.config, changes), arguments
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    config, arguments = parse(argv)
    try:
        configuration.check(config.to_dict())
        before = files.read_json(arguments.diff) if arguments.diff else None
        if before is not None and not comparison.is_of_aot(before):
            raise ValueError(f"{arguments.diff}: wanted a file that aot --json wrote")
        if arguments.json:  # found out before compiling, which may take half an hour
            files.writable(arguments.json)
        wanted = Prediction(arguments.dtype, arguments.batch_size, arguments.processing_res)
        found: dict[str, Any] = {"target": arguments.target, "programs": []}
        for figures in run(config, arguments.target, arguments.what, wanted):
            found["programs"].append(figures)
            if arguments.json:
                files.write_json(arguments.json, found)
        if before:
            print(comparison.compare(before, found))
    except (ValueError, OSError, ImportError) as error:
        terminal.fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        terminal.fail(f"the compiler for {arguments.target} failed: {str(error).splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
