"""Smooth random texture for synthetic images."""

import cv2
import numpy as np


class NoiseBank:
    """Smooth noise fields of the image's size, generated once and read at random offsets."""

    def __init__(self, shape: tuple[int, int], rng: np.random.Generator) -> None:
        """Generates the fields for images of height and width `shape`."""
        self._fields = {scale: _smooth_noise(shape, scale, rng) for scale in (1.0, 2.5, 8.0, 40.0)}

    def read(self, scale: float, window: tuple[slice, slice], rng: np.random.Generator) -> np.ndarray:
        """Returns noise of mean 0 and deviation 1 for a window, at an offset of its own for each object."""
        field = self._fields[scale]
        rows = _mirrored(window[0], field.shape[0], int(rng.integers(field.shape[0])))
        columns = _mirrored(window[1], field.shape[1], int(rng.integers(field.shape[1])))
        return field[np.ix_(rows, columns)]

    def whole(self, scale: float) -> np.ndarray:
        """Returns the whole field."""
        return self._fields[scale]


def _mirrored(window: slice, size: int, shift: int) -> np.ndarray:
    """Returns indices of a shifted window, mirrored at the border so that there is no seam."""
    indices = (np.arange(window.start, window.stop) + shift) % (2 * size)
    return np.where(indices < size, indices, 2 * size - 1 - indices)


def _smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Returns Gaussian noise smoothed over `scale` pixels; large scales are generated coarsely and enlarged."""
    step = max(1, int(scale / 3))
    coarse = rng.standard_normal((shape[0] // step + 8, shape[1] // step + 8), np.float32)
    coarse = cv2.GaussianBlur(coarse, (0, 0), scale / step)
    field = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-6)
