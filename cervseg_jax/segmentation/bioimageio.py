"""Packages for programs that run models of bioimage.io, such as Fiji (deepImageJ), QuPath and ilastik.

The format is version 0.5 of the model description at https://bioimage-io.github.io/spec-bioimage-io.
"""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cervseg_jax import __version__
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.files import png_bytes, sha256_of, write_bytes

ONNX_FILE = "model.onnx"
OPSET = 17
"""Version of the ONNX operators."""
DESCRIPTION_FILE = "rdf.yaml"
"""Name that all programs look for."""
TIMESTAMP = "2026-01-01T00:00:00+00:00"
"""Fixed, so that one network gives one file."""
_MIN_SCENE = 64


def write_package(
    path: Path,
    weights: bytes,
    probabilities: Callable[[np.ndarray], Any],
    *,
    image_size: tuple[int, int],
    divisor: int | None,
    maps: Sequence[str],
    nucleus_px: float | None,
) -> None:
    """Writes the package: description, weights, documentation, and a drawn image with its result as a test.

    Args:
      path: the zip file.
      weights: an ONNX file from float32 RGB images [b, h, w, 3] in 0..255 to probabilities [b, h, w, maps].
      probabilities: the same function, for the result of the test.
      image_size: height and width of the test image, in pixels.
      divisor: of which height and width of images are multiples; None for `image_size` only.
      maps: names of the maps.
      nucleus_px: diameter of nuclei that the network expects, in pixels; None if it takes whole images.
    """
    height, width = image_size
    scene = draw_scene(shape=(max(_MIN_SCENE, height), max(_MIN_SCENE, width)), seed=0)
    image = np.ascontiguousarray(scene.image[:height, :width])
    result = np.asarray(probabilities(image[None]), np.float32)
    files = {
        DESCRIPTION_FILE: yaml.safe_dump(
            _description(weights, image_size, divisor, maps), sort_keys=False, allow_unicode=True
        ).encode(),
        ONNX_FILE: weights,
        "README.md": _documentation(maps, divisor, nucleus_px).encode(),
        "test_input.npy": _npy(image[None].astype(np.float32)),
        "test_output.npy": _npy(result),
        "cover.png": png_bytes(np.hstack([image, np.uint8(np.repeat(result[0, ..., :1], 3, axis=2) * 255)])),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    write_bytes(path, content.getvalue())


def _description(
    weights: bytes, image_size: tuple[int, int], divisor: int | None, maps: Sequence[str]
) -> Mapping[str, Any]:
    sizes = [size if divisor is None else {"min": size, "step": divisor} for size in image_size]
    batch: dict[str, Any] = {"type": "batch"} | ({"size": 1} if divisor is None else {})
    image_axes: list[dict[str, Any]] = [
        batch,
        *({"type": "space", "id": name, "size": size} for name, size in zip("yx", sizes, strict=True)),
        {"type": "channel", "channel_names": ["red", "green", "blue"]},
    ]
    map_axes: list[dict[str, Any]] = [
        batch,
        *({"type": "space", "id": name, "size": {"tensor_id": "image", "axis_id": name}} for name in "yx"),
        {"type": "channel", "channel_names": list(maps)},
    ]
    return {
        "format_version": "0.5.4",
        "type": "model",
        "name": "Nuclei in Pap smears",
        "description": "Probabilities of nuclei in images of cervical cells, for research only; not a medical device.",
        "authors": [{"name": "unknown"}],
        "cite": [{"text": "Ronneberger et al. 2015, U-Net", "doi": "10.1007/978-3-319-24574-4_28"}],
        "license": "Apache-2.0",
        "documentation": "README.md",
        "covers": ["cover.png"],
        "tags": ["nuclei", "segmentation", "cytology", "2d", "cervix", "onnx"],
        "timestamp": TIMESTAMP,
        "version": "0.1.0",
        "inputs": [
            {
                "id": "image",
                "description": "RGB, 0..255",
                "axes": image_axes,
                "data": {"type": "float32", "range": [0.0, 255.0]},
                "test_tensor": {"source": "test_input.npy"},
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "description": ", ".join(maps),
                "axes": map_axes,
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": {"source": "test_output.npy"},
            }
        ],
        "weights": {"onnx": {"source": ONNX_FILE, "sha256": sha256_of(weights), "opset_version": OPSET}},
        "config": {"cervseg_jax": {"version": __version__}},
    }


def _documentation(maps: Sequence[str], divisor: int | None, nucleus_px: float | None) -> str:
    size = "of the size in `rdf.yaml`" if divisor is None else f"whose height and width are multiples of {divisor}"
    scale = "" if nucleus_px is None else f", scaled until nuclei are about {nucleus_px:g} pixels across"
    return f"""# Nuclei in Pap smears

For research only. Not a medical device; nothing it finds is a diagnosis.

Input: RGB images, 0..255, {size}{scale}. The network scales the values itself.

Output: probabilities of {", ".join(maps)}. Pixels whose `mask` is above 0.5 belong to nuclei; single nuclei follow by
a watershed.

Before you publish the package, set authors, citation and license in `rdf.yaml`: the license is that of your weights.
"""


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
