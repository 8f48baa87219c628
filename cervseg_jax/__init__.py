"""Segmentation of nuclei in clustered cervical cells with Keras 3 on JAX.

    import cervseg_jax

    segmenter = cervseg_jax.load("runs/a")
    result = segmenter(image)  # uint8 [h, w, 3] or [h, w], or a path; several images give an iterator of results
    result.labels, result.mask, result.probabilities, result.uncertainty, result.table

`train` and `evaluate` are the commands of these names. Errors are those of `cervseg_jax.errors`; messages go to the
logger "cervseg_jax". Importing the package selects Keras' JAX backend, before Keras itself is imported anywhere; JAX,
Keras and OpenCV are imported on first use.
"""

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from cervseg_jax import errors

if TYPE_CHECKING:
    from cervseg_jax.api import evaluate, load, train
    from cervseg_jax.segmentation.result import Result
    from cervseg_jax.segmentation.segmenter import Segmenter
    from cervseg_jax.training.run import TrainedRun

__version__ = "0.2.0"
__all__ = ["Result", "Segmenter", "TrainedRun", "errors", "evaluate", "load", "train"]

_LAZY = {
    "evaluate": "cervseg_jax.api",
    "load": "cervseg_jax.api",
    "train": "cervseg_jax.api",
    "Result": "cervseg_jax.segmentation.result",
    "Segmenter": "cervseg_jax.segmentation.segmenter",
    "TrainedRun": "cervseg_jax.training.run",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    """Lists public names, imported or not."""
    return sorted({*globals(), *__all__})


def _select_jax_backend() -> None:
    """Makes Keras use JAX, or raises where that is no longer possible in this process."""
    loaded = sys.modules.get("keras")
    if loaded is not None and loaded.backend.backend() != "jax":
        raise ImportError(
            f"cervseg_jax needs Keras on the JAX backend, got {loaded.backend.backend()!r}: "
            "import cervseg_jax before keras, or set KERAS_BACKEND=jax"
        )
    os.environ["KERAS_BACKEND"] = "jax"


_select_jax_backend()
logging.getLogger(__name__).addHandler(logging.NullHandler())
