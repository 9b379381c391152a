"""What a training reports: metrics.jsonl, utilisation, and what a resumed run removes of it."""

import json

import jax
import numpy as np
import pytest

from marigold_jax.training import progress


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_utilisation_is_reported_where_the_peak_is_known(tmp_path, monkeypatch):
    for kind, peak in {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "NVIDIA L40S": None,
        "cpu": None,
    }.items():
        assert progress.peak_flops(kind) == peak, kind
    matrix = np.ones((64, 32), np.float32)
    assert progress.flops_counter(jax.numpy.dot)(matrix, matrix.T) == 0  # a CPU
    monkeypatch.setattr(progress, "peak_flops", lambda kind: 1e9)
    assert progress.flops_counter(jax.numpy.dot)(matrix, matrix.T) == 2 * 64 * 64 * 32
    reporter = progress.Progress(tmp_path, 0, 4, samples_per_step=8)
    reporter.record(2, {"loss": float("nan")}, flops_per_step=1e6)
    (line,) = records(tmp_path)
    assert line["loss"] is None
    assert line["mfu"] == pytest.approx(line["samples_per_second"] / 8 * 1e6 / (1e9 * 8), rel=1e-6)


def test_lines_that_will_be_repeated_are_dropped(tmp_path):
    lines = ['{"step": 1}', '{"step": 2}', '{"step": 3}', '{"ste']  # a kill cut the last one short
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    progress.Progress(tmp_path, 2, 4, samples_per_step=1).close()
    assert [line["step"] for line in records(tmp_path)] == [1, 2]


def test_lines_that_are_no_records_are_dropped_and_said(tmp_path, capsys):
    good, huge = [b'{"step": 1, "loss": 2.0}', b'{"step": 2}'], b"[" * 100_000
    bad = [b"{", b"null", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b"\xff\xfe", b"", b"x" * 9, huge]
    content = b"\n".join([good[0], *bad, good[1]])  # and the last is not ended
    (tmp_path / "metrics.jsonl").write_bytes(content)
    reporter = progress.Progress(tmp_path, 2, 4, samples_per_step=1)
    reporter.record(3, {"loss": 1.0})
    reporter.close()
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3]
    assert f"dropping {len(bad)} line(s) that cannot be read as records: 2, 3," in capsys.readouterr().out


def test_a_step_that_still_runs_is_waited_for_before_the_clock_stops(tmp_path, monkeypatch):
    """A step of ten seconds, of which the host waits for none; then a validation of a hundred."""
    now, running = [0.0], [10.0]

    def wait(pending):
        now[0] += running.pop()

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress.jax, "block_until_ready", wait)
    reporter = progress.Progress(tmp_path, 0, 4, samples_per_step=8)
    with reporter.paused("metrics"):
        now[0] += 100
    reporter.record(1, {})
    assert records(tmp_path)[0]["samples_per_second"] == pytest.approx(8 / 10)


def test_a_disk_that_fills_tears_no_line_in_silence(tmp_path, monkeypatch):
    reporter = progress.Progress(tmp_path, 0, 4, samples_per_step=1)

    class Full:
        """Takes five bytes, and no more, as a disk does that has five left."""

        written, left = b"", 5

        def write(self, content):
            if not self.left:
                raise OSError(28, "No space left on device")
            self.written, self.left = bytes(content[: self.left]), 0
            return len(self.written)

    monkeypatch.setattr(reporter, "_file", Full())
    with pytest.raises(OSError, match="No space left"):
        reporter.record(1, {})
