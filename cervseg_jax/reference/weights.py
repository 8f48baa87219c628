"""The reference implementation's weights in our networks, matched by structure and shape.

Keras numbers layers of one class in the order of their creation (`conv2d_17`), and our networks create theirs in the
same order. Layers that have a name of their own are found by it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from cervseg_jax.errors import CheckpointError, first_few
from cervseg_jax.models import build_with_layers, check_model_args
from cervseg_jax.models.encoders import InputNorm, true_variance
from cervseg_jax.models.layers.blocks import Layers
from cervseg_jax.reference.hdf5 import StoredLayer, read_layers
from cervseg_jax.schema import ModelConfig

_KINDS = {"same_conv2d": "conv2d", "upsample_conv2x2": "conv2d_transpose", "input_norm": "normalization"}
"""Our classes whose weights another class of Keras 2 holds."""

_OWN_NAMES = {
    "basnet": [(r"encoder_stack(\d)_(.+)", r"v2_stack_\1_\2")],
    "u2net": [(r"side0", "u2net_output_sup0"), (r"side(\d)", r"u2net_output_conv_\1"), (r"head", "u2net_output_final")],
}
"""Names in the reference for layers that neither their number nor their place in the file finds."""

MAX_LINES = 12


class Match(NamedTuple):
    """One layer of ours and the stored one that fills it."""

    ours: str
    theirs: str
    shapes: str


class Imported(NamedTuple):
    """A network's values, by variable path, and where they came from."""

    values: dict[str, np.ndarray]
    matches: list[Match]


def import_weights(path: Path, model: ModelConfig) -> Imported:
    """Reads a Keras 2 weights file into a network.

    Args:
      path: the HDF5 file.
      model: the network, as a config describes it.

    Returns:
      Values of all variables, and the pairs of layers.

    Raises:
      CheckpointError: if the file is not readable, or does not fit; the message shows the first differences.
      ConfigError: if the network cannot be built.
    """
    stored = read_layers(path)
    net = Layers("float32")
    bound = check_model_args(model.name, model.image_size, model.args)
    network = build_with_layers(model.name, net, model.image_size, bound)
    ours = [layer for layer in net.created if layer.weights]
    pairs = _pair(model.name, ours, stored)
    differences = _differences(ours, stored, pairs)
    if differences:
        raise CheckpointError(
            f"{path}: does not fit {model.name} with these model.args; the layers in order of creation:\n  "
            + first_few(differences, "\n  ", MAX_LINES)
            + "\nCompare model.args with the config that the file was trained with (cervseg-jax import-config)"
        )
    values = {}
    for layer in ours:
        arrays = pairs[layer.name].arrays
        arrays = true_variance(arrays) if isinstance(layer, InputNorm) else arrays
        values |= {variable.path: array for variable, array in zip(layer.weights, arrays, strict=True)}
    known = {variable.path for layer in ours for variable in layer.weights}
    missing = [v.path for v in network.variables if v.path not in known and "seed_generator" not in v.path]
    if missing:
        raise CheckpointError(f"{path}: nothing is known about {', '.join(missing)}")
    return Imported(
        values, [Match(layer.name, pairs[layer.name].name, _text(pairs[layer.name].arrays)) for layer in ours]
    )


def kind_of(layer: keras.layers.Layer) -> str:
    """Returns the class of a layer as Keras writes it in automatic names.

    Example:
      >>> kind_of(keras.layers.Conv2DTranspose(1, 1))
      'conv2d_transpose'
    """
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    return _KINDS.get(name, name)


def _pair(model: str, ours: list[keras.layers.Layer], stored: list[StoredLayer]) -> dict[str, StoredLayer]:
    by_name = {layer.name: layer for layer in stored}
    pairs: dict[str, StoredLayer] = {}
    for layer in ours:
        for name in _names_of(model, layer.name):
            if name in by_name:
                pairs[layer.name] = by_name.pop(name)
                break
    queues: dict[str, list[StoredLayer]] = {}
    for layer in sorted(by_name.values(), key=lambda layer: layer.order):
        queues.setdefault(layer.kind, []).append(layer)
    for layer in ours:
        queue = queues.get(kind_of(layer), [])
        if layer.name not in pairs and queue:
            pairs[layer.name] = queue.pop(0)
    return pairs


def _names_of(model: str, name: str) -> list[str]:
    """Names that the reference may have for a layer, besides automatic ones."""
    names = [re.sub(pattern, new, name) for pattern, new in _OWN_NAMES.get(model, []) if re.fullmatch(pattern, name)]
    return [*names, name.removeprefix("encoder_")] if name.startswith("encoder_") else names


def _differences(
    ours: list[keras.layers.Layer], stored: list[StoredLayer], pairs: Mapping[str, StoredLayer]
) -> list[str]:
    lines = []
    for layer in ours:
        wanted = _text(layer.weights)
        found = pairs.get(layer.name)
        if found is None:
            lines.append(f"{layer.name} {wanted}: the file has no further {kind_of(layer)}")
        elif _text(found.arrays) != wanted:
            lines.append(f"{layer.name} {wanted}: {found.name} has {_text(found.arrays)}")
    used = {layer.name for layer in pairs.values()}
    lines += [
        f"{layer.name} {_text(layer.arrays)} of the file is left over" for layer in stored if layer.name not in used
    ]
    return lines


def _text(arrays: Sequence[Any]) -> str:
    return " + ".join("x".join(map(str, array.shape)) or "scalar" for array in arrays)
