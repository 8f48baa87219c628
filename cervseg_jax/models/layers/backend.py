"""The backend that a network's layers are built for."""

from typing import Any, Literal

from jax.sharding import Mesh

Backend = Literal["xla", "cpu", "tpu"]
"""The target of a program: "xla" takes XLA's own operations everywhere, "cpu" and "tpu" what is faster there."""


def backend_for(mesh: Mesh) -> Backend:
    """Returns the backend of a mesh.

    "tpu" is for any number of chips: packed layers exchange as many halos as plain ones where rows are divided. "cpu"
    is for a single CPU device: its implementations would gather images that are divided over devices.

    Args:
      mesh: the devices that the program will be compiled for; they need not be present.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "tpu":
        return "tpu"
    return "cpu" if platform == "cpu" and mesh.size == 1 else "xla"


class WithBackend:
    """Mixin of Keras layers that are implemented for a backend; stands before the Keras layer among the bases.

    The backend is not part of a layer's config: a saved network is rebuilt with XLA's operation.
    """

    def __init__(self, *args: Any, backend: Backend = "xla", **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          *args: as for the Keras layer.
          backend: target of the program.
          **kwargs: as for the Keras layer.
        """
        super().__init__(*args, **kwargs)
        self.backend: Backend = backend
