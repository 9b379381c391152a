"""Devices to compile for: a TPU slice or GPUs (without having them), simulated devices, or those of this machine."""

import dataclasses
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from marigold_jax.hardware import gpus
from marigold_jax.hardware.chips import Chip, chip_of

GENERATIONS = ("v4", "v5e", "v5p", "v6e")
HERE = "here"

# Google Cloud's names for slices. v4 and v5p count cores, and each chip has two.
SLICES = {
    "v4-8": ("v4", "2x2x1"),
    "v4-16": ("v4", "2x2x2"),
    "v4-32": ("v4", "2x2x4"),
    "v5e-1": ("v5e", "1x1"),
    "v5e-4": ("v5e", "2x2"),
    "v5e-8": ("v5e", "2x4"),
    "v5e-16": ("v5e", "4x4"),
    "v5p-8": ("v5p", "2x2x1"),
    "v5p-16": ("v5p", "2x2x2"),
    "v5p-32": ("v5p", "2x2x4"),
    "v6e-1": ("v6e", "1x1"),
    "v6e-4": ("v6e", "2x2"),
    "v6e-8": ("v6e", "2x4"),
    "v6e-16": ("v6e", "4x4"),
}

# The two cores of a chip are one device, as on Google Cloud.
CORES_TOGETHER = {"v4": {"chip_config_name": "megacore"}}

# Without these, libtpu queries the metadata server of Google Cloud, or prints warnings.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def parse(target: str) -> tuple[str, str]:
    """Returns the kind of device, and the shape or number: ("v5e", "2x4") for "tpu:v5e-8" or "tpu:v5e:2x4".

    ("h100", "8") for "gpu:h100:8", ("h100", "1") for "gpu:h100", ("cpu", "8") for "cpu:8", ("here", "") for "here".

    Raises:
        ValueError: the target is none of these.
    """
    if target == HERE:
        return HERE, ""
    if match := re.fullmatch(r"cpu:([1-9]\d*)", target):
        return "cpu", match[1]
    if (match := re.fullmatch(r"gpu:(\w+)(?::([1-9]\d*))?", target)) and match[1] in gpus.GPUS:
        return match[1], match[2] or "1"
    name = target.removeprefix("tpu:")
    if name != target and name in SLICES:
        return SLICES[name]
    generation, _, topology = name.partition(":")
    if name != target and generation in GENERATIONS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        return generation, topology
    raise ValueError(
        f"--target {target}: wanted tpu:NAME with one of {', '.join(SLICES)}; a topology such as tpu:v5e:2x4; "
        f"gpu:NAME with one of {', '.join(gpus.GPUS)}, or gpu:h100:8 for eight; cpu:8 for eight simulated devices; or "
        "here for the devices of this machine"
    )


def devices(target: str) -> list[jax.Device]:
    """Returns the devices of a target. Programs can be compiled for all of them, and run on "cpu:N" and "here".

    Call this before JAX initialises its devices. It does not occupy real TPUs or GPUs.

    Raises:
        ValueError: the target has the wrong form, or there is no such topology.
        ModuleNotFoundError: libtpu, the compiler for TPUs, or the plugin with that for GPUs is not installed.
    """
    kind, shape = parse(target)
    if kind == HERE:
        return jax.devices()
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(shape))
        return jax.devices()
    if kind in gpus.GPUS:
        return gpus.devices(kind, int(shape))
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "libtpu, the compiler for TPUs, is not installed: pip install -e '.[tpu]' (it needs no TPU)"
        ) from None
    jax.config.update("jax_platforms", "cpu")
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    alone = set(shape) <= set("1x")
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{kind}:{shape}",
            chips_per_host_bounds=(1, 1, 1) if alone else (2, 2, 1),
            num_slices=1,
            **CORES_TOGETHER.get(kind, {}),
        )
    except Exception as error:  # XLA raises many types here: RuntimeError, ValueError, NotImplementedError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--target {target}: libtpu does not support this topology ({reason})") from error
    return description.devices


def chip(target: str, device: Any) -> Chip | None:
    """Returns the specification of a device, or None if unknown. For "here", the memory is what JAX may allocate."""
    known = chip_of(device.device_kind)
    if known and target == HERE:
        limit = (device.memory_stats() or {}).get("bytes_limit", known.memory)
        known = dataclasses.replace(known, memory=limit)
    return known
