"""Reads the text of a compiled program (HLO): its computations, instructions, and the lines that they come from."""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from marigold_jax.hardware.hlo_shapes import Shape, shapes

PACKAGE = "/marigold_jax/"

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"%([\w.\-]+)")
_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_LINE_OF_FILE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')
_TABLE = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)$")
_ROW = re.compile(r"^(\d+) (.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: unique in its computation.
        type: of the result, with layouts.
        opcode: as in "fusion".
        rest: the line after the opcode: operands and attributes.
        root: whether its result is that of its computation.
    """

    name: str
    type: str
    opcode: str
    rest: str
    root: bool = False

    @functools.cached_property
    def _end(self) -> int:
        depth = 1
        for match in re.finditer(r"[()]", self.rest):
            depth += 1 if match[0] == "(" else -1
            if not depth:
                return match.start()
        return len(self.rest)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(_OPERAND.findall(self.rest[: self._end]))

    @property
    def argument(self) -> str:
        """What is between the parentheses: the operands, the value of a constant, the number of a parameter."""
        return self.rest[: self._end]

    @functools.cached_property
    def attributes(self) -> str:
        return self.rest[self._end + 1 :]

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that this instruction runs or applies."""
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [branch.strip().lstrip("%") for branch in branches.split(",")]
        return tuple(names)

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of the result: one, or those of a tuple."""
        return shapes(self.type)

    @property
    def op_name(self) -> str:
        """The path that JAX gives to an operation, such as "jit(f)/while/body/dot_general", or "".

        For an argument of the program, its name, such as "params['conv_in.kernel']".
        """
        match = _NAME.search(self.attributes)
        return match[1].replace("\\'", "'") if match else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: name of the computation that runs first.
        frames: number of a stack frame -> file and line of it and of its callers, from the inside out.
    """

    computations: dict[str, Computation]
    entry: str
    frames: Callable[[int], list[tuple[str, int]]]

    def source(self, instruction: Instruction) -> str:
        """Returns the innermost line of this package that an instruction comes from, as "models/vae.py:31".

        If there is none, the innermost line of all, with the file's name only, or "".
        """
        frame, line = _FRAME.search(instruction.attributes), _LINE_OF_FILE.search(instruction.attributes)
        trace = self.frames(int(frame[1])) if frame else [(line[1], int(line[2]))] if line else []
        ours = [(file.rpartition(PACKAGE)[2], line) for file, line in trace if PACKAGE in file]
        file, line = (ours or [(file.rpartition("/")[2], line) for file, line in trace] or [("", 0)])[0]
        return f"{file}:{line}" if file else ""

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields all instructions that a fusion contains, with their computations, and those of fusions inside it."""
        for name in instruction.called:
            computation = self.computations.get(name, {})
            for one in computation.values():
                yield computation, one
                yield from self.inside(one)


def parse(text: str) -> Program:
    """Returns the program in the result of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current, table = "", {}, ""
    tables: dict[str, dict[int, str]] = defaultdict(dict)
    for line in text.splitlines():
        if match := _LINE.match(line):
            shape, opcode, rest = _split(match[3])
            current[match[2]] = Instruction(match[2], shape, opcode, rest, bool(match[1]))
        elif match := _TABLE.match(line):
            table = match[1]
        elif table and (match := _ROW.match(line)):
            tables[table][int(match[1])] = match[2]
        elif match := _HEAD.match(line):
            current, table = computations.setdefault(match[2], {}), ""
            entry = match[2] if match[1] else entry
    return Program(computations, entry, _frames(tables))


def _split(text: str) -> tuple[str, str, str]:
    """Splits an instruction into type (perhaps a nested tuple with layouts), opcode and rest."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == " " and not depth:
            opcode, _, rest = text[index + 1 :].partition("(")
            return text[:index], opcode, rest
    return text, "", ""


def _frames(tables: dict[str, dict[int, str]]) -> Callable[[int], list[tuple[str, int]]]:
    """Returns a function from the number of a stack frame to files and lines, from the inside out."""

    def field(row: str, key: str) -> int:
        match = re.search(rf"\b{key}=(\d+)", row)
        return int(match[1]) if match else 0

    files = {number: name.strip('"') for number, name in tables["FileNames"].items()}
    places = {
        number: (files.get(field(row, "file_name_id"), ""), field(row, "line"))
        for number, row in tables["FileLocations"].items()
    }
    rows = tables["StackFrames"]
    # The first frame has no parent. XLA writes parents plus one, so that no parent is 1.
    shift = field(rows.get(1, ""), "parent_frame_id")

    @functools.cache
    def trace(number: int) -> list[tuple[str, int]]:
        found = []
        while number in rows and len(found) < 100:
            found.append(places.get(field(rows[number], "file_location_id"), ("", 0)))
            number = field(rows[number], "parent_frame_id") - shift
        return found

    return trace
