"""What a program says when it cannot go on: one line, and the exit status 1 (failed) or 2 (wrong usage)."""

import re
import sys
from typing import NoReturn

from absl import flags


def parse(argv: list[str]) -> list[str]:
    """Flags and configuration, or one line about what is wrong with them."""
    try:
        rest = flags.FLAGS(argv)
        getattr(flags.FLAGS.config, "is_locked", None)  # that a file is missing is told when something is asked of it
        return rest
    except (AttributeError, KeyError) as error:
        fail(f"no such configuration key: {re.search('[a-z_]+', str(error))[0]}; the configuration file lists them", 2)
    except flags.Error as error:
        fail(str(error).splitlines()[0], 2)
    except OSError as error:  # the last line has the file and the reason
        fail(str(error).splitlines()[-1].strip(), 2)


def fail(message: str, status: int = 1) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
