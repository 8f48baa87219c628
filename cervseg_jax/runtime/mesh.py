"""The device mesh `data` x `fsdp` x `spatial`, and the placement of arrays on it.

The images of a batch are sharded over `data` and `fsdp`, the rows of an image over `spatial`. Weights and optimizer
state are replicated along `data` and `spatial`, and sharded along `fsdp`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cervseg_jax.errors import ConfigError
from cervseg_jax.schema import Config, MeshConfig, RuntimeConfig

AXES = ("data", "fsdp", "spatial")
ROWS = ("data", "fsdp")
"""Axes that the images of a batch are sharded over."""
MIN_ROWS_PX = 64
"""Smallest stripe of an image that an automatic mesh gives to a device: thinner stripes are mostly halo."""
MIN_SHARDED_SIZE = 2**14
"""Arrays with fewer elements are replicated along `fsdp`: gathering them would cost more than it saves."""


def require_devices(runtime: RuntimeConfig) -> None:
    """Checks that JAX runs on the required kind of device.

    Raises:
      ConfigError: if `runtime.require` names another platform than the one that JAX uses.
    """
    actual = jax.default_backend()
    if runtime.require not in ("any", actual):
        advice = {
            "tpu": "install the extra `tpu` on a TPU VM, and check that no other process uses the TPU",
            "gpu": "install the extra `gpu` and a driver",
            "cpu": "set the environment variable JAX_PLATFORMS=cpu",
        }[runtime.require]
        raise ConfigError(
            f"runtime.require: {runtime.require} is required, got {actual} ({len(jax.devices())} devices); {advice}; "
            "`cervseg-jax doctor` shows details"
        )


def make_mesh(
    requested: MeshConfig | None,
    *,
    batch_size: int,
    height: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Builds the mesh.

    Args:
      requested: devices along each axis. None takes as many devices along `data` as divide the batch size, and as
        many of the remaining ones along `spatial` as leave each a stripe of at least `MIN_ROWS_PX` rows.
      batch_size: images per batch.
      height: rows of the images; None keeps images whole unless `requested` shards them.
      devices: devices to use; None takes those of this process.

    Returns:
      A mesh with the axes "data", "fsdp" and "spatial".

    Raises:
      ConfigError: if there are too few devices, or devices of one of several processes would be unused.
    """
    devices = jax.local_devices() if devices is None else devices
    if requested is None:
        num_data = math.gcd(batch_size, len(devices))
        shape = (num_data, 1, _stripes(len(devices) // num_data, height))
    else:
        shape = (requested.data, requested.fsdp, requested.spatial)
    shown = " x ".join(map(str, shape))
    needed = math.prod(shape)
    if needed > len(devices):
        raise ConfigError(
            f"runtime.mesh: {shown} needs {needed} devices, got {len(devices)} "
            f"({devices[0].platform}); remove it to use all devices"
        )
    if needed < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ConfigError(
            f"runtime.mesh: {shown} uses {needed} of {len(devices)} devices; with several processes all must be used: "
            "change train.batch_size or runtime.mesh"
        )
    # Keras layers do not support explicit axes.
    return Mesh(np.array(devices[:needed]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def train_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh of a training.

    Args:
      config: the recipe.
      devices: devices to use; None takes those of all processes.

    Returns:
      The mesh, as `make_mesh`.

    Raises:
      ConfigError: as `make_mesh`.
    """
    return make_mesh(
        config.runtime.mesh,
        batch_size=config.train.batch_size // config.train.grad_accum_steps,
        height=config.model.image_size[0],
        devices=jax.devices() if devices is None else devices,
    )


def _stripes(num_devices: int, height: int | None) -> int:
    """Returns the largest number of equal stripes, each of at least `MIN_ROWS_PX` rows, that the devices allow."""
    fitting = [
        count
        for count in range(1, num_devices + 1)
        if height is not None and num_devices % count == 0 and height % count == 0 and height // count >= MIN_ROWS_PX
    ]
    return max(fitting, default=1)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of a batch; batch sizes must be multiples of this."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds a full copy of."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Returns the shardings of weights and optimizer state, a tree like `state`.

    Large arrays are sharded along their last axis whose size is a multiple of `fsdp`; all others are replicated.

    Reference: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 (stage 3).
    """
    num_shards = mesh.shape["fsdp"]

    def placement(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % num_shards == 0]
        if num_shards == 1 or leaf.size < MIN_SHARDED_SIZE or not axes:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], "fsdp"))

    return jax.tree.map(placement, state)


def local_images(mesh: Mesh, batch_size: int) -> range:
    """Returns the indices of the images of a batch of which this process' devices hold a shard."""
    rows = NamedSharding(mesh, PartitionSpec(ROWS))
    held = [index[0] for index in rows.addressable_devices_indices_map((batch_size,)).values() if index]
    return range(min(part.start or 0 for part in held), max(part.stop or batch_size for part in held))


def shard_arrays(tree: Any, sharding: Any, *, first: int = 0, batch_size: int | None = None) -> Any:
    """Puts host arrays on the devices.

    Args:
      tree: numpy arrays: whole ones, or this process' images of a batch.
      sharding: one sharding for all arrays, or a tree of shardings like `tree`.
      first: index of the first image of the batch that this process holds.
      batch_size: images of the global batch; None if the arrays are whole.

    Returns:
      Global arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def put(array: Any, placement: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        shape = array.shape if batch_size is None else (batch_size, *array.shape[1:])

        def shard(index: Any) -> np.ndarray:
            if batch_size is None:
                return array[index]
            start, stop, _ = index[0].indices(batch_size)
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(shape, placement, shard)

    return jax.tree.map(put, tree, sharding)


def to_host(array: jax.Array) -> np.ndarray:
    """Gathers an array to the host. Collective: call it on every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    mesh = array.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(jax.jit(lambda value: value, out_shardings=replicated(mesh))(array))
