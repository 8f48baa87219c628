"""Export of the network with its weights to a file for other programs, which is read back and compared."""

import importlib.util
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
from cervseg_jax.heads import NUM_MAPS, num_maps
from cervseg_jax.models import CUSTOM_OBJECTS, MODELS, build_model, functionalize, padded_size, size_divisor
from cervseg_jax.runs.weights import Contract, Network
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import make_predictor

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_DIFFERENCE = 1e-5
"""Largest accepted difference of probabilities between the reloaded file and the run."""
BATCH_SIZES = (1, 3)
"""Batch sizes that are compared."""

OUTPUT = "probabilities in [0, 1], float32 [batch, height, width, maps]; not logits: the sigmoid is part of the file"

Probabilities = Callable[[np.ndarray], Any]
"""From uint8 RGB images [b, h, w, 3] to probabilities [b, h, w, maps]."""


class Format(NamedTuple):
    """A file format."""

    file: str
    write: Callable[[Network, Path], tuple[Probabilities, Mapping[str, Any]]]
    """Writes the file; returns the reloaded function, and entries for `contract.json`."""
    example: str
    """Source of a program that uses the file."""


def export_network(
    network: Network, folder: Path, format_name: str, *, postprocessing: Postprocessing
) -> dict[str, Any]:
    """Exports a network, reads the file back, and compares its predictions with those of `infer`.

    Args:
      network: network with its weights.
      folder: receives the file, `contract.json` and `example.py`.
      format_name: a key of `FORMATS`.
      postprocessing: threshold and watershed parameters, which `contract.json` states.

    Returns:
      File name, bytes, largest difference of probabilities, and entries of the format.

    Raises:
      ConfigError: for an unknown format, or if its extra is not installed.
      CheckpointError: if the reloaded file predicts something else.
    """
    entry = lookup(FORMATS, format_name, key="--format")
    path = make_folder(folder) / entry.file
    reloaded, metadata = entry.write(network, path)
    sizes = [network.contract.image_size]
    if metadata["divisor"] is not None:
        height, width = network.contract.image_size
        sizes.append((height + metadata["divisor"], 2 * width))
    difference = max(_largest_difference(reloaded, _at_size(network, size)) for size in sizes)
    if not difference <= MAX_DIFFERENCE:
        raise CheckpointError(
            f"{path}: the reloaded file differs from the run by {difference:.2g}, more than {MAX_DIFFERENCE}"
        )
    metadata = {
        "file": entry.file,
        "bytes": path.stat().st_size,
        "max_difference": difference,
        **metadata,
        "output": OUTPUT,
        "maps": [
            f"{head}_{index}" if NUM_MAPS[head] > 1 else head
            for head in network.contract.heads
            for index in range(NUM_MAPS[head])
        ],
        "postprocessing": postprocessing.to_json(),
        "cervseg_jax_version": __version__,
    }
    contract = network.contract.model_dump(mode="json", exclude={"output"})  # of the network without the sigmoid
    write_json(folder / "contract.json", {**contract, "export": metadata})
    write_text(folder / "example.py", entry.example)
    return metadata


def _largest_difference(reloaded: Probabilities, network: Network) -> float:
    """Compares probabilities of random images with those of the segmenter, in batches of several sizes.

    Exported files hold XLA's convolutions. Those for CPUs round differently, by more than `MAX_DIFFERENCE` for large
    kernels, so the segmenter's prediction is made with XLA's here as well.
    """
    rng = np.random.default_rng(0)
    predictor = make_predictor([network], batch_size=max(BATCH_SIZES), backend="xla")
    images = rng.integers(0, 256, (predictor.batch_size, *network.contract.image_size, 3), np.uint8)
    expected = predictor.predict(images)
    return max(float(np.abs(np.asarray(reloaded(images[:count])) - expected[:count]).max()) for count in BATCH_SIZES)


def _build(contract: Contract, image_size: tuple[int, int]) -> keras.Model:
    heads, args = contract.heads, contract.model_args
    return build_model(contract.model_name, image_size=image_size, args=args, num_maps=num_maps(heads))


def _at_size(network: Network, image_size: tuple[int, int]) -> Network:
    """Returns the network for another image size, with the same weights."""
    if image_size == network.contract.image_size:
        return network
    contract = network.contract.model_copy(update={"image_size": image_size})
    apply, _, _ = functionalize(_build(contract, image_size))
    return Network(contract, apply, network.params, network.model_state)


def _write_stablehlo(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes a StableHLO program for CPU, CUDA and TPU; batch size and image size are free.

    Height and width must be multiples of the network's divisor. Networks whose weights or layers depend on the image
    size, and those that pad their images, keep their size.
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

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        (logits, *_), _ = network.apply(network.params, network.model_state, images)
        return jax.nn.sigmoid(logits)

    exported = export.export(probabilities, platforms=PLATFORMS)  # pyright: ignore
    write_bytes(path, bytes(exported(jax.ShapeDtypeStruct(shape, np.uint8)).serialize()))
    reloaded = export.deserialize(bytearray(path.read_bytes()))
    return reloaded.call, {"platforms": list(PLATFORMS), "divisor": divisor, "jax_version": jax.__version__}


def _write_keras(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes a Keras model that returns probabilities."""
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
# Needs JAX and one package that JAX does not install by itself: pip install jax flatbuffers
import json, jax, numpy as np
from jax import export

contract = json.load(open("contract.json"))
network = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
height, width = contract["image_size"]              # or any multiples of contract["export"]["divisor"], if it has one
images = np.zeros((2, height, width, 3), np.uint8)  # RGB, any number of them
probabilities = network.call(images)                # float32 [2, height, width, maps]; see contract["export"]["maps"]
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
probabilities = network.predict(images)             # float32 [2, height, width, maps]; see contract["export"]["maps"]
""",
    ),
}
"""Formats by name."""
