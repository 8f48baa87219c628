"""Resizing of images and label maps."""

import cv2
import numpy as np


def resize_image(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes by area averaging where it shrinks and bilinearly where it grows; [h, w] or [h, w, c]."""
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes by nearest neighbor, so that no new values appear; [h, w] of any type."""
    if mask.shape == image_size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(image_size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
