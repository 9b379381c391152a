"""The compilers for TPUs and GPUs themselves, where they are installed. They need no TPU and no GPU."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from marigold_jax.hardware import gpus

ROOT = Path(__file__).parents[2]

# In a process of its own, because it decides on JAX's platforms.
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from marigold_jax.hardware import forecast, slices
from marigold_jax.hardware.executed import executed
from marigold_jax.hardware.operations import flops
from marigold_jax.models.attention import attention
from marigold_jax.runtime.sharding import Layout, make_mesh

def block(x, kernel, weights):
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x, _ = jax.lax.scan(lambda x, weight: (jax.nn.silu(x @ weight), None), x, weights)
    tokens = x.reshape(2, 1024, 2, 64)
    return attention(tokens, tokens, tokens)

devices = slices.devices(sys.argv[1])
layout = Layout(make_mesh(1, devices[:1]))
sides = (2, 32, 32, 128), (3, 3, 128, 128), (5, 128, 128)
shapes = layout.shapes([jax.ShapeDtypeStruct(one, jnp.bfloat16) for one in sides])
gradient = jax.grad(lambda *arrays: block(*arrays).astype(jnp.float32).sum(), (0, 1, 2))
with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
    rows = executed(jax.jit(block).lower(*shapes).compile().as_text())
    counted = [flops(function, *shapes) for function in (block, gradient)]
    backward = executed(jax.jit(gradient).lower(*shapes).compile().as_text()) if "gpu" in sys.argv[1] else []
chip = slices.chip(sys.argv[1], devices[0])
kinds = {share.name[0]: share._asdict() for share in forecast.by_kind(rows, chip)}
print(json.dumps({"kinds": kinds, "backend": jax.default_backend(), "devices": len(devices),
    "counted": counted, "compiled": [sum(row.times * row.operations for row in some) for some in (rows, backward)],
    "sources": sorted({row.source for row in rows}), "clocked": forecast.cycles(rows)}))
"""

PRODUCT, ATTENTION = 5 * 2 * (2 * 32 * 32) * 128 * 128, 2 * 2 * (2 * 2) * 1024 * 1024 * 64


def compiled(target):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", SCRIPT, target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cuDNN is not usable" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is not installed")
def test_a_block_for_a_tpu():
    found = compiled("tpu:v5e-1")
    kinds = found["kinds"]
    # A loop's body counts as often as it runs, although TPU programs do not say how often that is.
    assert kinds["matrix product"]["operations"] == PRODUCT
    # The kernel of attention is not clocked, its operations are known, and padding is none here.
    assert (kinds["attention"]["operations"], kinds["attention"]["cycles"]) == (ATTENTION, 0)
    assert kinds["convolution"]["cycles"] > 0 and found["clocked"] > 1000
    assert any(source.startswith("models/attention.py:") for source in found["sources"])


@pytest.mark.skipif(not any(map(find_spec, gpus.PLUGINS)), reason="JAX's plugin for CUDA is not installed")
@pytest.mark.parametrize("name", ["h100", "rtx4090"])
def test_a_block_for_a_gpu_that_is_not_here(name):
    found = compiled(f"gpu:{name}")
    kinds = found["kinds"]
    assert found["backend"] == "cpu"
    assert kinds["convolution"]["operations"] == 2 * (2 * 32 * 32 * 128) * (9 * 128)
    assert kinds["matrix product"]["operations"] == PRODUCT
    assert kinds["attention"]["operations"] == ATTENTION and kinds["attention"]["times"] == 1  # cuDNN's
    assert found["compiled"] == found["counted"]  # forwards and backwards
    assert kinds["attention"]["hbm"] >= 4 * 2 * 1024 * 2 * 64 * 2


@pytest.mark.skipif(not any(map(find_spec, gpus.PLUGINS)), reason="JAX's plugin for CUDA is not installed")
def test_eight_gpus_are_one_host():
    assert compiled("gpu:h100:8")["devices"] == 8
