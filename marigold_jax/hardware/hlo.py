"""Reads the text of a compiled program (HLO): its computations, instructions, loops, and the lines they come from."""

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
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
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
        """The path that JAX gives to an operation, such as "jit(f)/while/body/dot_general", or ""."""
        match = _NAME.search(self.attributes)
        return match[1] if match else ""


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

    def times(self, skip: frozenset[str] = frozenset()) -> dict[str, int]:
        """Returns how many times each reachable computation runs.

        Args:
            skip: opcodes whose computations are not visited, such as "fusion".
        """
        times: dict[str, int] = defaultdict(int)

        def visit(name: str, repetitions: int) -> None:
            times[name] += repetitions
            for instruction in self.computations[name].values():
                # async-start has already counted what these would.
                if instruction.opcode in ("async-done", "async-update") or instruction.opcode in skip:
                    continue
                loop = self.trips(name, instruction) if instruction.opcode == "while" else 1
                for one in instruction.called:
                    if one in self.computations:
                        visit(one, repetitions * loop)

        visit(self.entry, 1)
        return dict(times)

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields all instructions that a fusion contains, with their computations, and those of fusions inside it."""
        for name in instruction.called:
            computation = self.computations.get(name, {})
            for one in computation.values():
                yield computation, one
                yield from self.inside(one)

    # ------------------------------------------------------------------------------------------------------- loops

    def trips(self, name: str, loop: Instruction) -> int:
        """Returns how often a loop's body runs; 1 if that cannot be read from the text.

        GPUs' compiler writes the number down. TPUs' does not: there the condition compares a counter with a limit.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        body, condition = (re.search(rf"\b{key}=%?([\w.\-]+)", loop.attributes) for key in ("body", "condition"))
        if not (body and condition):
            return 1
        return self._counted(name, loop, body[1], condition[1]) or 1

    def _counted(self, name: str, loop: Instruction, body: str, condition: str) -> int | None:
        compare = self._compare(condition)
        if compare is None:
            return None
        computation, (left, right), direction, outer = compare
        counter = self._element(computation, left, outer)
        start = self._carried(name, loop, counter)
        limit = self._constant(computation, right)
        if limit is None:
            limit = self._carried(name, loop, self._element(computation, right, outer))
        step = self._step(body, counter)
        if None in (start, limit) or not step or direction not in ("LT", "LE", "NE", "GT", "GE"):
            return None
        span = (limit - start) * (1 if step > 0 else -1) + (direction in ("LE", "GE"))
        return max(0, -(-span // abs(step)))

    def _compare(self, condition: str):
        """Returns the comparison that ends a loop: its computation, operands, direction, and the calling fusion."""
        root = next((one for one in self.computations[condition].values() if one.root), None)
        outer = None
        if root and root.opcode == "fusion":
            outer = self.computations[condition], root
            root = next((one for one in self.computations[root.called[0]].values() if one.root), None)
            condition = outer[1].called[0]
        if root is None or root.opcode != "compare" or len(root.operands) != 2:
            return None
        direction = re.search(r"direction=(\w+)", root.attributes)
        return self.computations[condition], root.operands, direction[1] if direction else "", outer

    def _element(self, computation: Computation, name: str, outer=None) -> int | None:
        """Returns which element of the loop's state a name is."""
        one = _behind(computation, name)
        if one and one.opcode == "parameter" and outer:
            return self._element(outer[0], outer[1].operands[int(one.argument)])
        match = re.search(r"\bindex=(\d+)", one.attributes) if one and one.opcode == "get-tuple-element" else None
        return int(match[1]) if match else None

    def _carried(self, name: str, loop: Instruction, element: int | None) -> int | None:
        """Returns the constant that an element of the loop's state has at first."""
        computation = self.computations[name]
        state = computation.get(loop.operands[0]) if loop.operands else None
        if element is None or state is None or state.opcode != "tuple":
            return None
        return self._constant(computation, state.operands[element])

    def _constant(self, computation: Computation, name: str) -> int | None:
        one = _behind(computation, name)
        return int(one.argument) if one and one.opcode == "constant" and one.argument.lstrip("-").isdigit() else None

    def _step(self, body: str, counter: int | None) -> int:
        """Returns what the body adds to its counter: 1 if that cannot be read, as in JAX's loops."""
        computation = self.computations[body]
        root = next((one for one in computation.values() if one.root), None)
        if counter is None or root is None or root.opcode != "tuple":
            return 1
        one = _behind(computation, root.operands[counter])
        constants = [self._constant(computation, name) for name in one.operands] if one and one.opcode == "add" else []
        return next((value for value in constants if value is not None), 1)


def _behind(computation: Computation, name: str) -> Instruction | None:
    """Returns the instruction that computes a value, through copies of it."""
    one = computation.get(name)
    while one is not None and one.opcode in ("copy", "bitcast", "convert", "reshape"):
        one = computation.get(one.operands[0])
    return one


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
