"""Lists what a compiled program executes: each instruction with its kind, bytes moved, operations and line of ours.

Instructions inside a fusion belong to the fusion. Those of a loop's body are listed once, with the number of times that
they run. Of an asynchronous pair (copy-start, copy-done), the second is listed. What only names memory (parameters,
tuples, bitcasts) is left out.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from marigold_jax.hardware.hlo import Computation, Instruction, Program, parse
from marigold_jax.hardware.hlo_loops import times
from marigold_jax.hardware.hlo_operations import is_attention, operations, target
from marigold_jax.hardware.hlo_shapes import Shape

FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id add-dependency domain "
    "opt-barrier while conditional call".split()
)
FREE_TARGETS = {"ConcatBitcast", "AllocateBuffer", "Sharding"}  # custom calls of XLA that run nothing
COLLECTIVES = (
    "all-gather all-reduce reduce-scatter all-to-all ragged-all-to-all collective-permute collective-broadcast".split()
)
MOVES = frozenset(
    "copy transpose reshape slice dynamic-slice dynamic-update-slice pad concatenate reverse broadcast convert gather "
    "iota async slice-start".split()
)
KINDS = ("convolution", "matrix product", "attention", "reduction", "elementwise", "transpose/copy", "collective")
OTHER = "other"

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SLICES = ("slice", "dynamic-slice", "gather")


class Executed(NamedTuple):
    """One executed instruction. Figures are of one run.

    Attributes:
        name: in the text of the program.
        kind: one of `KINDS`, or "other".
        shape: type of its result, without layouts.
        times: how often it runs.
        operations: of matrix products, convolutions and attention, see `hlo_operations.py`.
        hbm: bytes read from and written to the main memory, padding of tiles included.
        on_chip: likewise for memory inside a TPU; 0 on GPUs.
        cycles: that the TPU compiler estimates; None where it states none.
        source: the line of this package that it comes from, as "models/vae.py:31", or "".
        op_name: the end of the path that JAX gives to the operation, as in "conv_general_dilated".
    """

    name: str
    kind: str
    shape: str
    times: int
    operations: float
    hbm: int
    on_chip: int
    cycles: int | None
    source: str
    op_name: str


def executed(text: str) -> list[Executed]:
    """Returns the executed instructions in the order of the program's schedule, loops after what contains them.

    Args:
        text: the result of `compiled.as_text()`. Of a conditional, all branches are listed. A loop whose length cannot
            be read from the text is counted once.
    """
    program = parse(text)
    gpu = not re.search(r"\{[\d,]*:T\(", text)  # only TPUs store arrays in tiles
    return [
        _row(program, computation, one, runs, gpu)
        for name, runs in times(program, frozenset({"fusion", *_applying()})).items()
        for computation in [program.computations[name]]
        for one in _listed(computation)
    ]


def _applying() -> tuple[str, ...]:
    """Opcodes that apply a computation to elements, such as the sum of a reduction, and the fusions of async pairs."""
    applying = ("reduce", "reduce-window", "map", "scatter", "select-and-scatter", "sort", "custom-call", "all-reduce")
    return *applying, "all-reduce-start", "reduce-scatter", "async-start", "async-done", "async-update"


def _listed(computation: Computation) -> Iterator[Instruction]:
    for one in computation.values():
        free = one.opcode in FREE or target(one) in FREE_TARGETS
        if not free and not one.opcode.endswith(("-start", "-update")):
            yield one


def _row(program: Program, computation: Computation, one: Instruction, runs: int, gpu: bool) -> Executed:
    begun = _begun(computation, one)
    hbm, on_chip = _traffic(program, computation, one, begun, gpu)
    cycles = [int(match[1]) for part in {begun, one} if (match := _CYCLES.search(part.attributes))]
    source, op_name = _origin(program, computation, begun)
    return Executed(
        name=one.name,
        kind=_kind(program, begun),
        shape=re.sub(r"\{[^}]*\}", "", one.type),
        times=runs,
        operations=operations(program, computation, begun),
        hbm=hbm,
        on_chip=on_chip,
        cycles=sum(cycles) if cycles else None,
        source=source,
        op_name=op_name,
    )


def _begun(computation: Computation, one: Instruction) -> Instruction:
    """Returns the first instruction of the asynchronous pair that an instruction completes; else itself."""
    while one.opcode.endswith(("-done", "-update")) and one.operands and one.operands[0] in computation:
        one = computation[one.operands[0]]
    return one


def _origin(program: Program, computation: Computation, one: Instruction) -> tuple[str, str]:
    """Returns where an instruction comes from. What the compiler adds comes from what it works on, or for."""
    inner = [each for _, each in program.inside(one)][::-1] if one.opcode in ("fusion", "async-start") else []
    op_name = next((each.op_name for each in (one, *inner) if each.op_name), "")
    near, seen = [one, *inner], one
    for _ in range(5):
        before = [computation[name] for name in seen.operands if name in computation]
        if not before:
            break
        seen = before[0]
        near.append(seen)
    near += (each for each in computation.values() if one.name in each.operands)
    return next((source for each in near if (source := program.source(each))), ""), op_name.rpartition("/")[2]


def _kind(program: Program, one: Instruction) -> str:
    """Returns the kind of the dearest operation in an instruction."""
    parts = [each for _, each in program.inside(one)] if one.opcode in ("fusion", "async-start") else [one]
    names = [part.opcode.removesuffix("-start").removesuffix("-done") for part in parts]
    targets = " ".join(map(target, parts))
    if any(map(is_attention, parts)):
        return "attention"
    if "cudnn$conv" in targets or any(_convolves(part) for part in parts):
        return "convolution"
    if "dot" in names or "convolution" in names or "gemm" in targets or "cublas" in targets:
        return "matrix product"
    if set(names) & set(COLLECTIVES):
        return "collective"
    if "custom-call" in names:
        return OTHER
    if set(names) & {"reduce", "reduce-window", "sort", "scatter", "select-and-scatter"}:
        return "reduction"
    return "transpose/copy" if set(names) <= MOVES | FREE else "elementwise"


def _convolves(one: Instruction) -> bool:
    """Whether an instruction is a convolution. On TPUs, matrix products are convolutions as well."""
    return one.opcode == "convolution" and not one.op_name.endswith("dot_general")


# ------------------------------------------------------------------------------------------------------------- traffic


def _traffic(
    program: Program, computation: Computation, one: Instruction, begun: Instruction, gpu: bool
) -> tuple[int, int]:
    """Returns the bytes that an instruction reads and writes: in the main memory, and in that of the chip itself."""
    totals = [0, 0]

    def add(shape: Shape, size: int) -> None:
        totals[0 if gpu or not shape.space else 1] += size

    body = next((program.computations[name] for name in begun.called if name in program.computations), {})
    fused = body if begun.opcode in ("fusion", "async-start") else {}
    parameters = {each.argument: each for each in fused.values() if each.opcode == "parameter"}
    updated = _updated(fused)
    for index, name in enumerate(begun.operands):
        if name not in computation or computation[name].opcode == "constant":
            continue
        parameter = parameters.get(str(index))
        if parameter and parameter.name in updated:  # only the slice that is replaced is written, and nothing is read
            continue
        read = _sliced(fused, parameter.name) if parameter else None
        if begun.opcode.removesuffix("-start") in _SLICES and index == 0:
            read = sum(shape.stored for shape in one.shapes)
        if begun.opcode == "dynamic-update-slice" and index == 0:
            continue
        operand = computation[name].shapes
        for shape in operand:
            add(shape, shape.stored if read is None else min(shape.stored, read))
    written = list(updated.values())
    if begun.opcode == "dynamic-update-slice":
        written = [computation[begun.operands[1]].shapes[0].stored]
    for index, shape in enumerate(one.shapes):
        if index and "$" in target(one) and shape.kind in ("s8", "u8"):  # workspace of cuDNN or cuBLAS
            continue
        add(shape, min(shape.stored, written[index]) if index < len(written) else shape.stored)
    return totals[0], totals[1]


def _sliced(fused: Computation, name: str) -> int | None:
    """Returns the bytes of a parameter that a fusion reads if it reads only slices of it; else None."""
    total = 0
    for one in fused.values():
        if name not in one.operands:
            continue
        if one.opcode in _SLICES and one.operands[0] == name:
            total += one.shapes[0].stored
        elif one.opcode == "bitcast" and (inner := _sliced(fused, one.name)) is not None:
            total += inner
        elif one.opcode not in _SLICES:
            return None
    return total


def _updated(fused: Computation) -> dict[str, int]:
    """Returns the parameters of a fusion that it updates in place -> bytes of the slices that replace their parts."""
    roots = [one for one in fused.values() if one.root]
    if roots and roots[0].opcode == "tuple":
        roots = [fused[name] for name in roots[0].operands]
    found = {}
    for one in roots:
        while one.opcode in ("bitcast", "copy") and one.operands[0] in fused:
            one = fused[one.operands[0]]
        if one.opcode != "dynamic-update-slice":
            return {}
        array = fused[one.operands[0]]
        while array.opcode == "bitcast":
            array = fused[array.operands[0]]
        if array.opcode == "parameter":
            found[array.name] = fused[one.operands[1]].shapes[0].stored
    return found
