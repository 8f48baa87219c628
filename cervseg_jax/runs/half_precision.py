"""Weights in half precision, for folders that are shipped."""

import io
from pathlib import Path

import numpy as np

from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import make_folder, sha256_of, write_bytes, write_text
from cervseg_jax.runs.weights import CONFIDENCE_FILE, POSTPROCESSING_FILE, read_arrays, read_contract


def save_half_precision(folder: Path, target: Path) -> None:
    """Copies a weights folder with trainable variables in float16, which halves its size.

    BatchNorm statistics stay float32, as variances may exceed the range of float16.

    Args:
      folder: folder written by `save_weights`.
      target: the copy; created if missing.

    Raises:
      CheckpointError: if a file is missing or damaged, or a value does not fit float16.
    """
    contract = read_contract(folder)
    with np.errstate(over="ignore"):  # checked below
        arrays = {
            name: values if "moving_" in name else values.astype(np.float16)
            for name, values in read_arrays(folder, contract).items()
        }
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise CheckpointError(f"{folder}: has values beyond the range of float16")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore
    data = buffer.getvalue()
    make_folder(target)
    write_bytes(target / contract.weights_file, data)
    copy = contract.model_copy(update={"weights_sha256": sha256_of(data)})
    write_text(target / "contract.json", copy.model_dump_json(indent=2) + "\n")
    for name in (POSTPROCESSING_FILE, CONFIDENCE_FILE):
        if (folder / name).exists():
            write_bytes(target / name, (folder / name).read_bytes())
