"""Damaged copies of good files, from a seed: what downloads, disks and hostile people make of them."""

from collections.abc import Iterator

import numpy as np


def cut_short(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(len(content))]


def flip_bits(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(random.integers(1, 20)):
        changed[random.integers(len(changed))] ^= 1 << random.integers(8)
    return bytes(changed)


def break_header(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes of the first 64, where formats keep types, shapes and offsets, become extreme."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 6)):
        changed[random.integers(min(64, len(changed)))] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(changed)


def blank_a_stretch(content: bytes, random: np.random.Generator) -> bytes:
    start, length = random.integers(len(content)), random.integers(1, 200)
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def repeat_a_stretch(content: bytes, random: np.random.Generator) -> bytes:
    start, length = random.integers(len(content)), random.integers(1, 200)
    return content[: start + length] + content[start:]


def replace(content: bytes, random: np.random.Generator) -> bytes:
    """Something else altogether, under the name of the file."""
    others = (
        b"",
        b"\0",
        b"hello\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x80\x04\x95",
        b"<html></html>",
    )
    return others[random.integers(len(others))]


MUTATIONS = (cut_short, flip_bits, break_header, blank_a_stretch, repeat_a_stretch, replace)


def mutants(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies, every kind of damage in turn. Some are still whole enough to be read."""
    random = np.random.default_rng(seed)
    for number in range(count):
        yield MUTATIONS[number % len(MUTATIONS)](content, random)
