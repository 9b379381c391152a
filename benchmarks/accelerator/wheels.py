"""The wheels that the measurements need, and which of them are missing here."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
OF_TRAINING = ("optax>=0.2.8",)  # the only part of the extra `train` that a step needs
OF_PEER = ("torch", "diffusers>=0.40", "transformers>=4.50")
NEVER_INSTALLED = ("jax", "torch")  # which build of these fits is for the machine's owner to say
SHOWN = ("jax", "jaxlib", "flax", "numpy", "libtpu", "torch", "diffusers", "transformers")


def missing_for_ours() -> list[str]:
    return _missing((*tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"], *OF_TRAINING))


def missing_for_peer() -> list[str]:
    return _missing(OF_PEER)


def install() -> None:
    """Installs what is missing and may be installed. Raises subprocess.CalledProcessError if pip fails."""
    wanted = [wheel for wheel in missing_for_ours() + missing_for_peer() if _name(wheel) not in NEVER_INSTALLED]
    if wanted:
        subprocess.run([sys.executable, "-m", "pip", "install", *wanted], check=True)


def versions() -> dict[str, str]:
    return {name: version for name in SHOWN if (version := _version(name))}


def _missing(requirements: tuple[str, ...]) -> list[str]:
    return [wheel for wheel in requirements if _version(_name(wheel)) is None]


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
