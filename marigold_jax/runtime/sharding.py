"""Placement of arrays on devices: a mesh, and rules that choose a sharding by the name of an array.

| axis | batches | parameters and optimiser state                      |
|------|---------|-----------------------------------------------------|
| data | split   | replicated                                          |
| fsdp | split   | split if the rule is "fsdp", otherwise replicated   |

Splitting parameters over `fsdp` (fully sharded data parallelism) saves memory, costs communication, and changes no
result.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP = AXES = ("data", "fsdp")
SMALLEST_SPLIT = 2**16  # elements; smaller arrays are replicated, because that costs less than gathering them

Rules = tuple[tuple[str, str], ...]  # (regular expression, name of a rule); the first that matches is used


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns all devices of all processes as a mesh with axes ("data", "fsdp"), the second of size `fsdp`.

    Raises:
        ValueError: the number of devices is not a multiple of `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"make_mesh: fsdp is {fsdp}, wanted a divisor of the number of devices, {len(devices)}")
    shape = (len(devices) // fsdp, fsdp)
    # JAX's default, Explicit, would require a sharding for every convolution.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def _replicate(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    return PartitionSpec()


def _fsdp(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Splits the largest axis that divides evenly; among equal ones, the last."""
    divisible = [axis for axis, side in enumerate(shape) if side % parts == 0]
    if not divisible or np.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(longest + 1)))


_RULES = {"replicate": _replicate, "fsdp": _fsdp}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and rules for placing named arrays on it.

    Rules are matched (`re.search`) against the name of an array, which is the last key of its path. Adam's moments have
    the names of their parameters, so they are placed like them. Scalars are always replicated.

    Raises:
        ValueError: a rule is unknown; or, when a method is called, no rule matches a name.
    """

    mesh: Mesh
    rules: Rules = (("", "replicate"),)

    def __post_init__(self):
        unknown = sorted({rule for _, rule in self.rules} - set(_RULES))
        if unknown:
            raise ValueError(f"Layout: unknown rules {unknown}, wanted among {', '.join(_RULES)}")

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Dimension 0 split over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    def sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of one array."""
        if not shape:
            return self.replicated
        for pattern, rule in self.rules:
            if re.search(pattern, name):
                return NamedSharding(self.mesh, _RULES[rule](shape, self.mesh.shape[FSDP]))
        raise ValueError(f"Layout: no rule matches {name!r}; end the rules with ('', 'replicate')")

    def shardings(self, tree: Any) -> Any:
        """Returns the shardings of a tree of arrays or shapes, such as a training state."""
        return jax.tree_util.tree_map_with_path(lambda path, x: self.sharding(_name(path), x.shape), tree)

    def shapes(self, tree: Any) -> Any:
        """Returns the shapes of a tree of arrays or shapes, with their shardings."""
        return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), tree, self.shardings(tree))

    def batch_shapes(self, batch: Any) -> Any:
        """Returns the shapes of a global batch, with their shardings."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch), batch)

    def place(self, tree: Any) -> Any:
        """Places a tree of arrays, equal in all processes, according to the rules."""
        return jax.tree.map(jax.device_put, tree, self.shardings(tree))

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places this process's part of the global batch on its devices.

        Raises:
            ValueError: the global batch cannot be split evenly over the devices.
        """
        devices, processes = self.mesh.size, jax.process_count()
        for key, array in batch.items():
            if len(array) * processes % devices:
                raise ValueError(
                    f"batch: {key!r} has {len(array) * processes} samples, wanted a multiple of the {devices} devices; "
                    "change the batch size or use fewer devices"
                )
        return {key: jax.make_array_from_process_local_data(self.batch, array) for key, array in batch.items()}


def _name(path: tuple[Any, ...]) -> str:
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return str(keys[-1]) if keys else ""
