"""Specifications of accelerators, as their manufacturers publish them."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The specification of one device.

    Attributes:
        memory: in bytes.
        peak_flops: dense bfloat16 operations per second.
        bandwidth: of the memory, in bytes per second.
        links: bytes per second that the device can send over all its links to other chips together (ICI, NVLink, or PCI
            Express if there is nothing else). It can receive the same amount at the same time.
        clock: cycles per second of a TPU's matrix units; 0 if unknown.
    """

    memory: int
    peak_flops: float
    bandwidth: float
    links: float
    clock: float = 0.0


# Words in JAX's `device_kind` -> specification; the first row that matches is used. On TPU v2 and v3, a "device" is
# half a chip. "TPU v5" is the v5p. Google (cloud.google.com/tpu/docs) and Nvidia state the bandwidth of links as the
# sum of both directions; here it is that of one direction.
# Google does not state the clocks of all TPUs. They follow from the peak, which is two operations x elements of the
# matrix units x clock: v4 and v5p have 8 units of 128 x 128, v5e has 4, v6e has 4 of 256 x 256. libtpu agrees: for a
# product of two 4096 x 4096 matrices it estimates 88 to 97 % of those operations per cycle.
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
    "TPU v4": Chip(32 * GIB, 275e12, 1228e9, 300e9, 1.05e9),
    "TPU v5 lite": Chip(16 * GIB, 197e12, 819e9, 200e9, 1.5e9),
    "TPU v5": Chip(95 * GIB, 459e12, 2765e9, 600e9, 1.75e9),
    "TPU v6 lite": Chip(32 * GIB, 918e12, 1638e9, 400e9, 1.75e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the specification of a device of this kind; None if it is not in the table, such as a CPU."""
    words = f" {device_kind.replace('-', ' ')} "  # as in "NVIDIA A100-SXM4-80GB"
    return next((chip for name, chip in CHIPS.items() if f" {name} " in words), None)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak operations per second of one device; None if it is not in the table."""
    chip = chip_of(device_kind)
    return chip and chip.peak_flops
