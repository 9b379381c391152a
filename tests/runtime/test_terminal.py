"""Programs whose streams are closed, or read by nobody, do their work."""

import subprocess
import sys
import threading
import time

import pytest

from marigold_jax.runtime.budget import Budget

LOUD = """
import contextlib, os, sys
from marigold_jax.runtime import terminal

def main():
    with open(sys.argv[1], "w") as file:  # must not take the place of a closed stream
        with contextlib.suppress(OSError):
            os.write(1, b"to nobody"), os.write(2, b"to nobody")
        for _ in range(2000):
            terminal.say("many words, \\udcff, \\x1b[31m" * 10)
        terminal.say("the end", sys.stderr)
        file.write("done")
    return 3

sys.exit(terminal.run(main))
"""


@pytest.mark.parametrize("streams", ["| head -c 1", "2>&1 | head -c 1", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full"])
def test_the_work_is_done_whoever_listens(tmp_path, streams):
    command = f"set -o pipefail; '{sys.executable}' -c \"$LOUD\" {tmp_path / 'file'} {streams}"
    environment = {"LOUD": LOUD, "PYTHONPATH": ":".join(sys.path), "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 3
    assert (tmp_path / "file").read_text() == "done"
    assert done.stderr.replace("to nobody", "") in ("the end\n", "") and "\x1b" not in done.stdout


def test_help_into_a_closed_pipe_is_quiet():
    command = f"set -o pipefail; '{sys.executable}' -m marigold_jax.predict --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_budget_lets_what_is_too_large_go_alone():
    budget, together, most, lock = Budget(10), [], [], threading.Lock()

    def work(amount):
        with budget.holding(amount):
            with lock:
                together.append(amount)
                most.append(list(together))
            time.sleep(0.002)
            with lock:
                together.remove(amount)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in [3, 4, 99, 2, 5, 0, 11, 6] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sum(each) <= 10 or [amount for amount in each if amount] == [max(each)] for each in most)


def test_a_table_of_which_the_beginning_is_read_is_no_error():
    program = "from marigold_jax.runtime import terminal\ndef main(): raise BrokenPipeError\nexit(terminal.run(main))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
