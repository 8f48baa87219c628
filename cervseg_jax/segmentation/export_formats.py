"""Files that hold an exported network, and how each is written and loaded again."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jax import export

from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.extras import install_command
from cervseg_jax.files import write_bytes
from cervseg_jax.heads import NUM_MAPS, Head, num_maps
from cervseg_jax.models import MODELS, build_model, padded_size, size_divisor
from cervseg_jax.models.standard import standard_model
from cervseg_jax.runs.weights import Contract, Network
from cervseg_jax.segmentation.bioimageio import ONNX_FILE, OPSET, write_package

PLATFORMS = ("cpu", "cuda", "tpu")
ONNX_PROGRAM = Path(__file__).with_name("keras_to_onnx.py")

Probabilities = Callable[[np.ndarray], Any]
"""From uint8 RGB images [b, h, w, 3] to probabilities [b, h, w, maps]."""


class Format(NamedTuple):
    """A file format."""

    file: str
    write: Callable[[Network, Path], tuple[Probabilities, Mapping[str, Any]]]
    """Writes the file; returns the reloaded function, and entries for `contract.json`: `divisor`, of which height and
    width are multiples, or None for the network's own size, and others."""
    example: str
    """Source of a program that uses the file."""
    max_difference: float = 1e-5
    """Largest accepted difference of probabilities between the reloaded file and the run."""


def build_network(contract: Contract, image_size: tuple[int, int]) -> keras.Model:
    """Returns the network of a contract for an image size, with initial weights."""
    return build_model(
        contract.model_name, image_size=image_size, args=contract.model_args, num_maps=num_maps(contract.heads)
    )


def map_names(heads: Sequence[Head]) -> list[str]:
    """Returns the names of the maps of probabilities.

    Example:
      >>> map_names(["mask", "hover"])
      ['mask', 'hover_0', 'hover_1']
    """
    return [f"{head}_{index}" if NUM_MAPS[head] > 1 else head for head in heads for index in range(NUM_MAPS[head])]


def _free_divisor(contract: Contract) -> int | None:
    """Returns what must divide height and width.

    None for networks that keep their size: those whose weights or layers depend on it, and those that pad their images.
    """
    name, size, args = contract.model_name, contract.image_size, contract.model_args
    if MODELS[name].has_fixed_size or padded_size(name, size, args) != size:
        return None
    return size_divisor(name, args)


def _write_stablehlo(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes a StableHLO program for CPU, CUDA and TPU, for any batch size."""
    _require("export", "flatbuffers")
    divisor = _free_divisor(network.contract)
    height, width = network.contract.image_size if divisor is None else (f"{divisor}*h", f"{divisor}*w")
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
    """Writes a Keras model of Keras' own layers that returns probabilities."""
    contract = network.contract
    divisor = _free_divisor(contract)
    model = build_network(contract, contract.image_size)
    values = network.params | network.model_state
    for variable in model.variables:
        if variable.path in values:
            variable.assign(np.asarray(values[variable.path]))
    standard = standard_model(model, has_free_size=divisor is not None)
    probabilities = keras.layers.Activation("sigmoid", name="probabilities", dtype="float32")(standard.outputs[0])
    keras.Model(standard.inputs[0], probabilities, name=model.name).save(path)
    reloaded: Any = keras.models.load_model(path)
    return reloaded, {"divisor": divisor, "keras_version": keras.__version__}


def _write_onnx(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes an ONNX file by way of the Keras file; networks of free size take any batch size, others one image."""
    _require("onnx", "torch", "onnx", "onnxruntime", "onnxscript")
    height, width = network.contract.image_size
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.keras", Path(folder) / "model.onnx"
        _, metadata = _write_keras(network, source)
        command = [sys.executable, "-P", ONNX_PROGRAM, source, target, str(height), str(width), str(OPSET)]
        environment = os.environ | {"KERAS_BACKEND": "torch"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603 (our own program)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"export: the conversion to ONNX failed: {reason}")
        write_bytes(path, target.read_bytes())
    return _onnx_function(path.read_bytes(), is_single=metadata["divisor"] is None), metadata


def _onnx_function(content: bytes, *, is_single: bool) -> Probabilities:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        batches = np.split(images, len(images)) if is_single else [images]
        return np.concatenate([session.run(None, {"image": batch.astype(np.float32)})[0] for batch in batches])

    return run


def _write_bioimageio(network: Network, path: Path) -> tuple[Probabilities, Mapping[str, Any]]:
    """Writes a package for programs that read bioimage.io models; its weights are an ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / ONNX_FILE
        probabilities, metadata = _write_onnx(network, weights)
        contract = network.contract
        write_package(
            path,
            weights.read_bytes(),
            probabilities,
            image_size=contract.image_size,
            divisor=metadata["divisor"],
            maps=map_names(contract.heads),
            nucleus_px=None if contract.scale is None else contract.scale.nucleus_px,
        )
    with zipfile.ZipFile(path) as archive:
        return _onnx_function(archive.read(ONNX_FILE), is_single=metadata["divisor"] is None), metadata


def _require(extra: str, *packages: str) -> None:
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise ConfigError(f"export: needs an extra: {install_command(extra)}")


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
# Needs Keras 3 with JAX, PyTorch or TensorFlow; KERAS_BACKEND chooses.
import json
import keras
import numpy as np

contract = json.load(open("contract.json"))
network = keras.models.load_model("model.keras")
height, width = contract["image_size"]              # or any multiples of contract["export"]["divisor"], if it has one
images = np.zeros((2, height, width, 3), np.uint8)  # RGB, any number of them
probabilities = network.predict(images)             # float32 [2, height, width, maps]; see contract["export"]["maps"]
""",
    ),
    "onnx": Format(
        "model.onnx",
        _write_onnx,
        """\
# Needs: pip install onnxruntime
import json
import numpy as np
import onnxruntime

contract = json.load(open("contract.json"))
network = onnxruntime.InferenceSession("model.onnx")
height, width = contract["image_size"]               # or any multiples of contract["export"]["divisor"], if it has one
images = np.zeros((1, height, width, 3), np.float32) # RGB, 0..255; several where contract["export"]["divisor"] is set
(probabilities,) = network.run(None, {"image": images})  # [1, height, width, maps]; see contract["export"]["maps"]
""",
        max_difference=1e-4,
    ),
    "bioimageio": Format(
        "model.bioimageio.zip",
        _write_bioimageio,
        """\
# Needs: pip install bioimageio.core onnxruntime
from bioimageio.core import load_description_and_test

print(load_description_and_test("model.bioimageio.zip").validation_summary.status)
""",
        max_difference=1e-4,
    ),
}
"""Formats by name."""
