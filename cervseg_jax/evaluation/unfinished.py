"""Scores of single images on the disk, so that an evaluation that was cut off goes on where it stopped."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cervseg_jax.data.pairs import Pair
from cervseg_jax.evaluation.nuclei import NucleusScores
from cervseg_jax.evaluation.pixels import PixelScores
from cervseg_jax.files import make_folder, sha256_of, write_bytes
from cervseg_jax.segmentation.calibration import Judged

FOLDER = "unfinished"


class ImageScore(NamedTuple):
    """Scores of one image."""

    pixels: PixelScores
    uncertainty: np.ndarray
    """Of the prediction in bits, float64 [1]."""
    probabilities: np.ndarray
    """Of its nuclei, float64 [n]; empty without a confidence."""
    nuclei: NucleusScores | None = None
    """None without instance labels."""
    judged: Judged | None = None
    """None without instance labels or without a confidence."""


class UnfinishedScores:
    """The scores of an evaluation until it has ended; each process stores those of its images."""

    def __init__(self, folder: Path, key: str) -> None:
        """Opens the folder `unfinished`.

        Args:
          folder: where the evaluation writes its results.
          key: what the scores depend on besides the files of an image: weights and settings.
        """
        self._folder = make_folder(folder / FOLDER)
        self._key = key
        self._keys: dict[str, str] = {}

    def load(self, pair: Pair, template: ImageScore) -> ImageScore | None:
        """Returns what an earlier call has stored.

        Args:
          pair: the image.
          template: scores of the same structure.

        Returns:
          The scores; None if there are none, or they are of other weights, settings or files, or damaged.
        """
        if not self._path(pair).is_file():
            return None
        self.begin(pair, template)
        leaves, structure = jax.tree.flatten(template)
        try:
            with np.load(io.BytesIO(self._path(pair).read_bytes()), allow_pickle=False) as stored:
                if str(stored["key"]) != self._keys[pair.stem]:
                    return None
                return jax.tree.unflatten(structure, [stored[str(index)] for index in range(len(leaves))])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def begin(self, pair: Pair, template: ImageScore) -> None:
        """Notes the files of an image before it is predicted, so that `save` stores what was scored."""
        paths = (pair.image_path, pair.mask_path, pair.instances_path, pair.covered_path)
        digests = [sha256_of(path.read_bytes()) for path in paths if path]
        structure = str(jax.tree.structure(template))
        self._keys[pair.stem] = sha256_of("".join([self._key, structure, *digests]).encode())

    def save(self, pair: Pair, score: ImageScore) -> None:
        """Stores the scores of an image after `begin`, and after its predictions have been written."""
        buffer = io.BytesIO()
        arrays = {str(index): np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(score))}
        np.savez(buffer, key=np.array(self._keys[pair.stem]), **arrays)  # pyright: ignore[reportArgumentType]
        write_bytes(self._path(pair), buffer.getvalue(), durable=False)

    @staticmethod
    def remove(folder: Path) -> None:
        """Removes the scores of all processes, when the results are written."""
        shutil.rmtree(folder / FOLDER, ignore_errors=True)

    def _path(self, pair: Pair) -> Path:
        return self._folder / f"{pair.stem}.npz"
