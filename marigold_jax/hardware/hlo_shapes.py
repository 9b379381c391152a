"""Types in the text of a compiled program: element types, sides, layouts, and in which memory an array lies."""

import functools
import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "token": 0}  # other types contain their number of bits: f32, s8, u64, f8e4m3fn

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")


class Shape(NamedTuple):
    """One array.

    Attributes:
        kind: element type, as in "bf16".
        sides: of the array, in logical order.
        order: axes from the one that varies fastest to the slowest; () if there is no layout.
        tile: sides of the tiles in which a TPU stores the array, or (). Incomplete tiles are padded.
        space: 0 is the device's main memory (HBM). On TPUs, others are on the chip (VMEM, CMEM, semaphores).
    """

    kind: str
    sides: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.sides)

    @property
    def bytes(self) -> int:
        """Without padding."""
        return self.elements * bits(self.kind) // 8

    @property
    def stored(self) -> int:
        """Bytes in memory, with the padding of incomplete tiles."""
        if not self.tile or len(self.order) != len(self.sides):
            return self.bytes
        sides = [self.sides[axis] for axis in self.order]
        sides += [1] * (len(self.tile) - len(sides))
        # The last side of a tile belongs to the axis that varies fastest.
        for index, side in enumerate(reversed(self.tile)):
            sides[index] += -sides[index] % side
        return math.prod(sides) * bits(self.kind) // 8


@functools.cache
def shapes(text: str) -> tuple[Shape, ...]:
    """Returns the arrays of a type, such as "bf16[4,8]{1,0:T(8,128)S(1)}" or a tuple of such types."""
    return tuple(_shape(*match) for match in _ARRAY.findall(text))


def _shape(kind: str, sides: str, layout: str) -> Shape:
    order, _, storage = layout.partition(":")
    tile, space = _TILE.search(storage), _SPACE.search(storage)
    return Shape(
        kind,
        _numbers(sides),
        _numbers(order),
        _numbers(tile[1]) if tile else (),
        int(space[1]) if space else 0,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one)


def bits(kind: str) -> int:
    """Returns the number of bits of an element; 0 for what is not an array of numbers."""
    match = re.match(r"[a-z]+(\d+)", kind)
    return BITS.get(kind) if kind in BITS else int(match[1]) if match else 0
