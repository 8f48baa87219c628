"""Files of a dataset that keep partly covered nuclei whole: `SPLIT/covered/STEM.npz`, beside `SPLIT/instances`.

Each holds one array `covered` [layers, h, w] of unsigned integers, see `extents`. An image without a file has no
covered nuclei, or its annotation does not tell: the label map is then the whole truth.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.data.decode import read_bytes
from cervseg_jax.errors import DataError
from cervseg_jax.files import make_folder, write_bytes

FOLDER = "covered"
_KEY = "covered"


def covered_paths(split: Path) -> list[Path]:
    """Returns the files of a split's folder; none where it has no such folder."""
    return sorted(path for path in (split / FOLDER).glob("*.npz") if not path.name.startswith("."))


def save_covered(split: Path, stem: str, covered: Sequence[np.ndarray]) -> None:
    """Writes the label maps of an image's partly covered nuclei; removes the file where there are none.

    Args:
      split: folder of the split.
      stem: stem of the image.
      covered: label maps [h, w] with the labels of `instances`.
    """
    path = split / FOLDER / f"{stem}.npz"
    if not covered:
        path.unlink(missing_ok=True)
        return
    layers = np.stack(list(covered))
    layers = layers.astype(np.uint16 if layers.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{_KEY: layers})  # pyright: ignore
    make_folder(path.parent)
    write_bytes(path, buffer.getvalue(), durable=False)


def load_covered(path: Path) -> tuple[np.ndarray, ...]:
    """Reads what `save_covered` wrote, int32 [h, w] each.

    Raises:
      DataError: if the file cannot be read or holds something else.
    """
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            layers = stored[_KEY]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: holds no label maps of covered nuclei: {error}") from None
    if layers.ndim != 3 or layers.dtype.kind not in "ui" or layers.max(initial=0) > np.iinfo(np.int32).max:
        raise DataError(f"{path}: must hold integers [layers, h, w], got {layers.dtype} {list(layers.shape)}")
    return tuple(layers.astype(np.int32))
