"""Import of reference weights from Keras 2 files.

Keras numbers the layers of each class in creation order (`conv2d_17`), and the networks here create their layers in
the same order, so automatically named layers are matched by class and position. Layers with custom names are matched
by name.
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
"""Layer classes of this package whose weights are stored under another class in Keras 2."""

_OWN_NAMES = {
    "basnet": [(r"encoder_stack(\d)_(.+)", r"v2_stack_\1_\2")],
    "u2net": [(r"side0", "u2net_output_sup0"), (r"side(\d)", r"u2net_output_conv_\1"), (r"head", "u2net_output_final")],
}
"""Patterns that rename layers, by model, where creation order does not identify the stored layer."""

MAX_LINES = 12


class Match(NamedTuple):
    """A network layer and the stored layer that it is loaded from."""

    layer: str
    stored: str
    shapes: str


class Imported(NamedTuple):
    """Values by variable path, and the layers they were read from."""

    values: dict[str, np.ndarray]
    matches: list[Match]


def import_weights(path: Path, model: ModelConfig) -> Imported:
    """Reads a Keras 2 weights file into a network.

    Args:
      path: the HDF5 file.
      model: the `model` section of a config.

    Returns:
      Values of all variables, and the matched layers.

    Raises:
      CheckpointError: if the file cannot be read or does not match the network; lists the first differences.
      ConfigError: if the network cannot be built.
    """
    stored = read_layers(path)
    net = Layers("float32")
    bound = check_model_args(model.name, model.image_size, model.args)
    network = build_with_layers(model.name, net, model.image_size, bound)
    layers = [layer for layer in net.created if layer.weights]
    pairs = _pair(model.name, layers, stored)
    differences = _differences(layers, stored, pairs)
    if differences:
        raise CheckpointError(
            f"{path}: does not match {model.name} with these model.args; differences in creation order:\n  "
            + first_few(differences, "\n  ", MAX_LINES)
            + "\nCompare model.args with those of the config used for training (see cervseg-jax import-config)"
        )
    values = {}
    for layer in layers:
        arrays = pairs[layer.name].arrays
        arrays = true_variance(arrays) if isinstance(layer, InputNorm) else arrays
        values |= {variable.path: array for variable, array in zip(layer.weights, arrays, strict=True)}
    known = {variable.path for layer in layers for variable in layer.weights}
    missing = [v.path for v in network.variables if v.path not in known and "seed_generator" not in v.path]
    if missing:
        raise CheckpointError(f"{path}: the file has no weights for {', '.join(missing)}")
    matches = [Match(layer.name, pairs[layer.name].name, _shapes(pairs[layer.name].arrays)) for layer in layers]
    return Imported(values, matches)


def kind_of(layer: keras.layers.Layer) -> str:
    """Returns the class of a layer, spelled as in automatic Keras names.

    Example:
      >>> kind_of(keras.layers.Conv2DTranspose(1, 1))
      'conv2d_transpose'
    """
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    return _KINDS.get(name, name)


def _pair(model: str, layers: list[keras.layers.Layer], stored: list[StoredLayer]) -> dict[str, StoredLayer]:
    by_name = {layer.name: layer for layer in stored}
    pairs: dict[str, StoredLayer] = {}
    for layer in layers:
        for name in _names_of(model, layer.name):
            if name in by_name:
                pairs[layer.name] = by_name.pop(name)
                break
    queues: dict[str, list[StoredLayer]] = {}
    for layer in sorted(by_name.values(), key=lambda layer: layer.order):
        queues.setdefault(layer.kind, []).append(layer)
    for layer in layers:
        queue = queues.get(kind_of(layer), [])
        if layer.name not in pairs and queue:
            pairs[layer.name] = queue.pop(0)
    return pairs


def _names_of(model: str, name: str) -> list[str]:
    """Returns custom names that the reference may use for a layer."""
    names = [re.sub(pattern, new, name) for pattern, new in _OWN_NAMES.get(model, []) if re.fullmatch(pattern, name)]
    return [*names, name.removeprefix("encoder_")] if name.startswith("encoder_") else names


def _differences(
    layers: list[keras.layers.Layer], stored: list[StoredLayer], pairs: Mapping[str, StoredLayer]
) -> list[str]:
    lines = []
    for layer in layers:
        expected = _shapes(layer.weights)
        match = pairs.get(layer.name)
        if match is None:
            lines.append(f"{layer.name} {expected}: the file has no further {kind_of(layer)}")
        elif _shapes(match.arrays) != expected:
            lines.append(f"{layer.name} {expected}: {match.name} has {_shapes(match.arrays)}")
    used = {layer.name for layer in pairs.values()}
    unused = [layer for layer in stored if layer.name not in used]
    lines += [f"{layer.name} {_shapes(layer.arrays)} of the file is not used" for layer in unused]
    return lines


def _shapes(arrays: Sequence[Any]) -> str:
    return " + ".join("x".join(map(str, array.shape)) or "scalar" for array in arrays)
