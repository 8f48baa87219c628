"""The backend that a network's layers are built for."""

from typing import Literal

from jax.sharding import Mesh

Backend = Literal["xla", "cpu", "tpu"]
"""The target of a program: "xla" takes XLA's own operations everywhere, "cpu" and "tpu" what is faster there."""


def backend_for(mesh: Mesh) -> Backend:
    """Returns the backend of a mesh.

    "cpu" is for a single CPU device: its implementations would be gathered where an image is divided over devices.

    Args:
      mesh: the devices that the program will be compiled for; they need not be present.
    """
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        return "cpu"
    return "xla"
