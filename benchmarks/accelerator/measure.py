"""One measurement in a process of its own: writes a JSON line for each case to a file. Started by `run.py`.

python measure.py SIDE WHAT SIZE FILE
"""

import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(side: str, what: str, size: str, file: str) -> None:
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    from networks import SIZES

    module = importlib.import_module(side)
    with open(file, "a", buffering=1) as lines:
        lines.write(json.dumps({"device": module.device()}) + "\n")
        if what:
            for case in getattr(module, what)(SIZES[size]):
                lines.write(json.dumps(case) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
