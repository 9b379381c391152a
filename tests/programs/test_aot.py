"""What a run would need: the table of chips, the arithmetic of the roofline, what is counted, the whole program."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.sharding import PartitionSpec
from small_training import ROOT, small_config

from marigold_jax import aot
from marigold_jax.hardware import gpus, roofline, slices
from marigold_jax.hardware.chips import CHIPS, Chip, chip_of, peak_flops
from marigold_jax.hardware.collectives import collectives
from marigold_jax.hardware.operations import flops
from marigold_jax.runtime import sharding
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.weights import model_folder
from marigold_jax.weights.diffusers_folder import shapes_of
from marigold_jax.weights.hub import SHIPPED


def shape(*sides, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(sides, dtype, sharding=sharding)


# ---------------------------------------------------------------------------------------------------------------- chips


def test_slices_are_named_as_they_are_rented():
    for name, (generation, topology) in slices.SLICES.items():
        assert slices.parse(f"tpu:{name}") == (generation, topology)
        sides = [int(side) for side in topology.split("x")]
        assert len(sides) == (3 if generation in ("v4", "v5p") else 2)
        chips, cores = jnp.prod(jnp.array(sides)), 2 if generation in ("v4", "v5p") else 1
        assert name == f"{generation}-{chips * cores}"
    assert slices.parse("tpu:v6e:4x8") == ("v6e", "4x8")
    assert slices.parse("gpu:l4") == ("l4", "1") and slices.parse("gpu:h100:8") == ("h100", "8")
    assert slices.parse("cpu:8") == ("cpu", "8") and slices.parse("here") == ("here", "")
    for wrong in ("v5e-8", "tpu:v5e-7", "tpu:v9:2x2", "tpu:v5e:2by4", "cpu:0", "gpu:8", "gpu:k80", "gpu:h100:0"):
        with pytest.raises(ValueError, match=r"wanted tpu:NAME .*v4-8, .*gpu:NAME .*h100, .*cpu:8 .*or here for"):
            slices.parse(wrong)


def test_chips_are_known_by_what_they_call_themselves():
    for chip in CHIPS.values():
        # A chip that loads two operands for each product would be bound by memory: no unit is off by a thousand.
        assert 50 < chip.peak_flops / chip.bandwidth < 1000 and 2 < chip.bandwidth / chip.links < 100
    for kind, (memory, bandwidth) in {
        "NVIDIA A100-SXM4-80GB": (80, 2039e9),
        "NVIDIA A100-SXM4-40GB": (40, 1555e9),
        "NVIDIA H100 80GB HBM3": (80, 3352e9),
        "TPU v5": (95, 2765e9),
        "TPU v5 lite": (16, 819e9),
    }.items():
        assert (chip_of(kind).memory, chip_of(kind).bandwidth) == (memory * 2**30, bandwidth), kind
        assert peak_flops(kind) == chip_of(kind).peak_flops
    assert chip_of("NVIDIA L40S") is peak_flops("cpu") is None


def test_here_has_the_memory_that_jax_was_given():
    class Device:
        device_kind, statistics = "NVIDIA H200", {"bytes_limit": 100 * 10**9}

        def memory_stats(self):
            return self.statistics

    device = Device()
    assert slices.chip("here", device).memory == 100 * 10**9
    device.statistics = None
    assert slices.chip("here", device) == slices.chip("tpu:v5e-8", device) == CHIPS["H200"]
    assert slices.devices("here") == jax.devices() and slices.chip("here", jax.devices()[0]) is None


def test_without_libtpu_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ModuleNotFoundError, match=r"libtpu, .* is not installed: pip install -e '.\[tpu\]'"):
        slices.devices("tpu:v5e-8")


def test_gpus_are_chips_that_are_known():
    for gpu in gpus.GPUS.values():
        chip = chip_of(gpu.kind)
        # Multiplications and additions of the tensor cores per clock: 512 per core since Ampere, 1024 on Hopper, at
        # least half of that on GPUs for desktops.
        assert 500 < chip.peak_flops / (gpu.cores * gpu.clock * 1e9) < 5000
        assert f"memory_bandwidth: {int(chip.bandwidth)}" in gpus._target_config(gpu)


def test_the_clocks_of_tpus_belong_to_their_peaks():
    for name, units in {"TPU v4": 8, "TPU v5 lite": 4, "TPU v5": 8, "TPU v6 lite": 16}.items():
        assert CHIPS[name].clock == pytest.approx(CHIPS[name].peak_flops / (2 * units * 128**2), rel=0.003)


def test_without_the_plugin_for_gpus_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"for CUDA, .* is not installed: pip install -e '.\[cuda\]'"):
        slices.devices("gpu:h100")


# ------------------------------------------------------------------------------------------------------------- roofline


def test_roofline():
    work = roofline.Work(flops=6e12, useful=4e12, memory=1e9, sent=1e8).times(2) + roofline.Work(0, 0, 1e9, 3e8)
    assert work == (12e12, 8e12, 3e9, 5e8)
    found = roofline.estimate(work, Chip(2**34, peak_flops=1e14, bandwidth=1e12, links=1e11))
    assert (found.compute, found.memory, found.links) == pytest.approx((0.12, 0.003, 0.005))
    assert (found.least, found.most, found.bound) == pytest.approx((0.12, 0.128, "compute"), abs=1e-12)
    assert found.mfu == pytest.approx(8e12 / 1e14 / 0.12)
    assert found.mfu_without_overlap == pytest.approx(8e12 / 1e14 / 0.128)
    assert roofline.estimate(work, Chip(2**34, 1e15, 1e10, 1e11)).bound == "memory"
    assert roofline.estimate(work, Chip(2**34, 1e15, 1e12, 1e9)).bound == "links"


def test_arithmetic_is_counted_as_by_hand():
    a, b = shape(3, 4), shape(4, 5)
    assert flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5
    assert flops(jax.jit(lambda a, b: a @ b), a, b) == 2 * 3 * 4 * 5
    assert flops(lambda x: jax.lax.map(lambda y: y @ y, x), shape(7, 4, 4)) == 7 * 2 * 4**3
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), shape(4, 4)) == 4 * 4**3

    def convolve(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)

    x, kernel = shape(2, 8, 8, 3), shape(3, 3, 3, 7)
    once = 2 * (2 * 4 * 4 * 7) * (3 * 3 * 3)
    assert flops(convolve, x, kernel) == once
    both = jax.grad(lambda x, kernel: (convolve(x, kernel) ** 2).sum(), (0, 1))
    assert flops(both, x, kernel) == 3 * once

    def block(x):
        return jnp.sin(x @ x) @ x

    plain, again = (jax.grad(lambda x, f=f: f(x).sum()) for f in (block, jax.checkpoint(block)))
    assert flops(again, shape(4, 4)) == flops(plain, shape(4, 4)) + 2 * 4**3  # what sin needs is computed once more


def test_kernels_and_the_parts_of_devices_are_counted():
    x = shape(8, 3, 1024, 64)  # two products of logits and values
    wanted = 2 * 2 * 8 * 3 * 1024 * 1024 * 64
    assert flops(flash_attention.flash_attention, x, x, x) == wanted
    layout = Layout(make_mesh(2))
    split = PartitionSpec(("data", "fsdp"))
    kernel = jax.shard_map(
        flash_attention.flash_attention, mesh=layout.mesh, in_specs=(split,) * 3, out_specs=split, check_vma=False
    )
    assert flops(kernel, x, x, x) == wanted


# ---------------------------------------------------------------------------------------------------------- collectives


def test_collectives_of_a_compiled_program():
    layout = Layout(make_mesh(8), (("", "fsdp"),))
    split, whole = layout.sharding("", (8, 2**16)), layout.replicated
    assert split.spec == PartitionSpec(None, "fsdp")

    def program(x, batch):
        def once(total, _):
            # Known to all only after a sum over devices.
            return jnp.sin(total + jnp.sum(batch, axis=0)), None

        total, _ = jax.lax.scan(once, jnp.zeros(128), length=5)
        return jax.lax.with_sharding_constraint(x, whole), total

    arguments = shape(8, 2**16, sharding=split), shape(16, 128, sharding=layout.batch)
    text = jax.jit(program, out_shardings=whole).lower(*arguments).compile().as_text()
    rows = {row.kind: row for row in collectives(text, 8)}
    assert rows.keys() == {"all-gather", "all-reduce"}
    size = 4 * 8 * 2**16
    assert rows["all-gather"] == ("all-gather", 1, size, size * 7 / 8)
    # The sum does not depend on the loop; whether it is taken out of it is the compiler's affair.
    count = rows["all-reduce"].count
    assert count in (1, 5)
    assert rows["all-reduce"] == ("all-reduce", count, count * 4 * 128, count * 4 * 128 * 2 * 7 / 8)


HLO = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused (p: bf16[8,4]) -> bf16[2,4] {
  ROOT %reduce-scatter.1 = bf16[2,4]{1,0:T(8,128)(2,1)} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%sum
}

%early.1 (p: bf16[3,2]) -> bf16[3,8] {
  %all-gather.1 = bf16[3,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
}

%early.2 (p: bf16[3,2]) -> bf16[3,8] {
  %all-gather.2 = bf16[3,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
}

%body (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %all-reduce.7 = (f32[16]{0}, f32[4]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %fusion.1 = bf16[2,4]{1,0} fusion(%z), kind=kCustom, calls=%fused
}

%condition (t: (s32[], f32[16])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[2,8]) -> f32[16,8] {
  %ag = (f32[2,8]{1,0}, f32[16,8]{1,0:T(8,128)S(1)}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %while.3 = (s32[], f32[16]{0}) while(%t), condition=%condition, body=%body, backend_config={TRIPS}
  %fusion.2 = bf16[3,8]{1,0} fusion(%z), kind=kCustom, calls=%early.1
  %fusion.3 = bf16[3,8]{1,0} fusion(%z), kind=kCustom, calls=%early.2
  %permute = pred[3]{0} collective-permute(%q), source_target_pairs={{0,1},{1,0}}
  ROOT %done = f32[16,8]{1,0} all-gather-done(%ag)
}
""".replace("TRIPS", '"known_trip_count":{"n":"10"}')


def test_collectives_in_loops_in_fusions_and_begun_early():
    assert [tuple(row) for row in collectives(HLO, 8)] == [
        ("all-reduce", 10, 10 * 80, 10 * 80 * 2 * 1 / 2),
        ("all-gather", 2, 512 + 48, 512 * 7 / 8 + 48 * 3 / 4),  # one of them spread over two fusions
        ("reduce-scatter", 10, 10 * 16, 10 * 16 * 3),
        ("collective-permute", 1, 3, 3),
    ]


# -------------------------------------------------------------------------------------------------------- whole program


@pytest.mark.slow
def test_what_a_small_training_and_prediction_need(monkeypatch, capsys):
    chip = Chip(2**30, 1e12, 1e11, 1e10)
    monkeypatch.setattr(slices, "devices", lambda target: jax.devices()[:2])
    monkeypatch.setattr(slices, "chip", lambda target, device: chip)
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2**12)
    config = small_config(data__accumulation=2, run__fsdp=2, optim__ema_decay=0.0)
    reports = {}
    monkeypatch.setattr(
        aot,
        "report",
        lambda program, chip, original=aot.report: reports.update({program.name: program}) or original(program, chip),
    )
    figures = list(aot.run(config, "cpu:2", "both", aot.Prediction("float32", batch_size=2)))
    out = capsys.readouterr().out
    assert "cpu:2: 2 x cpu (2)" in out and "roofline: operations / peak" in out
    assert "train: 2 x 8 images of 16x24 per step" in out and "a prediction: compute" in out
    gradient, update, prediction = reports.values()
    assert [one["samples"] for one in figures] == [8, 16, 2] and "prediction of 2 x" in figures[2]["name"]
    assert figures[0]["seconds"] > figures[2]["seconds"] > 0
    sent = {row.kind for row in gradient.collectives}
    assert {"all-gather", "all-reduce"} <= sent and not prediction.collectives
    # The same lies on a chip all the time: the update reads moments, and the gradient pictures and the frozen VAE.
    lying = [program.bytes["arguments"] + program.bytes["beside"] for program in (gradient, update)]
    assert lying[0] == lying[1] and gradient.bytes["beside"] > 2 / 5 * lying[0]
    assert gradient.work.flops == gradient.work.useful > 3 * prediction.work.flops / 4 > 0
    assert f"of 1.00 GiB ({sum(gradient.bytes.values()) / chip.memory:.1%})" in out


@pytest.mark.slow
def test_stored_latents_leave_the_vae_out():
    chip, config = jax.devices()[:1], small_config(run__latents="float32")
    gradient, update = aot.train(config, chip)
    encoding, _ = aot.train(small_config(), chip)
    assert 0 < gradient.work.useful < encoding.work.useful
    assert gradient.bytes["arguments"] < encoding.bytes["arguments"]
    assert gradient.bytes["arguments"] + gradient.bytes["beside"] == update.bytes["arguments"] + update.bytes["beside"]
    with pytest.raises(ValueError, match="the objective end_to_end needs images"):
        next(aot.train(small_config({"name": "end_to_end", "prompt_length": 2}, run__latents="float32"), chip))


@pytest.mark.slow
def test_shapes_are_those_of_the_weights():
    shapes, loaded = shapes_of(SHIPPED / "marigold-rooms"), model_folder.load(SHIPPED / "marigold-rooms")
    for name in ("unet", "vae"):
        ours, theirs = getattr(shapes, name), getattr(loaded, name)
        assert ours.structure == theirs.structure
        assert {path: x.shape for path, x in ours.params.items()} == {
            path: x.shape for path, x in theirs.params.items()
        }
    count = sum(x.size for part in ("unet", "vae") for x in getattr(shapes_of(None), part).params.values())
    assert count == 865_922_244 + 83_653_863  # of Stable Diffusion 2, its UNet widened


def test_what_does_not_fit_the_chips_costs_one_line():
    command = [sys.executable, "-m", "marigold_jax.aot", "--config", "configs/quickstart.py", "--target", "cpu:3"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("cpu:3: 3 x cpu (3)")
    assert done.stderr == "error: config.data.batch_size=16: wanted a multiple of the 3 chips\n"


def test_wrong_sizes_cost_one_line(capsys):
    for wrong in (["--batch_size", "-1"], ["--processing_res", "100"], ["--processing_res", "0"]):
        with pytest.raises(SystemExit, match="2"):
            aot.parse(["--config", "configs/quickstart.py", "--target", "here", *wrong])
        assert "a multiple of 8 from 64 up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--diff", "nowhere.json"], "nowhere.json: "),
        (["--diff", "broken.json"], "broken.json: not valid JSON"),
        (["--diff", "other.json"], "other.json: wanted a file that aot --json wrote"),
        (["--json", "."], ".: wanted the name of a file"),
        (["--json", "other.json/found.json"], "other.json/found.json: its folder cannot be made"),
    ],
)
def test_files_that_cannot_be_are_refused_before_anything_is_compiled(tmp_path, monkeypatch, capsys, flags, words):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(aot, "run", lambda *_: pytest.fail("compiled"))
    with pytest.raises(SystemExit) as status:
        aot.main(["--target", "cpu:8", "--config", "quickstart", *flags])
    assert status.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {words}")


def test_a_compiler_that_fails_costs_one_line(monkeypatch, capsys):
    def run(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large\nmore")

    monkeypatch.setattr(aot, "run", run)
    with pytest.raises(SystemExit) as status:
        aot.main(["--target", "cpu:8", "--config", "quickstart"])
    assert status.value.code == 1
    assert capsys.readouterr().err == "error: the compiler for cpu:8 failed: RESOURCE_EXHAUSTED: too large\n"


def test_figures_are_written_into_a_new_folder(tmp_path, monkeypatch):
    figures = {"name": "prediction of 1", "samples": 1}
    monkeypatch.setattr(aot, "run", lambda *_: iter([figures]))
    assert aot.main(["--target", "cpu:8", "--config", "quickstart", "--json", str(tmp_path / "a" / "b.json")]) == 0
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"target": "cpu:8", "programs": [figures]}
