"""How often each computation of a compiled program runs."""

import re
from collections import defaultdict

from marigold_jax.hardware.hlo import Computation, Instruction, Program

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ELEMENT = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")


def times(program: Program, skip: frozenset[str] = frozenset()) -> dict[str, int]:
    """Returns how many times each reachable computation runs. Of a conditional, each branch counts.

    Args:
        program: compiled for any platform.
        skip: opcodes whose computations are not visited, such as "fusion".
    """
    found: dict[str, int] = defaultdict(int)

    def visit(name: str, repetitions: int) -> None:
        found[name] += repetitions
        computation = program.computations[name]
        for instruction in computation.values():
            # async-start has already counted what these would.
            if instruction.opcode in ("async-done", "async-update") or instruction.opcode in skip:
                continue
            loop = trips(program, computation, instruction) if instruction.opcode == "while" else 1
            for one in instruction.called:
                if one in program.computations:
                    visit(one, repetitions * loop)

    visit(program.entry, 1)
    return dict(found)


def trips(program: Program, computation: Computation, loop: Instruction) -> int:
    """Returns how often a loop's body runs; 1 if that cannot be read from the text.

    The compiler for GPUs writes the number down. That for TPUs does not: there, the condition of the loop compares a
    counter in the loop's state with a limit.

    Args:
        program: that the loop is in.
        computation: likewise.
        loop: a while instruction.
    """
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    names = {key: re.search(rf"\b{key}=%?([\w.\-]+)", loop.attributes) for key in ("body", "condition")}
    if not all(names.values()):
        return 1
    body, condition = (program.computations[match[1]] for match in names.values() if match)
    compare = _comparison(program, condition)
    if compare is None:
        return 1
    (counter, _), (element, limit), direction = compare
    start = _initial(computation, loop, counter)
    stop = _initial(computation, loop, element) if limit is None else limit
    step = _step(body, counter)
    if start is None or stop is None or not step or direction not in ("LT", "LE", "NE", "GT", "GE"):
        return 1
    span = (stop - start) * (1 if step > 0 else -1) + (direction in ("LE", "GE"))
    return max(0, -(-span // abs(step)))


Side = tuple[int | None, int | None]  # which element of the loop's state it is, and its value if that is a constant


def _comparison(program: Program, condition: Computation) -> tuple[Side, Side, str] | None:
    """Returns both sides of the comparison that ends a loop, and its direction. It may be in a fusion."""
    root = _root(condition)
    if root is None:
        return None
    outer = root if root.opcode == "fusion" else None
    inner = program.computations[root.called[0]] if outer else condition
    compare = _root(inner)
    if compare is None or compare.opcode != "compare" or len(compare.operands) != 2:
        return None

    def side(name: str) -> Side:
        one = _behind(inner, name)
        if one and one.opcode == "parameter" and outer:
            name = outer.operands[int(one.argument)]
            return _element(condition, name), _constant(condition, name)
        return _element(inner, name), _constant(inner, name)

    direction = _DIRECTION.search(compare.attributes)
    return side(compare.operands[0]), side(compare.operands[1]), direction[1] if direction else ""


def _initial(computation: Computation, loop: Instruction, element: int | None) -> int | None:
    """Returns the constant that an element of the loop's state has at first."""
    state = computation.get(loop.operands[0]) if loop.operands else None
    if element is None or state is None or state.opcode != "tuple":
        return None
    return _constant(computation, state.operands[element])


def _step(body: Computation, counter: int | None) -> int:
    """Returns what the body adds to its counter: 1 if that cannot be read, as in JAX's loops."""
    root = _root(body)
    if counter is None or root is None or root.opcode != "tuple":
        return 1
    one = _behind(body, root.operands[counter])
    constants = [_constant(body, name) for name in one.operands] if one and one.opcode == "add" else []
    return next((value for value in constants if value is not None), 1)


def _root(computation: Computation) -> Instruction | None:
    return next((one for one in computation.values() if one.root), None)


def _behind(computation: Computation, name: str) -> Instruction | None:
    """Returns the instruction that computes a value, through copies of it."""
    one = computation.get(name)
    while one is not None and one.opcode in ("copy", "bitcast", "convert", "reshape"):
        one = computation.get(one.operands[0])
    return one


def _element(computation: Computation, name: str) -> int | None:
    one = _behind(computation, name)
    match = _ELEMENT.search(one.attributes) if one and one.opcode == "get-tuple-element" else None
    return int(match[1]) if match else None


def _constant(computation: Computation, name: str) -> int | None:
    one = _behind(computation, name)
    return int(one.argument) if one and one.opcode == "constant" and one.argument.lstrip("-").isdigit() else None
