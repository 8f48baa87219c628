"""The network as a file that other programs use, weights included; read back and compared before it counts."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jax import export

from cervseg_jax import __version__
from cervseg_jax.components import lookup
from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.files import make_folder, write_bytes, write_json, write_text
from cervseg_jax.heads import num_maps
from cervseg_jax.models import CUSTOM_OBJECTS, MODELS, build_model, functionalize, padded_size, size_divisor
from cervseg_jax.runs.weights import Contract, Network

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_DIFFERENCE = 1e-5
"""Largest difference of probabilities between the reloaded file and the run that is accepted."""
BATCH_SIZES = (1, 3)
"""With which the reloaded file is tried."""

Probabilities = Callable[[np.ndarray], Any]
"""From uint8 RGB images [b, h, w, 3] to probabilities [b, h, w, maps]."""


class Format(NamedTuple):
    """One kind of file."""

    file: str
    write: Callable[[Network, Path], tuple[Probabilities, Mapping[str, Any]]]
    """Writes the file; returns what was read back, and facts."""
    example: str
    """A program that uses it."""


def export_network(network: Network, folder: Path, format_name: str) -> dict[str, Any]:
    """Writes the network, reads it back, and compares it with itself.

    Args:
      network: with its weights.
      folder: receives the file, `contract.json` and `example.py`.
      format_name: a key of `FORMATS`.

    Returns:
      Facts: file, bytes, largest difference, and those of the format.

    Raises:
      ConfigError: for an unknown format, or if its extra is not installed.
      CheckpointError: if what was read back computes something else.
    """
    entry = lookup(FORMATS, format_name, key="--format")
    path = make_folder(folder) / entry.file
    reloaded, facts = entry.write(network, path)
    rng = np.random.default_rng(0)
    difference = 0.0
    sizes = [network.contract.image_size]
    if facts["divisor"] is not None:
        height, width = network.contract.image_size
        sizes.append((height + facts["divisor"], 2 * width))
    for size in sizes:
        wanted = _probabilities_at(network, size)
        for count in BATCH_SIZES:
            images = rng.integers(0, 256, (count, *size, 3), np.uint8)
            difference = max(difference, float(np.abs(np.asarray(reloaded(images)) - wanted(images)).max()))
    if not difference <= MAX_DIFFERENCE:
        raise CheckpointError(
            f"{path}: what was read back differs from the run by {difference:.2g}, more than {MAX_DIFFERENCE}"
        )
    facts = {
        "file": entry.file,
        "bytes": path.stat().st_size,
        "max_difference": difference,
        **facts,
        "cervseg_jax_version": __version__,
    }
    write_json(folder / "contract.json", {**json.loads(network.contract.model_dump_json()), "export": facts})
    write_text(folder / "example.py", entry.example)
    return facts


def _build(contract: Contract, image_size: tuple[int, int]) -> keras.Model:
    heads, args = contract.heads, contract.model_args
    return build_model(contract.model_name, image_size=image_size, args=args, num_maps=num_maps(heads))


def _probabilities_at(network: Network, image_size: tuple[int, int]) -> Probabilities:
    """Returns the network for images of a size."""
    apply = network.apply
    if image_size != network.contract.image_size:
        apply, _, _ = functionalize(_build(network.contract, image_size))

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        (logits, *_), _ = apply(network.params, network.model_state, images)
        return jax.nn.sigmoid(logits)

    return probabilities


def _write_stablehlo(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes a program for CPU, CUDA and TPU; any number of images, and any size that the network divides.

    Networks whose weights or layers depend on the image's size, and those that pad their images, keep their size.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError(f"export: needs an extra: {install_command('export')}")
    contract = network.contract
    name, size, args = contract.model_name, contract.image_size, contract.model_args
    divisor = None
    if not MODELS[name].has_fixed_size and padded_size(name, size, args) == size:
        divisor = size_divisor(name, args)
    height, width = size if divisor is None else (f"{divisor}*h", f"{divisor}*w")
    shape = export.symbolic_shape(f"b, {height}, {width}, 3")
    exported = export.export(_probabilities_at(network, size), platforms=PLATFORMS)  # pyright: ignore
    write_bytes(path, bytes(exported(jax.ShapeDtypeStruct(shape, np.uint8)).serialize()))
    reloaded = export.deserialize(bytearray(path.read_bytes()))
    return reloaded.call, {"platforms": list(PLATFORMS), "divisor": divisor, "jax_version": jax.__version__}


def _write_keras(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes a Keras model whose output are probabilities."""
    model = _build(network.contract, network.contract.image_size)
    values = network.params | network.model_state
    for variable in model.variables:
        if variable.path in values:
            variable.assign(np.asarray(values[variable.path]))
    probabilities = keras.layers.Activation("sigmoid", name="probabilities", dtype="float32")(model.outputs[0])
    keras.Model(model.inputs[0], probabilities, name=model.name).save(path)
    reloaded: Any = keras.models.load_model(path, custom_objects=dict(CUSTOM_OBJECTS))
    return reloaded, {"divisor": None, "keras_version": keras.__version__}


FORMATS: Mapping[str, Format] = {
    "stablehlo": Format(
        "model.stablehlo",
        _write_stablehlo,
        """\
import json, jax, numpy as np
from jax import export

contract = json.load(open("contract.json"))
network = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
height, width = contract["image_size"]              # or any multiples of contract["export"]["divisor"], if it has one
images = np.zeros((2, height, width, 3), np.uint8)  # RGB, any number of them
probabilities = network.call(images)                # float32 [2, height, width, maps]; maps as in contract["heads"]
""",
    ),
    "keras": Format(
        "model.keras",
        _write_keras,
        """\
import json
import numpy as np
from cervseg_jax.models import CUSTOM_OBJECTS  # before keras: it chooses the JAX backend
import keras

contract = json.load(open("contract.json"))
network = keras.models.load_model("model.keras", custom_objects=CUSTOM_OBJECTS)
height, width = contract["image_size"]
images = np.zeros((2, height, width, 3), np.uint8)  # RGB, any number of them
probabilities = network.predict(images)             # float32 [2, height, width, maps]; maps as in contract["heads"]
""",
    ),
}
"""Formats by name."""
