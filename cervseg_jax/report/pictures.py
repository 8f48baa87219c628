"""Draws thumbnails and transparent layers, and encodes them as data URIs."""

import base64

import cv2
import numpy as np

from cervseg_jax.data.resize import resize_image, resize_mask
from cervseg_jax.label_maps import inner_borders
from cervseg_jax.plots import PREDICTION_COLOR, TRUTH_COLOR, draw_outline

THUMBNAIL_PX = 168
LAYER_PX = 640
"""Maximum length of the longer side of a layer."""
MISSED_COLOR = (240, 160, 0)
_INSTANCE_COLORS = np.array(
    [(230, 60, 60), (60, 150, 240), (70, 190, 90), (245, 170, 40), (170, 90, 220), (30, 190, 190), (240, 120, 180)]
)


def fitting_size(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Returns height and width of a picture whose longer side is at most `longest`.

    Example:
      >>> fitting_size((100, 400, 3), 200)
      (50, 200)
    """
    scale = min(1.0, longest / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def jpeg_uri(image: np.ndarray, *, quality: int) -> str:
    """Returns uint8 RGB [h, w, 3] as a data URI."""
    _, packed = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _uri("jpeg", packed)


def png_uri(image: np.ndarray) -> str:
    """Returns uint8 [h, w], or RGBA [h, w, 4], as a data URI."""
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0, 3]]
    _, packed = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return _uri("png", packed)


def thumbnail(image: np.ndarray, truth: np.ndarray | None, mask: np.ndarray) -> str:
    """Returns a thumbnail with the outlines of truth and prediction, as a JPEG data URI.

    Args:
      image: uint8 RGB [h, w, 3].
      truth: 0 or 1, [h, w]; None if unknown.
      mask: the prediction, 0 or 1, [h, w].
    """
    size = fitting_size(image.shape, THUMBNAIL_PX)
    small = resize_image(image, size)
    if truth is not None:
        small = draw_outline(small, resize_mask(truth, size), color=TRUTH_COLOR)
    return jpeg_uri(draw_outline(small, resize_mask(mask, size), color=PREDICTION_COLOR), quality=80)


def layers(
    image: np.ndarray,
    truth: np.ndarray | None,
    mask: np.ndarray,
    probabilities: np.ndarray | None,
    instances: np.ndarray | None,
) -> dict[str, str]:
    """Returns the layers of the viewer by name, as data URIs; all but the image are transparent.

    Args:
      image: uint8 RGB [h, w, 3].
      truth: 0 or 1, [h, w]; None if unknown.
      mask: the prediction, 0 or 1, [h, w].
      probabilities: uint8 [h, w], 255 for 1.0; None if they were not stored.
      instances: integer labels [h, w], 0 for background; None without instances.
    """
    size = fitting_size(image.shape, LAYER_PX)
    predicted = resize_mask(mask, size) > 0
    uris = {"image": jpeg_uri(resize_image(image, size), quality=85)}
    actual = None if truth is None else resize_mask(truth, size) > 0
    if actual is not None:
        uris["truth"] = png_uri(_outlined(actual, TRUTH_COLOR))
    uris["prediction"] = png_uri(_outlined(predicted, PREDICTION_COLOR))
    if actual is not None:
        wrong = np.zeros((*size, 4), np.uint8)
        wrong[predicted & ~actual] = (*PREDICTION_COLOR, 190)
        wrong[~predicted & actual] = (*MISSED_COLOR, 210)
        uris["difference"] = png_uri(wrong)
    if probabilities is not None:
        uris["probability"] = png_uri(_heat(resize_image(probabilities, size)))
    if instances is not None:
        uris["instances"] = png_uri(_colored(resize_mask(instances, size)))
    return uris


def _outlined(inside: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    picture = np.zeros((*inside.shape, 4), np.uint8)
    picture[inside] = (*color, 45)
    border = inner_borders(np.pad(inside, 1))[1:-1, 1:-1]  # padded: outlines are closed at the edge of the image
    picture[border] = (*color, 255)
    return picture


def _heat(probabilities: np.ndarray) -> np.ndarray:
    """Maps probabilities to colors and opacity; 16 levels keep the PNG small."""
    steps = np.clip(probabilities.astype(int) // 16 * 17, 0, 255).astype(np.uint8)
    picture = np.zeros((*steps.shape, 4), np.uint8)
    picture[..., :3] = cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO)[:, :, ::-1]
    picture[..., 3] = steps // 5 * 4
    return picture


def _colored(labels: np.ndarray) -> np.ndarray:
    picture = np.zeros((*labels.shape, 4), np.uint8)
    inside = labels > 0
    picture[inside, :3] = _INSTANCE_COLORS[labels[inside] % len(_INSTANCE_COLORS)]
    picture[inside, 3] = 110
    picture[inner_borders(labels), 3] = 255
    return picture


def _uri(kind: str, packed: np.ndarray) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(packed.tobytes()).decode("ascii")
