"""The checkpoints of a run: the training state after some steps, written in the background and checked when read.

Each is a folder of Orbax named for its step, with notes (JSON) and fingerprints beside the arrays.
"""

import json
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from marigold_jax.models.functional import Params

logger = logging.getLogger(__name__)

NUMBER = re.compile("[0-9]{8,12}")  # the name of a checkpoint; anything else in the folder is not ours
LONGEST_REASON = 120


class CheckpointError(ValueError):
    """A checkpoint could not be written or read. The message is one line and names the last one that is safe."""


class Checkpoints:
    """Writes, checks and deletes the checkpoints in one folder. The newest `keep` and the best one stay."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep
        self._pending: tuple[int, Any, int | None] | None = None  # step, Orbax's response, the best step

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in ascending order."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if NUMBER.fullmatch(path.name) and path.is_dir()]
        return sorted(int(name) for name in names if self.path(int(name)).name == name)

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def save(self, step: int, state: Any, notes: Mapping[str, Any], best: int | None = None) -> None:
        """Starts to write a checkpoint, and returns once `state` is copied to the host and may be donated.

        Args:
            step: the number of steps done.
            state: a dict of trees of arrays.
            notes: anything JSON can hold.
            best: a step whose checkpoint is to be kept as well.

        Raises:
            CheckpointError: this checkpoint or the previous one could not be written. Only `finish` tells that this one
                was written completely.
        """
        self.finish()
        if step in self.steps():
            return
        try:
            from orbax.checkpoint import v1 as ocp  # imported late, here and below: finding an export does not need it

            # A fingerprint for each part too, so that one part can be read and checked without the others.
            parts = {key: fingerprint({key: part}) for key, part in state.items()}
            metadata = {"notes": dict(notes), "fingerprint": fingerprint(state), "parts": parts}
            self._pending = step, ocp.save_async(self.path(step), state, custom_metadata=metadata), best
        except Exception as error:  # Orbax raises many types: OSError, ValueError, tensorstore's own
            raise self._not_written(step, error) from error

    def finish(self) -> None:
        """Waits until the pending checkpoint is written, then deletes the ones no longer wanted."""
        if self._pending is None:
            return
        (step, response, best), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise self._not_written(step, error) from error
        if jax.process_index() == 0:
            steps = self.steps()
            for old in steps[: -self.keep]:
                if old != best:
                    self._delete(self.path(old))

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest readable state and its notes, or None if nothing has been saved yet.

        A checkpoint whose contents do not match its fingerprint is renamed to `<step>.corrupt`, with a warning.

        Args:
            like: a state with the wanted shapes and shardings, on any number of devices. Its memory is freed before
                anything is read.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        if jax.process_index() == 0:
            for path in (*self.folder.glob("*.orbax-checkpoint-tmp*"), *self.folder.glob("*.deleted")):
                shutil.rmtree(path, ignore_errors=True)  # half-written or half-deleted by a killed process
        corrupt: dict[int, str] = {}
        if self.steps():
            jax.tree.map(lambda x: x.delete(), like)
        for step in reversed(self.steps()):
            try:
                state, notes = _load(self.path(step), shapes)
            except Exception as error:
                corrupt[step] = first_line(error)
                continue
            for bad, reason in corrupt.items():
                logger.warning("%s is corrupt (%s): going on from step %d", self.path(bad), reason, step)
                if jax.process_index() == 0:
                    self._set_aside(self.path(bad))
            return state, notes
        if corrupt:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in corrupt.items())
            raise CheckpointError(f"{self.folder}: no checkpoint can be read ({reasons}); move it away to start anew")
        return None

    def _not_written(self, step: int, error: Exception) -> CheckpointError:
        for path in self.folder.glob(f"{self.path(step).name}.*"):
            shutil.rmtree(path, ignore_errors=True)  # makes room on a full disk
        steps = self.steps()
        safe = f"step {steps[-1]} is safe" if steps else "there is none before it"
        return CheckpointError(
            f"{self.path(step)}: the checkpoint could not be written ({first_line(error)}); {safe}. Make room and "
            "give the same command again to continue from there"
        )

    def _set_aside(self, path: Path) -> None:
        """Renames a checkpoint to `<step>.corrupt`, or to the next free name after that."""
        names = (f"{path.name}.corrupt{number or ''}" for number in range(len(list(self.folder.iterdir())) + 1))
        path.rename(next(aside for name in names if not (aside := path.with_name(name)).exists()))

    def _delete(self, path: Path) -> None:
        """Renames first: deleting takes time, and a process killed meanwhile would leave half a checkpoint."""
        doomed = path.with_suffix(".deleted")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def fingerprint(state: Any) -> int:
    """Returns a checksum of every bit of a tree of arrays. It is the same on any number of devices.

    Orbax detects a truncated file, but not a flipped bit. Words are added as integers on the devices, because addition
    modulo 2³² gives the same sum in any order.
    """
    sums = jax.device_get([(jax.tree_util.keystr(path), _sum_of_words(x)) for path, x in _leaves(state)])
    return zlib.crc32(json.dumps([(name, int(total)) for name, total in sums]).encode())


@jax.jit
def _sum_of_words(x: Array) -> Array:
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def _leaves(tree: Any) -> list[tuple[Any, Array]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _load(path: Path, shapes: Any) -> tuple[Any, dict[str, Any]]:
    from orbax.checkpoint import v1 as ocp

    metadata = ocp.metadata(path).custom_metadata
    state = ocp.load(path, shapes)
    if fingerprint(state) != metadata["fingerprint"]:
        raise ValueError("its contents are not what was written")
    return state, metadata["notes"]


def load_weights(path: Path) -> Params:
    """Returns the weights in a checkpoint, or their moving average if there is one.

    Raises:
        ValueError: the contents do not match the fingerprint.
        Exception: of any type that Orbax raises.
    """
    from orbax.checkpoint import v1 as ocp

    found = ocp.metadata(path)
    shapes = found.metadata
    chosen = "ema" if "ema" in shapes else "params"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for name, x in shapes[chosen].items()}
    # An ellipsis tells Orbax not to read that part: the optimiser's moments are twice as large as the weights.
    like = {key: wanted if key == chosen else jax.tree.map(lambda x: ..., shapes[key]) for key in shapes}
    params = ocp.load(path, like)[chosen]
    parts = (found.custom_metadata or {}).get("parts", {})  # older runs have no such fingerprints
    if chosen in parts and fingerprint({chosen: params}) != parts[chosen]:
        raise ValueError("its contents are not what was written")
    return params


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, shortened at its start if it is long: the reason comes last."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) < LONGEST_REASON else f"... {line[-LONGEST_REASON:]}"
