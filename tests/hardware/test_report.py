"""What is printed about a compiled program, how long it is said to take, and two of them side by side."""

import json
from pathlib import Path

import jax
import pytest

from marigold_jax.hardware import comparison, compiled, forecast
from marigold_jax.hardware.chips import CHIPS
from marigold_jax.hardware.compiled import Compiled
from marigold_jax.hardware.executed import executed
from marigold_jax.hardware.report import report, timing
from marigold_jax.hardware.roofline import Work

HERE = Path(__file__).parent
TPU, GPU = CHIPS["TPU v5 lite"], CHIPS["H100"]


def program(file, name="gradient", samples=4):
    rows = executed((HERE / file).read_text())
    work = Work(1.97e8, 1.97e8, sum(row.times * row.hbm for row in rows), 0.0)
    return Compiled(name, samples, 1.0, {"arguments": 2**30, "temporaries": 0}, work, [], rows)


def test_a_program_by_the_clock_of_a_tpu():
    one = program("tpu.hlo")
    attention = 2 * 2 * (4 * 8) * 8 * 8 * 128
    seconds = (7000 + 5 * 100 + 30) / 1.5e9 + attention / 197e12
    assert sum(forecast.seconds(row, TPU) for row in one.executed) == pytest.approx(seconds)
    assert forecast.cycles(one.executed) == 7530
    assert [(share.name[0], share.cycles) for share in forecast.by_kind(one.executed, TPU)][:2] == [
        ("convolution", 7000),
        ("transpose/copy", 530),
    ]
    text = report(one, TPU)
    assert "bytes a chip   1.00 GiB of 16.00 GiB (6.2%): arguments 1.00 GiB" in text
    assert "0.00753 M cycles at 1.5 GHz" in text and f"MFU {1.97e8 / 197e12 / seconds:.1%}" in text
    assert "inside the chip" in text and "attention, not clocked, at peak" in text
    assert "convolution, bf16[4,8,8,128], models/layers.py:75, conv_general_dilated" in text
    assert "by the clock" in timing("a step", [(one, 2)], TPU, 8)


def test_a_program_by_the_kernels_of_a_gpu():
    one = program("gpu.hlo")
    text = report(one, GPU)
    assert "kernels        16; " in text and "inside the chip" not in text
    assert len(forecast.dearest(one.executed, GPU, 3)) == 3
    assert f"{8 / (2 * sum(forecast.seconds(row, GPU) for row in one.executed)):.4g} samples/s" in timing(
        "a step", [(one, 2)], GPU, 8
    )
    assert "kernels" not in report(one, None)  # an unknown chip


def test_matrix_products_that_have_no_kernel_are_left_to_cublas(capsys):
    class Lowered:
        def __init__(self, message):
            self.message = message

        def compile(self, compiler_options=None):
            if not compiler_options:
                raise jax.errors.JaxRuntimeError(self.message)
            return compiler_options

    odd = Lowered("INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.1")
    assert compiled._compile(odd) == {"xla_gpu_enable_triton_gemm": False}
    assert "compiling again, with cuBLAS" in capsys.readouterr().out
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        compiled._compile(Lowered("out of memory"))


def test_two_runs_side_by_side():
    before = {"target": "gpu:h100", "programs": [comparison.figures(program("gpu.hlo"), GPU)]}
    loaded = json.loads(json.dumps(before))
    now = [comparison.figures(one, TPU) for one in (program("tpu.hlo", samples=8), program("tpu.hlo", "update"))]
    text = comparison.compare(loaded, {"target": "tpu:v5e-1", "programs": now})
    assert text.startswith("gpu:h100 before, tpu:v5e-1 now\ngradient\n") and "update" not in text
    rows = {line.strip().partition("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["samples"][-3:] == ["4", "8", "2.000"]
    assert rows["seconds"][-1] == f"{now[0]['seconds'] / before['programs'][0]['seconds']:.3f}"
    assert rows["a sample"][-1] == f"{now[0]['seconds'] / before['programs'][0]['seconds'] / 2:.3f}"
    assert rows["convolution (2, 1)"] and rows["cycles"][-1] == "-"
    other = {"target": "cpu:1", "programs": [{"name": "prediction of 4", "samples": 4}]}
    assert "no program is in both" in comparison.compare(before, other)
    assert comparison.is_of_aot(loaded)
    for values in ({}, {"target": "cpu:1"}, {"target": "cpu:1", "programs": {}}, {"target": "cpu:1", "programs": [{}]}):
        assert not comparison.is_of_aot(values)
