"""Counts the collectives in the text (HLO) of a compiled program, and the bytes that its devices send to each other."""

import math
import re
from collections import defaultdict
from typing import Any, NamedTuple

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
BITS = {"pred": 8, "bf16": 16}  # other types contain their number of bits: f32, s8, u64, f8e4m3fn

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
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
        hlo: the result of `compiled.as_text()`. A loop without a known trip count is counted once.
        devices: of the whole program; used for collectives whose replica groups are not given.
    """
    bodies, entry = _computations(hlo)
    found: dict[Any, tuple[str, int, int, int]] = {}  # key of a collective -> kind, bytes, devices, repetitions
    for computation, times in _times(bodies, entry).items():
        begun = {}  # name -> devices and key of an asynchronous collective; only its "-start" line has them
        for name, shape, opcode, rest in bodies[computation]:
            kind = opcode.removesuffix("-start").removesuffix("-done")
            if kind not in WIRE:
                continue
            channel = _CHANNEL.search(rest)
            group, key = _group(rest, devices), (kind, channel[1]) if channel else (kind, computation, name)
            if opcode.endswith("-start"):
                begun[name] = group, key
                continue
            if opcode.endswith("-done"):
                group, key = begun[re.search(r"%?([\w.\-]+)\)", rest)[1]]
            # TPUs spread one collective over several fusions. Each fusion lists it with the same channel.
            most = max(times, found[key][3]) if key in found else times
            found[key] = kind, _bytes(shape), group, most
    rows = []
    for kind in {one[0] for one in found.values()}:
        those = [one for one in found.values() if one[0] == kind]
        size = sum(size * times for _, size, _, times in those)
        sent = sum(size * times * WIRE[kind](group) for _, size, group, times in those)
        rows.append(Collective(kind, sum(times for *_, times in those), size, sent))
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


Instruction = tuple[str, str, str, str]  # name, type of the result, opcode, rest of the line


def _computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    bodies: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif match := _LINE.match(line):
            shape, opcode, rest = _split(match[2])
            current.append((match[1], shape, opcode, rest))
    return bodies, entry


def _split(text: str) -> tuple[str, str, str]:
    """Splits an instruction into type (perhaps a nested tuple with layouts), opcode and rest."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == " " and not depth:
            opcode, _, rest = text[index + 1 :].partition("(")
            return text[:index], opcode, rest
    return text, "", ""


def _times(bodies: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """Returns how many times each reachable computation runs."""
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, repetitions: int) -> None:
        times[name] += repetitions
        for _, _, opcode, rest in bodies.get(name, []):
            if opcode in ("async-done", "async-update"):  # async-start has already counted it
                continue
            trips = _TRIPS.search(rest)
            loop = int(trips[1]) if opcode == "while" and trips else 1
            called = [match[2] for match in _CALLED.finditer(rest)]
            for branches in _BRANCHES.finditer(rest):
                called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            for one in called:
                if one in bodies:
                    visit(one, repetitions * loop)

    visit(entry, 1)
    return {name: count for name, count in times.items() if name in bodies}


def _bytes(shape: str) -> int:
    bare = re.sub(r"\{[^}]*\}", "", shape)  # layouts
    return sum(
        math.prod(map(int, filter(None, sides.split(",")))) * _bits(kind) // 8 for kind, sides in _ARRAY.findall(bare)
    )


def _bits(kind: str) -> int:
    match = re.match(r"[a-z]+(\d+)", kind)
    return BITS.get(kind) or (int(match[1]) if match else 0)
