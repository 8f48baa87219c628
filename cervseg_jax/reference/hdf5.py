"""Reader for Keras 2 HDF5 weights. Reads names and arrays; never unpickles or executes anything."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from cervseg_jax.errors import CheckpointError

_AUTOMATIC = re.compile(
    r"(conv2d_transpose|conv2d|depthwise_conv2d|separable_conv2d|batch_normalization|layer_normalization|normalization|"
    r"dense|multi_head_attention|patch_embedding|patch_merging|patch_expanding|swin_transformer_block)(?:_(\d+))?"
)
_CONSTANTS = re.compile(r"attn_(mask|pos_ind)$")
"""Constants that the windowed attention of the reference stores; they follow from the layer sizes."""

READ_SECONDS, BYTES_PER_SECOND = 20, 10e6
"""A file that takes longer than this, with so much more for its size, is damaged."""


class StoredLayer(NamedTuple):
    """One layer with its arrays."""

    name: str
    kind: str
    """Layer class, spelled as in automatic Keras names."""
    order: tuple[int, int]
    """Sort key that gives the creation order among layers of the same kind."""
    arrays: list[np.ndarray]


def read_layers(path: Path) -> list[StoredLayer]:
    """Reads all layers that have weights.

    Args:
      path: a weights file or full model saved by Keras 2 in HDF5 format (.h5).

    Returns:
      The layers; names are unique.

    Raises:
      CheckpointError: if the file is missing, or is not a Keras 2 HDF5 file.
    """
    _require_end(path)
    return [_layer(name, index, weights) for index, (name, weights) in enumerate(_read_weights(path).items())]


def _require_end(path: Path) -> None:
    """Reads a file in another process first: the HDF5 library never returns from some damaged files, or crashes.

    Raises:
      CheckpointError: if it does.
    """
    program = "import sys, cervseg_jax.reference.hdf5 as hdf5; hdf5.try_to_read(sys.argv[1])"
    seconds = READ_SECONDS + (path.stat().st_size if path.is_file() else 0) / BYTES_PER_SECOND
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:  # noqa: S603 (this program)
        assert reader.stdout is not None  # noqa: S101 (it is a pipe)
        reader.stdout.read(1)  # waits for its imports, which take long on a busy machine
        try:
            code = reader.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            reader.kill()
            raise CheckpointError(f"{path}: is damaged: HDF5 cannot read it within {seconds:.0f} s") from None
    if code < 0:
        raise CheckpointError(f"{path}: is damaged: HDF5 crashes when it reads it (signal {-code})")


def try_to_read(path: str) -> None:
    """Says that it begins, and reads a file without a result; see `_require_end`."""
    print(".", end="", flush=True)
    with contextlib.suppress(CheckpointError):
        _read_weights(Path(path))


def _read_weights(path: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Returns names and arrays by layer; errors as of `read_layers`."""
    try:
        with h5py.File(path, "r") as file:
            group: Any = file.get("model_weights", file)
            if "layer_names" not in group.attrs and "layer_names0" not in group.attrs:
                kind = "a Keras 3 file" if "layers" in group else "not a Keras 2 weights file"
                raise CheckpointError(f"{path}: is {kind} (it has no layer_names)")
            weights_of: dict[str, list[tuple[str, np.ndarray]]] = {}
            for layer in _names(group, "layer_names"):
                for weight in _names(group[layer], "weight_names"):
                    owner = layer if weight.startswith(f"{layer}/") else weight.rpartition("/")[0]
                    leaf = weight.rpartition("/")[2].partition(":")[0]
                    if not _CONSTANTS.search(leaf):
                        array = np.asarray(group[layer][weight])
                        weights_of.setdefault(owner, []).append((weight.partition(":")[0], array))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read as HDF5: {error}") from None
    return weights_of


def _names(group: Any, key: str) -> list[str]:
    """Reads a list of names; Keras splits long ones into numbered attributes."""
    chunks = [group.attrs[key]] if key in group.attrs else []
    while f"{key}{len(chunks)}" in group.attrs:
        chunks.append(group.attrs[f"{key}{len(chunks)}"])
    return [name.decode() if isinstance(name, bytes) else str(name) for chunk in chunks for name in chunk]


def _layer(name: str, index: int, weights: list[tuple[str, np.ndarray]]) -> StoredLayer:
    arrays = [array for _, array in weights]
    automatic = _AUTOMATIC.fullmatch(name)
    if automatic:
        return StoredLayer(name, automatic[1], (0, int(automatic[2] or 0)), arrays)
    leaves = [leaf.rpartition("/")[2] for leaf, _ in weights]
    return StoredLayer(name, _kind(weights[0][0], leaves, arrays), (1, index), arrays)


def _kind(path: str, leaves: list[str], arrays: list[np.ndarray]) -> str:
    """Infers the class of a custom-named layer from its arrays."""
    if path.endswith("query/kernel"):
        return "multi_head_attention"
    if "moving_mean" in leaves:
        return "batch_normalization"
    if "gamma" in leaves:
        return "layer_normalization"
    if "pointwise_kernel" in leaves:
        return "separable_conv2d"
    if "depthwise_kernel" in leaves:
        return "depthwise_conv2d"
    if "kernel" in leaves:
        return "dense" if arrays[0].ndim == 2 else "conv2d"
    return leaves[0]
