"""Scaled dot-product attention. The implementation depends on the platform and on the size of the logits.

| name      | when it is chosen                                    | logits in memory                |
|-----------|------------------------------------------------------|---------------------------------|
| xla       | short sequences, everywhere                          | all of them                     |
| blockwise | long sequences, and the VAE's single 512-wide head   | one block of queries            |
| cudnn     | GPU, half precision, heads up to 128 wide            | none                            |
| flash     | TPU, long sequences, heads up to 128 wide            | none                            |

The choice is automatic and logged once for each kind of call. `MARIGOLD_JAX_ATTENTION=blockwise` (any name above)
overrides it wherever that implementation can run; elsewhere the automatic choice is kept.

The platform is that of the mesh in whose context the call is traced (`jax.sharding.use_abstract_mesh`). The devices of
that mesh need not exist on this machine. Without a mesh, the platform is JAX's default. Whether cuDNN works is tried
on a GPU of this machine, once for each dtype and width.
"""

import functools
import logging
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

logger = logging.getLogger(__name__)

# With at most this many query-key pairs per head, all logits are materialised at once. Measured on CPU, where blocks
# are faster from 1024 x 1024 up, because the logits of a block stay in the cache.
LARGEST_WHOLE = 512 * 1024
# Blocks of queries. GPUs take larger ones, up to so many query-key pairs per head, because every block is a loop
# iteration of several kernels. TPUs do not: their compiler tiles the softmax of a large block badly.
QUERY_BLOCK = 128
MOST_PAIRS = {"cpu": 0, "gpu": 2**23, "tpu": 0}
FLASH_BLOCK = 512

Attention = Callable[[Array, Array, Array], Array]


def attention(
    query: Float[Array, "b n heads d"], key: Float[Array, "b m heads d"], value: Float[Array, "b m heads d"]
) -> Float[Array, "b n heads d"]:
    """Returns softmax(query · key / √d) · value for each head.

    Logits and softmax are float32. The result has the dtype of the query.
    """
    _, queries, _, width = query.shape
    name = choose(platform(), query.dtype, queries, key.shape[1], width)
    return IMPLEMENTATIONS[name](query, key, value)


def platform() -> str:
    """Returns the platform for which the call is being traced: "cpu", "gpu" or "tpu"."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty or mesh.abstract_device is None else mesh.abstract_device.platform


def choose(platform: str, dtype: jax.typing.DTypeLike, queries: int, keys: int, width: int) -> str:
    """Returns the implementation's name for one call, a function of the arguments and of MARIGOLD_JAX_ATTENTION."""
    override = os.environ.get("MARIGOLD_JAX_ATTENTION")
    return _choose(platform, jnp.dtype(dtype), queries, keys, width, override, _elsewhere())


def _elsewhere() -> bool:
    """Whether the call is traced for the devices of a mesh that do not exist on this machine."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.abstract_device is not None and not _local(mesh.abstract_device.platform)


@functools.cache
def _local(platform: str) -> tuple[jax.Device, ...]:
    """Returns the devices of a platform on this machine."""
    try:
        return tuple(jax.local_devices(backend=platform))
    except RuntimeError:  # JAX has no such platform here
        return ()


@functools.cache
def _choose(
    platform: str, dtype: np.dtype, queries: int, keys: int, width: int, override: str | None, elsewhere: bool
) -> str:
    narrow = width <= 128 and width % 8 == 0
    able = {
        "flash": platform == "tpu" and narrow,
        # GPUs that are only compiled for are assumed to have compute capability 8.0 or higher, which is all it takes.
        "cudnn": platform == "gpu" and narrow and dtype.itemsize == 2 and (elsewhere or _cudnn_compiles(dtype, width)),
        "blockwise": True,
        "xla": True,
    }
    if override and override not in able:
        raise ValueError(f"MARIGOLD_JAX_ATTENTION={override!r}: wanted one of {', '.join(able)}")
    whole = queries * keys <= LARGEST_WHOLE
    wanted = {"flash": not whole, "cudnn": keys >= 64, "blockwise": not whole, "xla": True}
    name = override if override and able[override] else next(n for n in able if able[n] and wanted[n])
    logger.info(
        "attention: %s for %d queries x %d keys, heads %d wide, %s on %s", name, queries, keys, width, dtype, platform
    )
    return name


def _xla(query: Array, key: Array, value: Array) -> Array:
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bnhd,bmhd->bhnm", query * scale, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


def _blockwise(query: Array, key: Array, value: Array) -> Array:
    """Computes attention for one block of queries at a time, with all keys.

    On CPU, heads are also computed one after the other, so that the keys and values of a head stay in the cache. On
    accelerators, heads are computed in parallel.
    """
    b, n, heads, width = query.shape
    pairs = MOST_PAIRS[platform()] // key.shape[1]
    block = min(n, QUERY_BLOCK * max(1, pairs // QUERY_BLOCK))
    blocks = -(-n // block)
    scale = jnp.asarray(width**-0.5, query.dtype)

    # Rematerialised, so that the backward pass stores no logits either.
    @jax.checkpoint
    def one_block(query: Array, key: Array, value: Array) -> Array:
        logits = jnp.einsum("nd,md->nm", query, key, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        # Dividing after the product takes `width` divisions per query instead of one per key.
        out = jnp.einsum("nm,md->nd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)

    def one_head(head: tuple[Array, Array, Array]) -> Array:
        query, key, value = head
        return jax.lax.map(lambda block: one_block(block, key, value), query)

    def by_head(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(b * heads, -1, width)

    query = jnp.pad(query * scale, ((0, 0), (0, blocks * block - n), (0, 0), (0, 0)))
    query = by_head(query).reshape(b * heads, blocks, block, width)
    each_head = functools.partial(jax.lax.map, one_head) if platform() == "cpu" else jax.vmap(one_head)
    out = each_head((query, by_head(key), by_head(value)))
    return out.reshape(b, heads, blocks * block, width)[:, :, :n].transpose(0, 2, 1, 3)


def _cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@functools.cache
def _cudnn_compiles(dtype: np.dtype, width: int) -> bool:
    """Whether cuDNN's attention can be compiled for a GPU of this machine.

    An unsuitable driver or library must not stop the program. GPUs need not be JAX's default devices.
    """
    device = (*_local("gpu"), *jax.local_devices())[0]
    shape = jax.ShapeDtypeStruct((1, 128, 1, width), dtype, sharding=jax.sharding.SingleDeviceSharding(device))
    try:
        jax.jit(_cudnn).lower(shape, shape, shape).compile()
    except Exception as error:  # jax raises many types here: RuntimeError, ValueError, NotImplementedError, XLA's own
        reason = (str(error).splitlines() or [repr(error)])[0]
        logger.warning("attention: cuDNN is not usable here, blockwise is used instead (%s)", reason)
        return False
    return True


def on_each_device(function: Attention) -> Attention:
    """Applies the function on each device of the current mesh to a share of the batch, split over all mesh axes.

    The compiler cannot split a Pallas kernel, and refuses to compile it for several devices.
    """

    @functools.wraps(function)
    def call(query: Array, key: Array, value: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:  # one device, or already split
            return function(query, key, value)
        split = jax.sharding.PartitionSpec(mesh.axis_names)
        return jax.shard_map(function, in_specs=(split,) * 3, out_specs=split, check_vma=False)(query, key, value)

    return call


@on_each_device
def _flash(query: Array, key: Array, value: Array) -> Array:
    """Pallas' TPU kernel. Lengths are padded to its blocks. Padding is a separate segment that no query attends to."""
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    n, m = query.shape[1], key.shape[1]

    def pad(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % FLASH_BLOCK), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    def segments(length: int) -> Array:
        padded = length + -length % FLASH_BLOCK
        return jnp.broadcast_to((jnp.arange(padded) >= length).astype(jnp.int32), (query.shape[0], padded))

    sizes = {name: FLASH_BLOCK for name in ("block_q", "block_k_major", "block_k")}
    backward = {
        name: FLASH_BLOCK
        for name in (
            *("block_q_major_dkv", "block_k_major_dkv", "block_k_dkv", "block_q_dkv"),
            *("block_k_major_dq", "block_k_dq", "block_q_dq"),
        )
    }
    out = tpu.flash_attention(
        pad(query),
        pad(key),
        pad(value),
        segment_ids=tpu.SegmentIds(q=segments(n), kv=segments(m)),
        sm_scale=query.shape[-1] ** -0.5,
        block_sizes=tpu.BlockSizes(block_b=1, **sizes, **backward),
    )
    return out[:, :, :n].transpose(0, 2, 1, 3)


IMPLEMENTATIONS: dict[str, Attention] = {"xla": _xla, "blockwise": _blockwise, "cudnn": _cudnn, "flash": _flash}
