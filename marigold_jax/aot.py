"""Shows what training and prediction would need on a TPU slice, by compiling for the slice without a TPU.

    python -m marigold_jax.aot --target tpu:v5e-8 --config quickstart
    python -m marigold_jax.aot --target tpu:v5e-8 --what train --config hypersim_vkitti \\
        --config.data.batch_size=32 --config.data.accumulation=1 --config.run.fsdp=8 \\
        --config.objective.compute_dtype=bfloat16

Compiles the programs that `train` would run for this configuration on all chips of the slice, and the program that
`predict` would run on one chip. For each program it prints the memory that a chip needs and has, the arithmetic, the
traffic between chips, and the shortest time that a roofline model allows. No weights are read and nothing is
downloaded: a checkpoint that is not on this machine is assumed to have the size of Stable Diffusion 2. If
`config.data.size` is empty, images are assumed to have Hypersim's size, 480x640.

TPU targets need the compiler libtpu: pip install -e '.[train,tpu]'. Without it, --target cpu:8 compiles for eight
simulated devices, and --target here for the devices of this machine. A configuration is a Python file, and it is
executed: use only files whose authors you trust.
Exit status: 0 compiled; 1 failed; 2 wrong usage.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marigold_jax.data.geometry import default_bucket, fit
from marigold_jax.hardware import roofline, slices
from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.collectives import Collective, collectives
from marigold_jax.hardware.operations import flops
from marigold_jax.inference.pipeline import DEFAULT_BATCH_SIZE, DTYPES, Marigold
from marigold_jax.inference.program import denoise
from marigold_jax.runs.base_model import SCRATCH, ModelOptions
from marigold_jax.runs.start import start_from
from marigold_jax.runtime import extras, sharding, terminal
from marigold_jax.training.setup import make_setup
from marigold_jax.training.step import make_programs, state_shapes
from marigold_jax.training.targets import TARGETS
from marigold_jax.weights.hub import local

with extras.needed("train", __name__):
    from ml_collections import ConfigDict

    from marigold_jax.training import configuration, overrides

WHAT = {"train": ("train",), "predict": ("predict",), "both": ("train", "predict")}
HYPERSIM = (480, 640)
MIB, GIB = 2**20, 2**30


class Program(NamedTuple):
    """One compiled program: bytes per chip by purpose, the work of one call, and its collectives."""

    name: str
    seconds: float  # to compile
    bytes: dict[str, int]
    work: roofline.Work
    collectives: list[Collective]


def compile_for(
    name: str,
    function: Any,
    arguments: tuple[Any, ...],
    chips: int,
    *,
    operations: float = 0.0,
    useful: float = 0.0,
    resident: int = 0,
) -> Program:
    """Compiles a jitted function. Prints the size of its arguments first, because compiling may take half an hour.

    Args:
        name: of the program, for the report.
        function: jitted.
        arguments: shapes with shardings.
        chips: number of devices.
        operations: of one call, on all chips together.
        useful: likewise, without those that rematerialisation repeats.
        resident: bytes of all arrays that are on a chip during the call, arguments included.
    """
    work = f"{operations / chips / 1e12:.4g} TFLOP a chip, {useful / chips / 1e12:.4g} of them useful"
    print(f"{name}: {in_words(per_chip(arguments))} of arguments, {work}; compiling", flush=True)
    started = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory, costs = program.memory_analysis(), program.cost_analysis() or {}
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        # Donated outputs use the memory of the arguments.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "beside": max(0, resident - memory.argument_size_in_bytes),
    }
    sent = collectives(program.as_text(), chips)
    work = roofline.Work(
        operations / chips, useful / chips, costs.get("bytes accessed", 0.0), sum(row.sent for row in sent)
    )
    return Program(name, seconds, sizes, work, sent)


# ----------------------------------------------------------------------------------------------------------- programs


def train(config: ConfigDict, devices: list[jax.Device]) -> Iterator[Program]:
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
    work = {"operations": operations, "useful": useful}
    yield compile_for("gradient", programs.add, gradient, chips, **work, resident=per_chip((*resident, begun)))
    yield compile_for("update", programs.apply, (state, total), chips, resident=per_chip((*resident, total)))


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


def predict(config: ConfigDict, devices: list[jax.Device], dtype: str) -> Program:
    """Returns what `predict` compiles on one chip: its default batch of 4:3 images at its default resolution."""
    layout = sharding.Layout(sharding.make_mesh(1, devices[:1]))
    base = start_from(ModelOptions(**config.model.to_dict()), config.objective.to_dict(), shapes_only=True)
    pipe = Marigold(base)
    params = layout.shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, DTYPES[dtype]), pipe.params))
    images = DEFAULT_BATCH_SIZE[devices[0].platform]
    longer = pipe.default_processing_resolution
    canvas = fit((longer * 3 // 4, longer), longer, default_bucket(longer)).canvas
    table = pipe.sampler()
    shapes = (
        table,
        jax.ShapeDtypeStruct((images, *canvas, 3), DTYPES[dtype]),
        jax.ShapeDtypeStruct((images, 2), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )
    arguments = (pipe.program(table, images, 1, images), params, *layout.shapes(shapes), None)
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        operations = flops(lambda *arrays: denoise(arguments[0], *arrays), *arguments[1:])
        name = f"prediction of {images} x {canvas[0]}x{canvas[1]}, {len(table.timesteps)} step(s), {dtype}, on one chip"
        return compile_for(name, denoise, arguments, 1, operations=operations, useful=operations)


def per_chip(tree: Any) -> int:
    """Returns the bytes per chip of a tree of shapes. Other leaves are compile-time constants and do not count."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


# ------------------------------------------------------------------------------------------------------------- report


def report(program: Program, chip: Chip | None) -> str:
    """Returns the needs of one program, as a few lines of text."""
    total = sum(program.bytes.values())
    sizes = ", ".join(f"{name} {in_words(size)}" for name, size in program.bytes.items() if size)
    of = (
        f" of {in_words(chip.memory)} ({total / chip.memory:.1%}{'' if total <= chip.memory else ': DOES NOT FIT'})"
        if chip
        else ""
    )
    lines = [
        f"  compiled in {program.seconds:.1f} s",
        f"  bytes a chip   {in_words(total)}{of}: {sizes}",
        f"  traffic        {in_words(program.work.memory)} of memory, {in_words(program.work.sent)} sent",
    ]
    lines += [
        f"  collectives    {row.count:.0f} {row.kind}, {in_words(row.bytes)} in all, {in_words(row.sent)} sent"
        for row in program.collectives
    ]
    return "\n".join(lines)


def timing(what: str, work: roofline.Work, chip: Chip, samples: int) -> str:
    """Returns the roofline estimate of a training step or a prediction, and the samples per second of all chips."""
    found = roofline.estimate(work, chip)
    return (
        f"{what}: compute {in_seconds(found.compute)}, memory {in_seconds(found.memory)}, links "
        f"{in_seconds(found.links)}\n"
        f"  at least {in_seconds(found.least)}, bound by {found.bound}: {samples / found.least:.4g} samples/s, "
        f"MFU {found.mfu:.1%}\n"
        f"  with no overlap {in_seconds(found.most)}: {samples / found.most:.4g} samples/s, "
        f"MFU {found.mfu_without_overlap:.1%}"
    )


def in_words(count: int | float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.2f} MiB"


def in_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def run(config: ConfigDict, target: str, what: str, dtype: str) -> None:
    _, shape = slices.parse(target)
    devices = slices.devices(target)
    chip, name, data = slices.chip(target, devices[0]), config.model.checkpoint, config.data
    print(f"{target}: {len(devices)} x {devices[0].device_kind}{f' ({shape})' if shape else ''}", flush=True)
    if chip:
        print(
            f"  each {in_words(chip.memory)} of memory at {chip.bandwidth / 1e9:.0f} GB/s, "
            f"{chip.peak_flops / 1e12:.0f} TFLOP/s in bfloat16, links {chip.links / 1e9:.0f} GB/s in each direction"
        )
        print(f"  {roofline.STATEMENT}")
    else:
        print("  no roofline: the specification of these devices is unknown")
    if name != SCRATCH and local(name) is None:
        print(f"  {name} is not on this machine: assumed to have the size of Stable Diffusion 2")
    if "train" in WHAT[what]:
        height, width = tuple(data.size) or HYPERSIM
        print(f"train: {data.accumulation} x {data.batch_size} images of {height}x{width} per step", flush=True)
        work = roofline.Work(0.0, 0.0, 0.0, 0.0)
        for program, count in zip(train(config, devices), (data.accumulation, 1), strict=True):
            print(report(program, chip), flush=True)
            work += program.work.times(count)
        if chip:
            print(timing("a step", work, chip, data.batch_size * data.accumulation), flush=True)
    if "predict" in WHAT[what]:
        program = predict(config, devices, dtype)
        print(report(program, chip), flush=True)
        if chip:
            print(timing("a prediction", program.work, chip, DEFAULT_BATCH_SIZE[devices[0].platform]), flush=True)


def parse(argv: Sequence[str] | None) -> tuple[ConfigDict, argparse.Namespace]:
    """Returns the configuration and the other flags. Wrong flags end the program with one line and status 2."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = terminal.Parser("python -m marigold_jax.aot", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    configuration.add_flags(parser)
    targets = f"tpu:NAME with one of {', '.join(slices.SLICES)}; tpu:v5e:2x4; cpu:8; or here"
    add("--target", required=True, help=f"what to compile for: {targets}")
    add("--what", choices=WHAT, default="both", help="which programs to compile (default: %(default)s)")
    dtype = "of predictions (default: %(default)s); training uses config.objective.compute_dtype"
    add("--dtype", choices=DTYPES, default="bfloat16", help=dtype)
    rest, changes = overrides.split(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(rest)
    try:
        slices.parse(arguments.target)
        return configuration.load(arguments.config, changes), arguments
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    config, arguments = parse(argv)
    try:
        configuration.check(config.to_dict())
        run(config, arguments.target, arguments.what, arguments.dtype)
    except (ValueError, OSError, ImportError) as error:
        terminal.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
