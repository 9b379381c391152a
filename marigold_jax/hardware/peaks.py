"""What accelerators can do, by what they call themselves."""

# Dense bfloat16 operations a second, as the makers state them, by a word in what the device calls itself: the first
# that occurs counts. A TPU v2 or v3 "device" is half a chip; "TPU v5" is the v5p.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """What one device could do at most; None where it is not known, as for a CPU."""
    words = device_kind.replace("-", " ")  # as in "NVIDIA A100-SXM4-80GB"
    return next((peak for name, peak in PEAK_FLOPS.items() if f" {name} " in f" {words} "), None)
