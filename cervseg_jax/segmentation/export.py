"""Export of the network with its weights to a file for other programs, which is read back and compared."""

from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax import __version__
from cervseg_jax.components import lookup
from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import make_folder, write_json, write_text
from cervseg_jax.models import functionalize
from cervseg_jax.runs.weights import Network
from cervseg_jax.segmentation.export_formats import FORMATS, Probabilities, build_network, map_names
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import make_predictor

BATCH_SIZES = (1, 3)
"""Batch sizes that are compared."""

OUTPUT = "probabilities in [0, 1], float32 [batch, height, width, maps]; not logits: the sigmoid is part of the file"


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
    if not difference <= entry.max_difference:
        raise CheckpointError(
            f"{path}: the reloaded file differs from the run by {difference:.2g}, more than {entry.max_difference}"
        )
    metadata = {
        "file": entry.file,
        "bytes": path.stat().st_size,
        "max_difference": difference,
        **metadata,
        "output": OUTPUT,
        "maps": map_names(network.contract.heads),
        "postprocessing": postprocessing.to_json(),
        "cervseg_jax_version": __version__,
    }
    contract = network.contract.model_dump(mode="json", exclude={"output"})  # of the network without the sigmoid
    write_json(folder / "contract.json", {**contract, "export": metadata})
    write_text(folder / "example.py", entry.example)
    return metadata


def _largest_difference(reloaded: Probabilities, network: Network) -> float:
    """Compares probabilities of random images with those of the segmenter, in batches of several sizes.

    Exported files hold XLA's convolutions. Those for CPUs round differently, by more than is accepted for large
    kernels, so the segmenter's prediction is made with XLA's here as well.
    """
    rng = np.random.default_rng(0)
    predictor = make_predictor([network], batch_size=max(BATCH_SIZES), backend="xla")
    images = rng.integers(0, 256, (predictor.batch_size, *network.contract.image_size, 3), np.uint8)
    expected = predictor.predict(images)
    return max(float(np.abs(np.asarray(reloaded(images[:count])) - expected[:count]).max()) for count in BATCH_SIZES)


def _at_size(network: Network, image_size: tuple[int, int]) -> Network:
    """Returns the network for another image size, with the same weights."""
    if image_size == network.contract.image_size:
        return network
    contract = network.contract.model_copy(update={"image_size": image_size})
    apply, _, _ = functionalize(build_network(contract, image_size))
    return Network(contract, apply, network.params, network.model_state)
