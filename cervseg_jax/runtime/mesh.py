"""The mesh of devices, `data` x `fsdp` x `spatial`, and what lies where on it.

Images of a batch are spread over `data` and `fsdp`, rows of an image over `spatial`. Weights and optimizer state are
copied to every device along `data` and `spatial`, and divided along `fsdp`.
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
"""The axes that the images of a batch are spread over."""
MIN_ROWS_PX = 64
"""An automatic mesh leaves each device so many rows of an image: thinner stripes are mostly halo."""
MIN_DIVIDED = 2**14
"""Smaller arrays are copied along `fsdp`: gathering them would cost more than they take."""


def require_devices(runtime: RuntimeConfig) -> None:
    """Checks that the wanted kind of accelerator is there.

    Raises:
      ConfigError: if `runtime.require` names another platform than JAX found.
    """
    found = jax.default_backend()
    if runtime.require not in ("any", found):
        advice = {
            "tpu": "install the extra `tpu` on a TPU VM, and see that no other process holds the TPU",
            "gpu": "install the extra `gpu` and a driver",
            "cpu": "set the environment variable JAX_PLATFORMS=cpu",
        }[runtime.require]
        raise ConfigError(
            f"runtime.require: {runtime.require} is required, got {found} ({len(jax.devices())} devices); {advice}; "
            "`cervseg-jax doctor` looks closer"
        )


def make_mesh(
    wanted: MeshConfig | None,
    *,
    batch_size: int,
    height: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Builds the mesh.

    Args:
      wanted: devices along each axis; None takes as many along `data` as divide the batch, and as many of the rest
        along `spatial` as leave each device a stripe of the image that is not too thin.
      batch_size: images of the batches that will be spread over it.
      height: rows of the images; None keeps images whole unless `wanted` divides them.
      devices: to use; None takes those of this process.

    Returns:
      A mesh with the axes "data", "fsdp" and "spatial".

    Raises:
      ConfigError: if there are fewer devices than wanted, or some of several processes would be left out.
    """
    devices = jax.local_devices() if devices is None else devices
    if wanted is None:
        num_data = math.gcd(batch_size, len(devices))
        shape = (num_data, 1, _stripes(len(devices) // num_data, height))
    else:
        shape = (wanted.data, wanted.fsdp, wanted.spatial)
    shown = " x ".join(map(str, shape))
    needed = math.prod(shape)
    if needed > len(devices):
        raise ConfigError(
            f"runtime.mesh: {shown} needs {needed} devices, got {len(devices)} "
            f"({devices[0].platform}); leave it out to use what is there"
        )
    if needed < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ConfigError(
            f"runtime.mesh: {shown} uses {needed} of {len(devices)} devices, and some of several processes would "
            "be left out; train.batch_size or runtime.mesh must use them all"
        )
    # Keras' layers know nothing of explicit axes.
    return Mesh(np.array(devices[:needed]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def train_mesh(config: Config) -> Mesh:
    """Returns the mesh of a training: over the devices of all processes."""
    return make_mesh(
        config.runtime.mesh,
        batch_size=config.train.batch_size // config.train.grad_accum_steps,
        height=config.model.image_size[0],
        devices=jax.devices(),
    )


def _stripes(num_devices: int, height: int | None) -> int:
    """How many stripes of equal height, none too thin, an image is divided into."""
    fitting = [
        count
        for count in range(1, num_devices + 1)
        if height is not None and num_devices % count == 0 and height % count == 0 and height // count >= MIN_ROWS_PX
    ]
    return max(fitting, default=1)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is divided into; a multiple of it is a batch's size."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Returns the placement of weights and optimizer state, a tree like `state`.

    Large arrays are divided along their last axis that `fsdp` divides; the rest is copied.

    Reference: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 (stage 3).
    """
    parts = mesh.shape["fsdp"]

    def placement(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < MIN_DIVIDED or not axes:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], "fsdp"))

    return jax.tree.map(placement, state)


def local_images(mesh: Mesh, batch_size: int) -> range:
    """Returns which images of a batch this process must have: those of which its devices hold a part."""
    rows = NamedSharding(mesh, PartitionSpec(ROWS))
    held = [index[0] for index in rows.addressable_devices_indices_map((batch_size,)).values() if index]
    return range(min(part.start or 0 for part in held), max(part.stop or batch_size for part in held))


def place(tree: Any, sharding: Any, *, first: int = 0, batch_size: int | None = None) -> Any:
    """Puts arrays of the host on the devices.

    Args:
      tree: numpy arrays; where processes hold parts of a batch, this one's images.
      sharding: a placement for all, or a tree of them like `tree`.
      first: number of the first image of the batch that this process holds.
      batch_size: images of the whole batch; None: the arrays are whole.

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

        def part(index: Any) -> np.ndarray:
            if batch_size is None:
                return array[index]
            start, stop, _ = index[0].indices(batch_size)
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(shape, placement, part)

    return jax.tree.map(put, tree, sharding)


def to_host(array: jax.Array) -> np.ndarray:
    """Returns the whole of an array, wherever its parts lie; all processes must ask together."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    mesh = array.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(jax.jit(lambda value: value, out_shardings=replicated(mesh))(array))
