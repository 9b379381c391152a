"""What accelerators can do, as their makers state it."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device has: bytes of memory, operations and bytes a second.

    `links`: bytes a second that all its links to other chips send together (ICI, NVLink, or PCI Express where there is
    nothing else); as many arrive at the same time.
    """

    memory: int
    peak_flops: float  # dense, bfloat16
    bandwidth: float  # of its memory
    links: float


# By words in what the device calls itself: the first that occur count. Of a TPU v2 or v3, a "device" is half a chip;
# "TPU v5" is the v5p. cloud.google.com/tpu/docs counts both directions of the interconnect, as Nvidia does.
CHIPS = {
    "A100 SXM4 80GB": Chip(80 * GIB, 312e12, 2039e9, 300e9),
    "A100 80GB PCIe": Chip(80 * GIB, 312e12, 1935e9, 32e9),
    "A100": Chip(40 * GIB, 312e12, 1555e9, 300e9),
    "H100 PCIe": Chip(80 * GIB, 756e12, 2039e9, 64e9),
    "H100": Chip(80 * GIB, 989e12, 3352e9, 450e9),
    "H200": Chip(141 * 10**9, 989e12, 4800e9, 450e9),
    "L4": Chip(24 * GIB, 121e12, 300e9, 32e9),
    "RTX 4090": Chip(24 * GIB, 165e12, 1008e9, 32e9),
    "TPU v2": Chip(8 * GIB, 22.5e12, 350e9, 124e9),
    "TPU v3": Chip(16 * GIB, 61.5e12, 450e9, 164e9),
    "TPU v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * GIB, 918e12, 1638e9, 400e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """What a device of this kind has; None where it is not known, as for a CPU."""
    words = f" {device_kind.replace('-', ' ')} "  # as in "NVIDIA A100-SXM4-80GB"
    return next((chip for name, chip in CHIPS.items() if f" {name} " in words), None)


def peak_flops(device_kind: str) -> float | None:
    """What one device could do at most; None where it is not known."""
    chip = chip_of(device_kind)
    return chip and chip.peak_flops
