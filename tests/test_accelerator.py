"""`benchmarks/accelerator.sh`: that it runs from end to end, and what it does with rows that fail or have no time."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FOLDER = BENCHMARKS / "accelerator"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    try:
        return runpy.run_path(str(FOLDER / f"{name}.py"))
    finally:
        for other in ("networks", "page", "rows", "timing", "wheels"):
            sys.modules.pop(other, None)


def run(out, *flags):
    env = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = ["bash", str(BENCHMARKS / "accelerator.sh"), "--out", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


@pytest.mark.slow
def test_two_rows_from_end_to_end(tmp_path):
    done = run(tmp_path, "--small", "--only", "latency", "profile")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "accelerator.json").read_text())
    assert [case["steps"] for case in report["rows"]["latency"]["cases"]] == [1, 4]
    assert all(case["seconds"] > 0 and case["peak_bytes"] > 0 for case in report["rows"]["latency"]["cases"])
    assert report["rows"]["profile"]["cases"][0]["kernels"][0]["ms"] > 0
    page = (tmp_path / "accelerator.md").read_text()
    assert "| 4 steps, batch 1 | ours |" in page and "## Profile" in page and "not reached" in page


@pytest.mark.slow
def test_a_row_without_time_is_left_out_and_says_so(tmp_path):
    done = run(tmp_path, "--small", "--budget", "1", "--only", "ensemble")
    assert done.returncode == 1 and "it takes at least" in done.stdout
    assert "- ensemble: 0 s were left" in (tmp_path / "accelerator.md").read_text()


@pytest.mark.slow
def test_without_an_accelerator_only_small_runs(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "add --small" in done.stderr


def test_a_failure_is_a_result_of_one_line(monkeypatch):
    timing = load("timing", monkeypatch)

    def fails():
        raise RuntimeError("long story\nRESOURCE_EXHAUSTED: 5 GiB\nmore")

    case = timing["attempt"]({"batch": 8}, fails)
    assert case == {"batch": 8, "error": "RuntimeError: RESOURCE_EXHAUSTED: 5 GiB"}
    good = {"batch": 4, "seconds": 1.0}
    assert list(timing["first_that_fits"]([case, good, {"batch": 2}])) == [case, good]
    broken = {"batch": 8, "error": "ValueError: wrong"}
    assert list(timing["first_that_fits"]([broken, good])) == [broken]


def test_batches_grow_until_they_no_longer_gain(monkeypatch):
    cases = [{"batch": batch, "seconds": seconds} for batch, seconds in ((1, 1.0), (2, 1.5), (4, 2.95), (8, 5.0))]
    assert list(load("timing", monkeypatch)["while_it_gains"](cases)) == cases[:3]


def test_ratios_are_of_equal_cases_and_peers_share_our_operations(monkeypatch):
    ours = {"steps": 1, "members": 1, "batch": 1, "seconds": 0.1, "first_s": 9.0, "peak_bytes": 2**30}
    theirs = ours | {"seconds": 0.25}
    rows = {
        "latency": {"cases": [ours | {"operations": 1e12}], "note": ""},
        "latency, diffusers": {"cases": [theirs, theirs | {"steps": 4}], "note": ""},
        "throughput": {"cases": [], "note": "stopped after 9 s"},
    }
    report = {"device": {"kind": "X", "peak_flops": 1e14}, "picture": (8, 9), "training": (8, 9), "size": "full"}
    report |= {"date": "now", "command": "c", "elapsed_s": 1, "budget_s": 2, "versions": {}, "rows": rows}
    page = load("page", monkeypatch)["markdown"](report)
    assert "| 1 step, batch 1 | ours | 0.1 | 10 | 10.0% | 1.00 | 9.0 | 2.50 |" in page
    assert "| 1 step, batch 1 | diffusers | 0.25 | 4 | 4.0% |" in page
    assert "| 4 steps, batch 1 | diffusers | 0.25 | 4 |  |" in page
    assert "- throughput: stopped after 9 s" in page


def test_a_trace_of_a_gpu_is_read_by_kernel(tmp_path, monkeypatch):
    import gzip

    names = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "Stream #7(Compute)"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "XLA Modules"}},
        {"ph": "M", "name": "thread_name", "pid": 2, "tid": 1, "args": {"name": "tf_XLAEigen/1"}},
    ]
    spans = [("conv", 1, 1, 30), ("add", 1, 1, 10), ("conv", 1, 1, 60), ("module", 1, 2, 500), ("host", 2, 1, 500)]
    spans = [{"ph": "X", "name": n, "pid": p, "tid": t, "dur": us} for n, p, t, us in spans]
    with gzip.open(tmp_path / "a.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": names + spans}, file)
    found = load("trace_file", monkeypatch)["dearest"](tmp_path)
    assert found == [
        {"name": "conv", "ms": 0.09, "runs": 2, "share": 0.9},
        {"name": "add", "ms": 0.01, "runs": 1, "share": 0.1},
    ]
