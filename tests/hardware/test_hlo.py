"""What is read from the text of compiled programs: loops, lines, kinds, bytes and operations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from marigold_jax.hardware import forecast, gpu_kernels, tpu_clock
from marigold_jax.hardware.chips import CHIPS
from marigold_jax.hardware.executed import executed
from marigold_jax.hardware.hlo import parse
from marigold_jax.hardware.hlo_loops import times
from marigold_jax.hardware.hlo_shapes import shapes

HERE = Path(__file__).parent
TPU, GPU = (HERE / "tpu.hlo").read_text(), (HERE / "gpu.hlo").read_text()
ACTIVATION, KERNEL, SLICE = 4 * 8 * 8 * 128 * 2, 9 * 128 * 128 * 2, 128 * 128 * 2


def test_cycles_bytes_and_lines_of_a_tpu_program():
    rows = {row.name: row for row in tpu_clock.instructions(TPU)}
    # The pair of copy-start and copy-done is one row; what is in a fusion belongs to it.
    assert rows.keys() == {"copy-done", "fusion.1", "flash.1", "copy.1", "slice_fusion", "next", "less"}
    fusion = rows["fusion.1"]
    assert (fusion.kind, fusion.cycles, fusion.times) == ("convolution", 7000, 1)
    assert (fusion.hbm, fusion.on_chip) == (KERNEL, 2 * ACTIVATION)
    assert fusion.operations == 2 * (4 * 8 * 8 * 128) * (9 * 128)
    assert (fusion.source, fusion.op_name) == ("models/layers.py:75", "conv_general_dilated")  # flax is not ours
    copy = rows["copy-done"]
    assert (copy.hbm, copy.on_chip, copy.cycles) == (ACTIVATION, ACTIVATION, None)
    # Of the stacked weights, an iteration reads its own.
    assert (rows["slice_fusion"].times, rows["slice_fusion"].hbm) == (5, SLICE)
    flash, chip = rows["flash.1"], CHIPS["TPU v5 lite"]
    assert (flash.kind, flash.cycles, flash.operations) == ("attention", None, 2 * 2 * (4 * 8) * 8 * 8 * 128)
    assert tpu_clock.seconds(flash, chip) == flash.operations / 197e12
    assert tpu_clock.seconds(rows["slice_fusion"], chip) == pytest.approx(5 * 100 / 1.5e9)
    # What the compiler adds comes from what it works on.
    assert (rows["copy.1"].kind, rows["copy.1"].source) == ("transpose/copy", "models/layers.py:75")


def test_an_estimate_that_fails_is_no_number_of_cycles():
    rows = tpu_clock.instructions(TPU.replace('"estimated_cycles":"30"', f'"estimated_cycles":"{2**63 - 1}"'))
    copy = next(row for row in rows if row.name == "copy.1")
    assert not tpu_clock.clocked(copy) and forecast.cycles(rows) == 7000 + 5 * 100
    assert tpu_clock.seconds(copy, CHIPS["TPU v5 lite"]) == copy.hbm / 819e9


@pytest.mark.parametrize(("step", "wanted"), [("1", 5), ("2", 3)])
def test_lengths_of_loops_without_a_trip_count(step, wanted):
    assert times(parse(TPU.replace("constant(1)", f"constant({step})")))["body"] == wanted
    backwards = TPU.replace("constant(1)", "constant(-1)").replace("constant(5)", "constant(-4)").replace("LT", "GE")
    assert times(parse(backwards))["body"] == 5  # 0, -1, -2, -3, -4
    fused = (
        (HERE / "tpu.hlo")
        .read_text()
        .replace(
            "ROOT %less = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT",
            "ROOT %less = pred[]{:T(512)} fusion(%counter.1, %limit), kind=kLoop, calls=%fused_compare",
        )
    )
    compare = """%fused_compare (p0: s32[], p1: s32[]) -> pred[] {
  %p0 = s32[]{:T(128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %less.1 = pred[]{:T(512)} compare(%p0, %p1), direction=LT
}

ENTRY"""
    assert times(parse(fused.replace("ENTRY", compare)))["body"] == 5
    # A limit that is part of the loop's state, and one that nobody knows.
    state = TPU.replace("%limit = s32[]{:T(128)} constant(5)", "%limit = s32[]{:T(128)} LIMIT")
    end = "%zero = s32[]{:T(128)} constant(0)\n  %end = s32[]{:T(128)} constant(3)"
    carried = state.replace("LIMIT", "get-tuple-element(%state.1), index=2").replace("(%zero, %w)", "(%zero, %w, %end)")
    assert times(parse(carried.replace("%zero = s32[]{:T(128)} constant(0)", end)))["body"] == 3
    assert times(parse(state.replace("LIMIT", "custom-call()")))["body"] == 1


def test_scans_are_counted_as_often_as_they_run():
    def scan(x):
        return jax.lax.scan(lambda carry, _: (jnp.sin(carry @ carry), None), x, length=7)[0]

    text = jax.jit(scan).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()
    assert sum(row.times * row.operations for row in executed(text)) == 7 * 2 * 64**3


def test_kernels_of_a_gpu_program():
    rows = {row.name: row for row in gpu_kernels.kernels(GPU)}
    assert {name: (row.kind, row.times) for name, row in rows.items()} == {
        "conv.1": ("convolution", 1),
        "conv.2": ("convolution", 1),
        "cublas.1": ("matrix product", 1),
        "fmha.1": ("attention", 1),
        "gemm_fusion": ("matrix product", 5),
        "update_fusion": ("transpose/copy", 5),
        "gather-done.1": ("collective", 1),
        "reduce_fusion": ("reduction", 1),
    }
    once, product = 2 * (4 * 8 * 8 * 128) * (9 * 128), 2 * 256 * 128 * 128
    assert [rows[name].operations for name in ("conv.1", "conv.2")] == [once, once]
    assert [rows[name].operations for name in ("gemm_fusion", "cublas.1")] == [product, product]
    assert rows["conv.2"].op_name == "params['a.kernel']"
    assert rows["fmha.1"].operations == 2 * 2 * 4 * 2 * 64 * 64 * 64
    assert rows["conv.1"].hbm == 2 * ACTIVATION + KERNEL and rows["conv.1"].on_chip == 0
    assert rows["reduce_fusion"].hbm == ACTIVATION + 4 * 4 * 128
    assert rows["update_fusion"].hbm == 2 * ACTIVATION + 4  # the other four fifths stay as they are
    assert rows["gather-done.1"].hbm == 4 * (4 + 32) * 128
    chip = CHIPS["H100"]
    assert gpu_kernels.seconds(rows["gemm_fusion"], chip) == 5 * (rows["gemm_fusion"].hbm / 3352e9 + 2.5e-6)


def test_bytes_with_the_padding_of_tiles():
    padded, short, pair = shapes("(bf16[2,5,3]{2,1,0:T(8,128)(2,1)}, f32[2,130]{0,1:T(2,128)S(1)}, u32[]{:S(2)})")
    assert (padded.bytes, padded.stored, padded.space) == (60, 2 * 8 * 128 * 2, 0)
    assert (short.stored, short.space) == (4 * 128 * 130, 1)  # the first axis varies fastest
    assert (pair.stored, pair.space) == (4, 2)
    assert [shape.bytes for shape in shapes("(pred[7]{0}, s4[6]{0}, token[])")] == [7, 3, 0]
