"""Reader for Keras 2 HDF5 weights. Reads names and arrays; never unpickles or executes anything."""

import re
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
    return [_layer(name, index, weights) for index, (name, weights) in enumerate(weights_of.items())]


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
