"""Keras 2 HDF5 files, read as data: names and arrays, nothing is unpickled or executed."""

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
"""Arrays that the reference's windowed attention stores although they follow from its sizes."""


class StoredLayer(NamedTuple):
    """One layer with its arrays."""

    name: str
    kind: str
    """The layer's class, as Keras writes it in automatic names."""
    order: tuple[int, int]
    """Sorts layers of one kind in the order of their creation."""
    arrays: list[np.ndarray]


def read_layers(path: Path) -> list[StoredLayer]:
    """Reads all layers that have weights.

    Args:
      path: a weights file or a full model, as Keras 2 writes them with the ending .h5.

    Returns:
      The layers; names are unique.

    Raises:
      CheckpointError: if it is no such file.
    """
    try:
        with h5py.File(path, "r") as file:
            group: Any = file.get("model_weights", file)
            if "layer_names" not in group.attrs and "layer_names0" not in group.attrs:
                kind = "a Keras 3 file" if "layers" in group else "no weights file of Keras 2"
                raise CheckpointError(f"{path}: is {kind} (it has no layer_names)")
            found: dict[str, list[tuple[str, np.ndarray]]] = {}
            for layer in _names(group, "layer_names"):
                for weight in _names(group[layer], "weight_names"):
                    owner = layer if weight.startswith(f"{layer}/") else weight.rpartition("/")[0]
                    leaf = weight.rpartition("/")[2].partition(":")[0]
                    if not _CONSTANTS.search(leaf):
                        found.setdefault(owner, []).append((weight.partition(":")[0], np.asarray(group[layer][weight])))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read as HDF5: {error}") from None
    return [_layer(name, number, weights) for number, (name, weights) in enumerate(found.items())]


def _names(group: Any, key: str) -> list[str]:
    """Reads a list of names, which Keras divides into numbered parts where it is long."""
    parts = [group.attrs[key]] if key in group.attrs else []
    while f"{key}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{key}{len(parts)}"])
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _layer(name: str, number: int, weights: list[tuple[str, np.ndarray]]) -> StoredLayer:
    arrays = [array for _, array in weights]
    automatic = _AUTOMATIC.fullmatch(name)
    if automatic:
        return StoredLayer(name, automatic[1], (0, int(automatic[2] or 0)), arrays)
    leaves = [leaf.rpartition("/")[2] for leaf, _ in weights]
    return StoredLayer(name, _kind(weights[0][0], leaves, arrays), (1, number), arrays)


def _kind(path: str, leaves: list[str], arrays: list[np.ndarray]) -> str:
    """Tells the class of a layer with a name of its own from what it holds."""
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
