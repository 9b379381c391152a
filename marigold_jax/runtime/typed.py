"""Checks values from JSON against annotations: their type, and their range if the annotation is `Annotated`.

JSON files may have a string instead of a number, a number instead of a flag, or null instead of a list. The error is
one line with the key, what was wanted and what was found.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

LONGEST_VALUE = 60  # characters of a value in a message
MOST_NAMED = 5


class Between(NamedTuple):
    """Inclusive bounds of a number, or of the length of a list. A number must also be a multiple of `multiple`."""

    low: float
    high: float
    multiple: int = 1


def problem(key: str, value: Any, annotation: Any) -> str | None:
    """Returns a message about a value that does not fit its annotation, without a full stop; None if it fits.

    Args:
        key: of the value; the message starts with it.
        value: from JSON. A bool is not an int. An int is accepted as a float. Numbers must be finite.
        annotation: bool, int, float, str, None, a `Literal`, `tuple[x, ...]` for a list, a union of these, or any of
            these in `Annotated` with a `Between`.
    """
    return None if _fits(value, annotation) else f"{key} = {shown(value)}: wanted {_words(annotation)}"


def problems(values: Mapping[str, Any], annotations: Mapping[str, Any]) -> list[str]:
    """Returns the messages of `problem` for all values that have an annotation."""
    found = (problem(key, values[key], annotation) for key, annotation in annotations.items() if key in values)
    return [words for words in found if words]


def converted(value: Any, annotation: Any) -> Any:
    """Returns a checked value as Python's type: a list as a tuple, and an int as a float if the annotation is float."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(value, list):
        return tuple(value)
    return float(value) if annotation is float else value


@functools.cache
def fields_of(cls: type) -> dict[str, Any]:
    """Returns the annotations of the dataclass fields that the constructor does not take: those that `fill` sets."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if not field.init}


def fill(instance: Any, values: Mapping[str, Any], source: object, keys: Mapping[str, str]) -> None:
    """Sets the fields of a frozen dataclass from the contents of a JSON object, in its `__post_init__`.

    Args:
        instance: the dataclass, with `init=False` fields. A field that `values` does not have keeps its default.
        values: the JSON object.
        source: the file or the setting that it came from; error messages start with it.
        keys: field -> key of the JSON object, for the fields that have another name there.

    Raises:
        ValueError: one line that names every value of the wrong type or out of range.
    """
    kind: Any = type(instance)
    fields = fields_of(kind)
    if wrong := problems(values, {keys.get(name, name): annotation for name, annotation in fields.items()}):
        raise ValueError(f"{source}: {'; '.join(wrong)}")
    for name, annotation in fields.items():
        if (key := keys.get(name, name)) in values:
            object.__setattr__(instance, name, converted(values[key], annotation))


def shown(value: Any) -> str:
    """Returns a value as short text on one line, for a message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def listed(names: list[str]) -> str:
    """Returns the first few names, and the number of the others."""
    more = len(names) - MOST_NAMED
    return ", ".join([*map(shown, names[:MOST_NAMED]), *([f"and {more} more"] if more > 0 else [])])


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, between = arguments
        if not _fits(value, inner):
            return False
        size = len(value) if isinstance(value, list | tuple) else value
        return between.low <= size <= between.high and (between.multiple == 1 or size % between.multiple == 0)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    return type(value) is annotation


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, (low, high, multiple) = arguments
        many = f" by {multiple}" if multiple > 1 else ""
        if get_origin(inner) is tuple:
            return f"{_words(inner)}, {low:g} to {high:g} of them"
        return f"{_words(inner)} from {low:.10g} to {high:.10g}{many}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"a list, each {_words(arguments[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return names[annotation or type(None)]
