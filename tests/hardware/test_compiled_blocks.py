"""A residual block of the VAE as a TPU and a GPU get it: nothing is stored in float32, and no kernel is reordered."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from marigold_jax.hardware import gpus

ROOT = Path(__file__).parents[2]

# In a process of its own, because it decides on JAX's platforms. As `predict` compiles it, or with XLA's defaults.
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from marigold_jax.hardware import compiler_options, forecast, slices
from marigold_jax.hardware.executed import executed
from marigold_jax.inference.kernel_layout import arranged
from marigold_jax.models import functional
from marigold_jax.models.layers import ResnetBlock
from marigold_jax.runtime.sharding import Layout, make_mesh

def compiled(ours):
    params, options = weights, None
    if ours:
        params, options = arranged(weights, platform), dict(compiler_options.options(platform, 4))
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        lowered = jax.jit(lambda params, x: functional.merge(structure, params)(x)).lower(params, image)
    rows = executed(lowered.compile(compiler_options=options).as_text())
    return {"float32": sum(row.times for row in rows if "f32[4,64,64," in row.shape),
            "reordered": sum(row.times for row in rows if row.kind == "transpose/copy"),
            "memory": sum(row.times * row.hbm for row in rows), "cycles": forecast.cycles(rows)}

devices = slices.devices(sys.argv[1])
platform, layout = devices[0].platform, Layout(make_mesh(1, devices[:1]))
structure, shapes = functional.abstract(lambda keys: ResnetBlock(128, 128, groups=32, epsilon=1e-6, rngs=keys))
weights = layout.shapes({name: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for name, x in shapes.items()})
image = layout.shapes(jax.ShapeDtypeStruct((4, 64, 64, 128), jnp.bfloat16))
print(json.dumps({"ours": compiled(True), "plain": compiled(False)}))
"""


def forms(target):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", SCRIPT, target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["ours"], found["plain"]


@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is not installed")
def test_for_a_tpu():
    ours, plain = forms("tpu:v5e-1")
    assert ours["float32"] == 0
    assert ours["cycles"] < 0.6 * plain["cycles"]


@pytest.mark.skipif(not any(map(find_spec, gpus.PLUGINS)), reason="JAX's plugin for CUDA is not installed")
def test_for_a_gpu():
    ours, plain = forms("gpu:h100")
    assert ours["float32"] == 0 and ours["reordered"] == 0
    assert plain["reordered"] >= 2  # both kernels
    assert ours["memory"] < plain["memory"]
