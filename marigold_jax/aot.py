"""What a training or a prediction would need on a TPU slice, found by compiling it there with no TPU at hand.

    python -m marigold_jax.aot --target tpu:v5e-8 --config configs/quickstart.py
    python -m marigold_jax.aot --target tpu:v5e-8 --what train --config configs/hypersim_vkitti.py \\
        --config.data.batch_size=32 --config.data.accumulation=1 --config.run.fsdp=8 \\
        --config.objective.compute_dtype=bfloat16

Compiles the programs that `train` would run for this configuration on all chips of the slice, and the one that
`predict` would run on a single chip. For each it prints the bytes a chip needs, and has; the arithmetic; what chips
send to each other; and the least time that a roofline allows. No weights are read and nothing is downloaded: a
checkpoint that is not on this machine is taken to be Stable Diffusion 2 in size. Where datasets have sizes of their own
(`config.data.size` is empty), pictures are Hypersim's, 480x640.

Needs libtpu, the compiler: pip install -e '.[train,tpu]'. Without it, --target cpu:8 compiles for simulated devices,
and --target here for the devices of this machine. A configuration is a Python file, and is executed.
Exit status: 0 compiled; 1 failed; 2 wrong usage.
"""

import math
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from marigold_jax.data.geometry import default_bucket, fit
from marigold_jax.hardware import roofline, slices
from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.collectives import Collective, collectives
from marigold_jax.hardware.operations import flops
from marigold_jax.inference.pipeline import DEFAULT_BATCH_SIZE, DTYPES, Marigold
from marigold_jax.inference.program import denoise
from marigold_jax.runs import run_folder
from marigold_jax.runtime import extras, sharding, terminal
from marigold_jax.runtime.cli import fail, parse
from marigold_jax.training import settings
from marigold_jax.training.objectives.contract import TARGETS
from marigold_jax.training.setup import make_recipe
from marigold_jax.training.step import make_programs, state_shapes
from marigold_jax.weights.hub import local

with extras.needed("train", __name__):
    from ml_collections import ConfigDict, config_flags

FLAGS = {
    "config": "the configuration, a Python file, as for train; it is executed",
    "target": f"tpu:NAME, with one of {', '.join(slices.SLICES)}; tpu:v5e:2x4; cpu:8; or here",
}
FURTHER = {
    "what": "train, predict or both: which programs to compile (default: both)",
    "dtype": "of prediction, float32 or bfloat16 (default: bfloat16); for training: config.objective.compute_dtype",
}
WHAT = {"train": ("train",), "predict": ("predict",), "both": ("train", "predict")}
HYPERSIM = (480, 640)
MIB, GIB = 2**20, 2**30


class Program(NamedTuple):
    """One compiled program: bytes a chip by what they are for, the work of one call, and what chips send."""

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
    """Compiles a jitted function. `operations`, `useful`: of all chips; `resident`: bytes that lie on a chip anyway.

    What is known before is told before: a large program compiles for half an hour.
    """
    work = f"{operations / chips / 1e12:.4g} TFLOP a chip, {useful / chips / 1e12:.4g} of them useful"
    print(f"{name}: {in_words(per_chip(arguments))} of arguments, {work}; compiling", flush=True)
    started = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory, costs = program.memory_analysis(), program.cost_analysis() or {}
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        # What is donated lies where the argument lay.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "beside": max(0, resident - memory.argument_size_in_bytes),
    }
    sent = collectives(program.as_text(), chips)
    work = roofline.Work(
        operations / chips, useful / chips, costs.get("bytes accessed", 0.0), sum(row.sent for row in sent)
    )
    return Program(name, seconds, sizes, work, sent)


# ------------------------------------------------------------------------------------------------- what there is to run


def train(config: ConfigDict, devices: list[jax.Device]) -> Iterator[Program]:
    """The gradient of a micro-batch and the update, as `train` compiles them on these devices."""
    layout = sharding.Layout(sharding.make_mesh(config.run.fsdp, devices), (("", "fsdp"),))
    chips, data = len(devices), config.data
    if data.batch_size % chips:
        raise ValueError(f"config.data.batch_size={data.batch_size}: wanted a multiple of the {chips} chips")
    base = run_folder.start_of(config.objective.to_dict(), **config.model.to_dict(), shapes_only=True)
    objective, stored = dict(config.objective), config.run.get("latents", "")
    recipe = make_recipe(base, config.model.prediction, objective, config.run.seed, stored, **config.optim)
    programs = make_programs(
        recipe.objective,
        recipe.optimiser,
        accumulation=data.accumulation,
        seed=config.run.seed,
        ema_decay=recipe.ema_decay,
        layout=layout,
    )

    state = state_shapes(recipe.params, recipe.optimiser, recipe.ema_decay is not None, layout)
    frozen = layout.shapes(recipe.frozen | ({"target": recipe.params} if recipe.follows else {}))
    batch = layout.batch_shapes(micro_batch(config, base.vae.config))
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated)
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        operations, useful = (
            flops(jax.grad(one, has_aux=True), state["params"], frozen, batch, jax.random.key(0))
            for one in (recipe.objective, recipe.lean)
        )
        total = layout.shapes(jax.eval_shape(programs.zeros, state["params"], frozen, batch))
    begun = None if data.accumulation == 1 else total

    gradient = (begun, state["params"], frozen, batch, number, number)
    # What a program does not read lies there all the same: the optimiser's moments, or the decoder.
    lie = state, frozen, batch
    work = {"operations": operations, "useful": useful}
    yield compile_for("gradient", programs.add, gradient, chips, **work, resident=per_chip((*lie, begun)))
    yield compile_for("update", programs.apply, (state, total), chips, resident=per_chip((*lie, total)))


def micro_batch(config: ConfigDict, vae: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What the loader would give: images, or the latents that stand in their place."""
    count, (height, width) = config.data.batch_size, tuple(config.data.size) or HYPERSIM
    if config.run.get("latents", ""):
        latent = height // vae.downsampling, width // vae.downsampling
        return {
            "latents": jax.ShapeDtypeStruct((count, 2, *latent, vae.latent_channels), jnp.float32),
            "latent_mask": jax.ShapeDtypeStruct((count, *latent, 1), bool),
        }
    target = TARGETS[config.model.prediction][0]
    channels = {"rgb": 3, target: 3 if target == "normals" else 1, "depth": 1}
    images = {key: jax.ShapeDtypeStruct((count, height, width, c), jnp.float32) for key, c in channels.items()}
    mask, span = jax.ShapeDtypeStruct((count, height, width, 1), bool), jax.ShapeDtypeStruct((count,), jnp.float32)
    return images | {"mask": mask, "span": span}


def predict(config: ConfigDict, devices: list[jax.Device], dtype: str) -> Program:
    """What `predict` compiles on one chip: as many pictures side by side as it takes there, 4:3, at its resolution."""
    layout = sharding.Layout(sharding.make_mesh(1, devices[:1]))
    base = run_folder.start_of(config.objective.to_dict(), **config.model.to_dict(), shapes_only=True)
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
    """Bytes of one chip's share of a tree of shapes; what is fixed when compiling has none."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


# ----------------------------------------------------------------------------------------------------------- the report


def report(program: Program, chip: Chip | None) -> str:
    """What one program needs, in four or five lines."""
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
    """The roofline of a step, or of a prediction, and what it means for the samples of all chips together."""
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
            f"{chip.peak_flops / 1e12:.0f} TFLOP/s in bfloat16, links {chip.links / 1e9:.0f} GB/s out and as much in"
        )
        print(f"  {roofline.STATEMENT}")
    else:
        print("  no roofline: what these devices can do is not known")
    if name != run_folder.SCRATCH and local(name) is None:
        print(f"  {name} is not on this machine: taken to be Stable Diffusion 2 in size")
    if "train" in WHAT[what]:
        height, width = tuple(data.size) or HYPERSIM
        print(f"train: {data.accumulation} x {data.batch_size} pictures of {height}x{width} a step", flush=True)
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


def define_flags() -> None:
    """Not when this file is imported: others have a flag --config too."""
    config_flags.DEFINE_config_file("config", None, FLAGS["config"], lock_config=True)
    flags.DEFINE_string("target", None, FLAGS["target"])
    flags.DEFINE_enum("what", "both", list(WHAT), FURTHER["what"])
    flags.DEFINE_enum("dtype", "bfloat16", list(DTYPES), FURTHER["dtype"])


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        slices.parse(flags.FLAGS.target)
    except ValueError as error:
        fail(str(error), 2)
    try:
        settings.check(flags.FLAGS.config.to_dict())
        run(flags.FLAGS.config, flags.FLAGS.target, flags.FLAGS.what, flags.FLAGS.dtype)
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))


if __name__ == "__main__":
    define_flags()
    sys.exit(terminal.run(lambda: app.run(main, flags_parser=lambda argv: parse(argv, __doc__, FLAGS, FURTHER))))
