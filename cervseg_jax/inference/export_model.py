"""The network as a file that other programs run without this package: StableHLO, weights included."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from cervseg_jax import __version__
from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.files import make_folder, write_bytes, write_json, write_text
from cervseg_jax.weights import Network

PLATFORMS = ("cpu", "cuda", "tpu")
FILE = "model.stablehlo"
MAX_DIFFERENCE = 1e-5
"""Largest difference of probabilities between the reloaded file and the run that is accepted."""
BATCH_SIZES = (1, 3)
"""With which the reloaded file is tried."""

USAGE = """\
import json, jax, numpy as np
from jax import export

contract = json.load(open("contract.json"))
network = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
height, width = contract["image_size"]
images = np.zeros((2, height, width, 3), np.uint8)  # RGB, any number of them
probabilities = network.call(images)                # float32 [2, height, width, maps]; maps as in contract["heads"]
"""


def export_stablehlo(network: Network, folder: Path) -> dict[str, Any]:
    """Writes the network, reads it back, and compares it with itself.

    The file takes uint8 RGB images [b, h, w, 3] at the network's size, b being free, and returns probabilities
    [b, h, w, maps]. It runs on CPU, CUDA and TPU.

    Args:
      network: with its weights.
      folder: receives the file, its contract and an example of its use.

    Returns:
      Facts: platforms, bytes, largest difference.

    Raises:
      ConfigError: if the extra `export` is not installed.
      CheckpointError: if what was read back computes something else.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("export: needs an extra: pip install 'cervseg-jax[export]'")
    params, model_state = network.params, network.model_state

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        (logits, *_), _ = network.apply(params, model_state, images)
        return jax.nn.sigmoid(logits)

    height, width = network.contract.image_size
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, height, width, 3), np.uint8)
    data = bytes(export.export(probabilities, platforms=PLATFORMS)(shape).serialize())
    make_folder(folder)
    write_bytes(folder / FILE, data)
    reloaded = export.deserialize(bytearray((folder / FILE).read_bytes()))
    rng = np.random.default_rng(0)
    difference = 0.0
    for count in BATCH_SIZES:
        images = rng.integers(0, 256, (count, height, width, 3), np.uint8)
        got, want = reloaded.call(images), probabilities(images)
        difference = max(difference, float(np.abs(np.asarray(got) - np.asarray(want)).max()))
    if not difference <= MAX_DIFFERENCE:
        raise CheckpointError(
            f"{folder / FILE}: what was read back differs from the run by {difference:.2g}, more than {MAX_DIFFERENCE}"
        )
    facts = {
        "platforms": list(PLATFORMS),
        "bytes": len(data),
        "max_difference": difference,
        "jax_version": jax.__version__,
        "cervseg_jax_version": __version__,
    }
    write_json(folder / "contract.json", {**json.loads(network.contract.model_dump_json()), "export": facts})
    write_text(folder / "example.py", USAGE)
    return facts
