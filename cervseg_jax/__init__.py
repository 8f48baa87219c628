"""Segmentation of nuclei in clustered cervical cells with Keras 3 on JAX.

Importing the package selects Keras' JAX backend, before Keras itself is imported anywhere.
"""

import os
import sys

__version__ = "0.2.0"


def _select_jax_backend() -> None:
    """Makes Keras use JAX, or says why that is no longer possible in this process."""
    loaded = sys.modules.get("keras")
    if loaded is not None and loaded.backend.backend() != "jax":
        raise ImportError(
            f"cervseg_jax needs Keras on the JAX backend, got {loaded.backend.backend()!r}: "
            "import cervseg_jax before keras, or set KERAS_BACKEND=jax"
        )
    os.environ["KERAS_BACKEND"] = "jax"


_select_jax_backend()
