"""Resizing of images and label maps."""

import cv2
import numpy as np


def resize_image(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w] or [h, w, c]: area averaging if neither side grows, else bilinear interpolation."""
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w] of any dtype by nearest neighbor, which adds no new values."""
    if mask.shape == image_size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(image_size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
