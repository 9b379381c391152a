"""What a program says of itself, and when it cannot go on: one line, and status 1 (failed) or 2 (wrong usage)."""

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags, logging

from marigold_jax.runtime import terminal

HELP = {"-h", "--h", "-help", "--help", "--helpshort", "--helpfull"}


def parse(
    argv: Sequence[str], about: str, wanted: Mapping[str, str], further: Mapping[str, str] | None = None
) -> list[str]:
    """Reads flags and configuration, or ends the program: with help, or with one line about what is wrong.

    `about`: what the program says of itself. `wanted`: the flags that must be given, each with what it is; `further`:
    those that need not be.
    """
    if HELP & set(argv[1:]):
        explain(about, wanted, further or {})
        sys.exit(0)
    file = _value_of("config", argv)
    logging.set_verbosity(logging.ERROR)  # a complaint of a library beside the one line would hide it
    try:
        rest = flags.FLAGS(list(argv))
        for name, what in wanted.items():
            if not flags.FLAGS[name].present or flags.FLAGS[name].value == "":
                _missing(name, what)
        if flags.FLAGS.config is None:
            fail(f"--config {file}: get_config returned nothing, wanted a ConfigDict", 2)
        if len(rest) > 1:
            fail(f"{rest[1]}: wanted flags alone, each as --name=value; --help tells more", 2)
        flags.FLAGS.config.keys()  # that a file is missing is told when something is asked of it
        return rest
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and not file:  # known once there is a file
            _missing("config", wanted["config"])
        fail(str(error), 2)
    except flags.Error as error:
        fail(_in_words(error, file), 2)
    except OSError as error:  # the last line has the file and the reason
        fail(str(error).splitlines()[-1].strip(), 2)
    except Exception as error:  # a configuration is a program, and may fail in any way
        fail(_in_words(error, file), 2)


def explain(about: str, wanted: Mapping[str, str], further: Mapping[str, str]) -> None:
    rows = [(f"--{name}", f"{what} (must be given)") for name, what in wanted.items()]
    rows += [(f"--{name}", what) for name, what in further.items()]
    rows += [("--config.SECTION.KEY=VALUE", "another value for one key of the configuration")]
    width = max(len(name) for name, _ in rows) + 2
    print(about.strip(), "flags:", *(f"  {name:{width}}{what}" for name, what in rows), sep="\n")


def fail(message: str, status: int = 1) -> NoReturn:
    terminal.say(f"error: {message}", sys.stderr)
    sys.exit(status)


def _missing(name: str, what: str) -> NoReturn:
    fail(f"--{name} is missing: wanted {what}; --help tells more", 2)


def _value_of(name: str, argv: Sequence[str]) -> str:
    """What `--name VALUE` or `--name=VALUE` gives, as far as that can be told without parsing."""
    for flag, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        for dashes in ("--", "-"):
            if flag == f"{dashes}{name}":
                return following
            if flag.startswith(f"{dashes}{name}="):
                return flag.partition("=")[2]
    return ""


def _in_words(error: Exception, file: str) -> str:
    """One line about what a configuration, or a change to it, does not allow."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if "get_config" in lines[-1] or (not file.endswith(".py") and isinstance(error, ImportError | AttributeError)):
        return f"--config {file}: wanted a Python file with a function get_config, which returns the configuration"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if file and Path(one.filename) == Path(file)]
    frames = frames or [one for one in traceback.extract_tb(error.__traceback__) if one.filename.endswith(file or " ")]
    if frames:
        return f"{file}, line {frames[-1].lineno}: {type(error).__name__}: {lines[-1]}"
    if "Error whilst parsing config file" in lines[0]:  # with a whole traceback behind it
        return f"{file}: {lines[-1]}"
    if isinstance(error, AttributeError | KeyError):
        key = re.search(r"[A-Za-z_]\w*", lines[0])
        return f"no such configuration key: {key[0] if key else lines[0]}; the configuration file lists them"
    return lines[0]
