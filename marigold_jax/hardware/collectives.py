"""Counts the collectives in the text (HLO) of a compiled program, and the bytes that its devices send to each other."""

import math
import re
from typing import Any, NamedTuple

from marigold_jax.hardware.hlo import parse
from marigold_jax.hardware.hlo_loops import times

# Bytes that each of n devices sends per byte of the result, with the ring algorithms that TPUs and GPUs use.
WIRE = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # the result is one n-th of the input
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
    "ragged-all-to-all": lambda n: (n - 1) / n,
}

_CHANNEL = re.compile(r"channel_id=(\d+)")
# The size of a group is written as [groups, size], as lists of devices, or as axes of a mesh (or parts of axes).
_GROUP = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]<=|\{\{([\d,]*)\})")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


class Collective(NamedTuple):
    """All collectives of one kind in a program: their number, bytes of their results, and bytes that a device sends."""

    kind: str
    count: int
    bytes: int
    sent: float


def collectives(hlo: str, devices: int) -> list[Collective]:
    """Returns one row per kind, the largest first. The body of a loop is counted once per iteration.

    Args:
        hlo: the result of `compiled.as_text()`. A loop whose length cannot be read from it is counted once.
        devices: of the whole program; used for collectives whose replica groups are not given.
    """
    program = parse(hlo)
    found: dict[Any, tuple[str, int, int, int]] = {}  # key of a collective -> kind, bytes, devices, repetitions
    for computation, runs in times(program).items():
        begun = {}  # name -> devices and key of an asynchronous collective; only its "-start" line has them
        for name, one in program.computations[computation].items():
            opcode, rest = one.opcode, one.rest
            kind = opcode.removesuffix("-start").removesuffix("-done")
            if kind not in WIRE:
                continue
            channel = _CHANNEL.search(rest)
            group, key = _group(rest, devices), (kind, channel[1]) if channel else (kind, computation, name)
            if opcode.endswith("-start"):
                begun[name] = group, key
                continue
            if opcode.endswith("-done"):
                group, key = begun[one.operands[0]]
            # TPUs spread one collective over several fusions. Each fusion lists it with the same channel.
            most = max(runs, found[key][3]) if key in found else runs
            found[key] = kind, sum(shape.bytes for shape in one.shapes), group, most
    rows = []
    for kind in {one[0] for one in found.values()}:
        those = [one for one in found.values() if one[0] == kind]
        size = sum(size * runs for _, size, _, runs in those)
        sent = sum(size * runs * WIRE[kind](group) for _, size, group, runs in those)
        rows.append(Collective(kind, sum(runs for *_, runs in those), size, sent))
    return sorted(rows, key=lambda row: -row.bytes)


def _group(rest: str, devices: int) -> int:
    if match := _MESH.search(rest):
        sides = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(
            int(part or sides[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        )
    if match := _GROUP.search(rest):
        return int(match[1] or len(match[2].split(",")))
    return devices
