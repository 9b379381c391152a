"""Overrides: `--config.SECTION.KEY=VALUE` on a command line. VALUE is read as the type of the value it replaces."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

Override = tuple[str, str | None]  # (SECTION.KEY, VALUE); no value for a bare `--config.data.flip`

FLAG = re.compile(r"--?(?P<no>no)?config\.(?P<key>.+)")
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
READERS = {  # type -> (how to read a text, what to ask for); looked up by exact type, so a bool is not an int
    bool: (lambda text: BOOLEANS[text.lower()], "true or false"),
    int: (lambda text: int(text, 16 if text.lower().startswith("0x") else 10), "a whole number"),
    float: (float, "a number"),
    str: (str, "a text"),
    dict: (lambda text: dict(ast.literal_eval(text)), "a dictionary, as \"{'key': 1}\""),
}


def split(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Separates overrides from the other arguments; returns (other arguments, overrides), both in the order given."""
    rest, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not (flag := FLAG.fullmatch(name)):
            rest.append(word)
        elif flag["no"]:
            overrides.append((flag["key"], "false"))
        elif equals:
            overrides.append((flag["key"], value))
        else:
            follows = bool(words) and (not words[0].startswith("-") or re.match(r"-\.?\d", words[0]))
            overrides.append((flag["key"], words.pop(0) if follows else None))
    return rest, overrides


def apply(config: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Replaces values of a configuration, in place.

    If a key is overridden more than once, the last value counts. For a tuple, the values are joined: `=16` and `=24`
    make (16, 24).

    Raises:
        ValueError: there is no such key, or the value has another type; one line that names the key.
    """
    texts: dict[str, list[str | None]] = {}
    for key, text in overrides:
        texts.setdefault(key, []).append(text)
    for key, given in texts.items():
        section, name = _holder(config, key)
        section[name] = _read(f"config.{key}", given, section[name])


def _holder(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a key, and the key's last part."""
    holder, parts = config, key.split(".")
    for number, part in enumerate(parts):
        if not isinstance(holder, Mapping) or part not in holder:
            known = f"; wanted one of {', '.join(sorted(holder))}" if isinstance(holder, Mapping) and holder else ""
            raise ValueError(f"config.{'.'.join(parts[: number + 1])}: no such configuration key{known}")
        if number < len(parts) - 1:
            holder = holder[part]
    return holder, parts[-1]


def _read(name: str, texts: Sequence[str | None], old: Any) -> Any:
    if isinstance(old, tuple | list):
        return tuple(item for text in texts for item in _tuple(name, text))
    read, wanted = READERS.get(type(old), (ast.literal_eval, "a Python value"))
    text = "true" if texts[-1] is None and isinstance(old, bool) else texts[-1]
    if text is None:
        raise ValueError(f"{name}: wanted {wanted}, as --{name}=VALUE")
    try:
        return read(text)
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError):
        raise ValueError(f"{name}={text}: wanted {wanted}") from None


def _tuple(name: str, text: str | None) -> tuple[Any, ...]:
    """The items of a Python literal. Any other text is one item; the code that reads the key checks the items."""
    try:
        value = ast.literal_eval(text)
    except ValueError:
        value = text
    except (SyntaxError, TypeError):
        raise ValueError(f'{name}{"" if text is None else f"={text}"}: wanted a tuple, as "(1, 2)"') from None
    return tuple(value) if isinstance(value, tuple | list) else (value,)
