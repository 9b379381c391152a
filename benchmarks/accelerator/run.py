"""Times Marigold on this machine's GPU or TPU, beside diffusers and PyTorch on a GPU. `accelerator.sh` starts it.

Every row of `rows.py` is a process with a time limit. Rows that the remaining time does not allow are left out, with
the reason. DIR/accelerator.json and DIR/accelerator.md are written again after every measurement, so a run that is cut
short leaves what it had. Compiled programs are kept in DIR/programs: a second run starts sooner.
Exit status: 0 measured, even if rows failed; 1 nothing could be measured; 2 wrong usage.
"""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import page  # noqa: E402
import wheels  # noqa: E402
from rows import OURS, ROWS, Row  # noqa: E402

from marigold_jax.runtime import files, terminal  # noqa: E402

POLL = 0.2  # seconds between two looks at what a process has measured
PROBE_LIMIT = 90
PROBE = Row(OURS, "", limit=PROBE_LIMIT, least=0)


def child_environment(row: Row, out: Path, small: bool) -> dict[str, str]:
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": str(out / "programs")}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # several rows run the same program
    env["TF_CPP_MIN_LOG_LEVEL"] = "2"
    env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if small:
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # to compile takes half as long
        env["OMP_NUM_THREADS"] = "1"  # threads that wait for each other cost more than so small networks
    return env | dict(row.env)


def measured(file: Path) -> list[dict[str, Any]]:
    """The whole lines that a process has written so far."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def measure(row: Row, name: str, size: str, out: Path, limit: float) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Runs a row's process. Yields its lines whenever there are new ones, and at the end why it stopped early, or "".

    Args:
        row: what to run.
        name: of its files in `out`.
        size: a key of `networks.SIZES`.
        out: the folder of this run.
        limit: seconds until the process is stopped.
    """
    stem = name.replace(", ", "_").replace(" ", "_")
    file, log = out / "rows" / f"{stem}.jsonl", out / "rows" / f"{stem}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "measure.py"), row.side, row.what, size, str(file)]
    began, seen = time.monotonic(), 0
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(row, out, size == "small"),
            start_new_session=True,
        )
    try:
        while process.poll() is None and time.monotonic() - began < limit:
            time.sleep(POLL)
            if len(lines := measured(file)) > seen:
                seen = len(lines)
                yield lines, ""
        late = process.poll() is None
    finally:
        with contextlib.suppress(ProcessLookupError):  # its compiler's processes too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if late:
        yield measured(file), f"stopped after {limit:.0f} s"
    else:
        yield measured(file), last_line(log) if process.returncode else ""


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a message"]
    return files.printable(lines[-1])[:300]


class Report:
    """What has been measured, in memory and in two files."""

    def __init__(self, out: Path, facts: Mapping[str, Any]):
        self.out, self.facts, self.rows = out, dict(facts), {}
        self.began = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def put(self, name: str, cases: list[dict[str, Any]], note: str = "") -> None:
        self.rows[name] = {"cases": cases, "note": note, "env": dict(ROWS[name].env)}
        values = {**self.facts, "elapsed_s": round(self.elapsed(), 1), "rows": self.rows}
        files.write_json(self.out / "accelerator.json", values)
        files.write(self.out / "accelerator.md", page.markdown(values).encode())


def reason_to_leave_out(row: Row, platform: str, missing: list[str], left: float) -> str:
    if platform not in row.platforms:
        return f"means nothing on a {platform}"
    if row.side != OURS and missing:
        return f"needs {' '.join(missing)}: pip install them, or --install"
    if left < row.least:
        return f"{max(left, 0):.0f} s were left, it takes at least {row.least} s"
    return ""


def run_row(report: Report, name: str, size: str, left: float) -> None:
    row, cases, note = ROWS[name], [], ""
    for lines, note in measure(row, name, size, report.out, min(row.limit, left)):
        cases = [line for line in lines if "device" not in line]
        report.put(name, cases, note)
    errors = [case["error"] for case in cases if "error" in case]
    terminal.say(f"{report.elapsed():5.0f} s  {name}: {note or '; '.join(errors) or 'measured'}")


def probe(out: Path, size: str) -> dict[str, Any]:
    """The device that JAX sees, asked in another process: a TPU belongs to one process at a time."""
    lines, note = [], ""
    for now in measure(PROBE, "device", size, out, PROBE_LIMIT):
        lines, note = now
    if not lines:
        terminal.fail(f"JAX does not start here: {note}; see {out / 'rows' / 'device.log'}")
    return lines[0]["device"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = terminal.Parser(
        "bash benchmarks/accelerator.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("accelerator"), help="folder of the results (default: %(default)s)")
    add("--small", action="store_true", help="tiny networks, on any device, to try the benchmark itself")
    add("--budget", type=float, default=540, help="seconds for everything (default: %(default)s)")
    add("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(map(repr, ROWS))}")
    add("--install", action="store_true", help="pip install what is missing, except JAX and PyTorch")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the process that measures is stopped too
    if arguments.install:
        try:
            wheels.install()
        except subprocess.CalledProcessError as error:
            terminal.fail(f"pip ended with status {error.returncode}")
    if missing := wheels.missing_for_ours():
        terminal.fail(f"missing: {' '.join(missing)}; pip install them, or run again with --install")
    missing, size = wheels.missing_for_peer(), "small" if arguments.small else "full"
    began = time.monotonic()
    device = probe(arguments.out, size)
    if device["platform"] == "cpu" and not arguments.small:
        terminal.fail("wanted a GPU or a TPU, JAX found only the CPU; install its build for yours, or add --small")
    from networks import SIZES

    command = shlex.join(["bash", "benchmarks/accelerator.sh", *(sys.argv[1:] if argv is None else argv)])
    facts = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": command,
        "device": device,
        "versions": wheels.versions(),
        "size": size,
        "picture": SIZES[size].picture,
        "training": SIZES[size].training,
        "budget_s": arguments.budget,
    }
    report = Report(arguments.out, facts)
    report.began = began
    terminal.say(f"{device['kind']}; results in {arguments.out}/accelerator.md")
    for name in arguments.only or ROWS:
        left = arguments.budget - report.elapsed()
        least = ROWS[name]._replace(least=5) if arguments.small else ROWS[name]
        if reason := reason_to_leave_out(least, device["platform"], missing, left):
            report.put(name, [], reason)
            terminal.say(f"{report.elapsed():5.0f} s  {name}: left out, {reason}")
        else:
            run_row(report, name, size, left)
    cases = [case for row in report.rows.values() for case in row["cases"]]
    return 0 if any("seconds" in case or "kernels" in case for case in cases) else 1


if __name__ == "__main__":
    sys.exit(terminal.run(main))
