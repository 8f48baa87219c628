"""The mesh of devices, `data` x `spatial`, and what lies where on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cervseg_jax.data.batch import Batch, Targets
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import Head, needs_instances
from cervseg_jax.sections import MeshConfig, RuntimeConfig


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


def make_mesh(wanted: MeshConfig | None, *, batch_size: int) -> Mesh:
    """Builds the mesh.

    Args:
      wanted: devices along each axis; None takes as many along `data` as divide the batch.
      batch_size: rows of the batches that will be spread over it.

    Returns:
      A mesh with the axes "data" and "spatial".

    Raises:
      ConfigError: if there are fewer devices than wanted.
    """
    devices = jax.devices()
    shape = (math.gcd(batch_size, len(devices)), 1) if wanted is None else (wanted.data, wanted.spatial)
    needed = shape[0] * shape[1]
    if needed > len(devices):
        raise ConfigError(
            f"runtime.mesh: {shape[0]} x {shape[1]} needs {needed} devices, got {len(devices)} "
            f"({devices[0].platform}); leave it out to use what is there"
        )
    # Keras' layers know nothing of explicit axes.
    return Mesh(np.array(devices[:needed]).reshape(shape), ("data", "spatial"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, heads: Sequence[Head] = ("mask",)) -> Batch:
    """Returns the placement of a batch: rows of the batch over `data`, rows of the images over `spatial`."""
    images = NamedSharding(mesh, PartitionSpec("data", "spatial"))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    targets = Targets(maps=images, touching=images, known=rows) if needs_instances(heads) else None
    return Batch(image=images, mask=images, valid=rows, image_id=rows, targets=targets)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
