"""Resizing and padding of images and label maps."""

import cv2
import numpy as np

MAX_CHANNELS = 4
"""Channels that OpenCV averages over areas at once."""


def resize_image(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w] or [h, w, c]: area averaging if neither side grows, else bilinear interpolation."""
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    if image.ndim == 3 and image.shape[2] > MAX_CHANNELS:
        parts = (image[..., first : first + MAX_CHANNELS] for first in range(0, image.shape[2], MAX_CHANNELS))
        resized = [resize_image(np.ascontiguousarray(part), image_size) for part in parts]
        return np.concatenate([part.reshape(height, width, -1) for part in resized], axis=2)
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w] or [h, w, layers] of any dtype by nearest neighbor, which adds no new values."""
    if mask.shape[:2] == image_size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(image_size, mask.shape[:2], strict=True)
    )
    return mask[np.ix_(rows, columns)]


def scaled_size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Returns height and width of an image after scaling."""
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def border_color(image: np.ndarray) -> tuple[float, ...]:
    """Returns the median color of the outermost pixels: the slide's background in most images."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return tuple(float(value) for value in np.median(border, axis=0))
