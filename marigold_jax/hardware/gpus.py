"""GPUs to compile for without having one: what XLA's compiler wants to know about each."""

from importlib.util import find_spec
from typing import NamedTuple

import jax
from jax.experimental import topologies

from marigold_jax.hardware.chips import chip_of

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


class Gpu(NamedTuple):
    """The parts of Nvidia's specification of a GPU that the compiler's decisions depend on.

    Attributes:
        kind: as the driver, and JAX's `device_kind`, name it; memory and bandwidth are those of `CHIPS` for this name.
        capability: compute capability, major and minor.
        cores: streaming multiprocessors.
        clock: boost clock in GHz.
        cache: bytes of the L2 cache.
        units: units for float32 in a core.
        shared: bytes of shared memory in a core.
        threads: most threads in a core.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    clock: float
    cache: int
    units: int
    shared: int
    threads: int


# Nvidia's architecture white papers, and the CUDA C++ Programming Guide, "Compute Capabilities", for the last three.
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * 2**20, 128, 228 * 2**10, 2048),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 1.98, 50 * 2**20, 128, 228 * 2**10, 2048),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * 2**20, 64, 164 * 2**10, 2048),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 2.04, 48 * 2**20, 128, 100 * 2**10, 1536),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 72 * 2**20, 128, 100 * 2**10, 1536),
}
CUDNN = (9, 10)  # the version whose kernels the compiler may choose


def devices(name: str, count: int) -> list[jax.Device]:
    """Returns GPUs of one host. Programs can be compiled for them, but not run; real GPUs are not opened.

    Call this before JAX initialises its devices.

    Args:
        name: a key of `GPUS`.
        count: of GPUs that NVLink or PCI Express connects.

    Raises:
        ModuleNotFoundError: JAX's plugin for CUDA, which contains the compiler, is not installed.
    """
    if not any(map(find_spec, PLUGINS)):
        raise ModuleNotFoundError(
            "JAX's plugin for CUDA, the compiler for GPUs, is not installed: pip install -e '.[cuda]' (it needs no GPU)"
        )
    jax.config.update("jax_platforms", "cpu")
    return topologies.get_topology_desc(
        platform="cuda", topology_name=name, topology=f"1x1x{count}", target_config=_target_config(GPUS[name])
    ).devices


def _target_config(gpu: Gpu) -> str:
    """Returns a GpuTargetConfigProto of XLA in text form."""
    chip = chip_of(gpu.kind)
    if chip is None:
        raise KeyError(f"{gpu.kind} is not in CHIPS")
    major, minor = gpu.capability
    return f"""
        gpu_device_info {{
          name: "{gpu.kind}"
          device_vendor: "NVIDIA Corporation"
          cuda_compute_capability {{
            major: {major} minor: {minor} feature_extension: {"ACCELERATED_FEATURES" if major >= 9 else "NONE"}
          }}
          core_count: {gpu.cores}
          fpus_per_core: {gpu.units}
          clock_rate_ghz: {gpu.clock}
          l2_cache_size: {gpu.cache}
          memory_bandwidth: {int(chip.bandwidth)}
          device_memory_size: {chip.memory}
          shared_memory_per_core: {gpu.shared}
          shared_memory_per_block: {48 * 2**10}
          shared_memory_per_block_optin: {gpu.shared - 2**10}
          threads_per_core_limit: {gpu.threads}
          threads_per_block_limit: 1024
          threads_per_warp: 32
          registers_per_core_limit: {2**16}
          registers_per_block_limit: {2**16}
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
        device_description_str: "{gpu.kind}"
    """
