"""Compiles a program and reads what it needs of a chip: memory, operations, traffic, and what it executes."""

import math
import time
from typing import Any, NamedTuple

import jax

from marigold_jax.hardware.collectives import Collective, collectives
from marigold_jax.hardware.executed import Executed, executed
from marigold_jax.hardware.roofline import Work
from marigold_jax.hardware.units import in_words

UNTILED = "Couldn't find output tile sizes"  # an error of XLA's kernel generator (jaxlib 0.10.2)


class Compiled(NamedTuple):
    """One compiled program.

    Attributes:
        name: as in "gradient", or "prediction of 4 x 576x768, 1 step(s), bfloat16, on one chip".
        samples: of one call, on all chips together.
        seconds: that compiling took.
        bytes: on a chip during the call, by purpose.
        work: of one chip in one call.
        collectives: one row per kind.
        executed: what one chip executes in one call.
    """

    name: str
    samples: int
    seconds: float
    bytes: dict[str, int]
    work: Work
    collectives: list[Collective]
    executed: list[Executed]


def compile_for(
    name: str,
    function: Any,
    arguments: tuple[Any, ...],
    chips: int,
    *,
    samples: int,
    operations: float = 0.0,
    useful: float = 0.0,
    resident: int = 0,
) -> Compiled:
    """Compiles a jitted function. Prints the size of its arguments first, because compiling may take half an hour.

    Args:
        name: of the program, for the report.
        function: jitted.
        arguments: shapes with shardings.
        chips: number of devices.
        samples: of one call, on all chips together.
        operations: of one call, on all chips together.
        useful: likewise, without those that rematerialisation repeats.
        resident: bytes of all arrays that are on a chip during the call, arguments included.
    """
    work = f"{operations / chips / 1e12:.4g} TFLOP a chip, {useful / chips / 1e12:.4g} of them useful"
    print(f"{name}: {in_words(per_chip(arguments))} of arguments, {work}; compiling", flush=True)
    started = time.perf_counter()
    program = _compile(function.lower(*arguments))
    seconds = time.perf_counter() - started
    memory, text = program.memory_analysis(), program.as_text()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        # Donated outputs use the memory of the arguments.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "beside": max(0, resident - memory.argument_size_in_bytes),
    }
    sent, rows = collectives(text, chips), executed(text)
    work = Work(
        flops=operations / chips,
        useful=useful / chips,
        memory=sum(row.times * row.hbm for row in rows),
        sent=sum(row.sent for row in sent),
    )
    return Compiled(name, samples, seconds, sizes, work, sent, rows)


def _compile(lowered: Any) -> Any:
    """Compiles; if XLA cannot generate a kernel for a matrix product of odd size for a GPU, with cuBLAS instead.

    On a real GPU, XLA tries both and takes the faster. Without one, it takes its own kernel, and may fail at that.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if UNTILED not in str(error):
            raise
        print("  XLA has no kernel for one of the matrix products: compiling again, with cuBLAS for all", flush=True)
        return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


def per_chip(tree: Any) -> int:
    """Returns the bytes per chip of a tree of shapes. Other leaves are compile-time constants and do not count."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
