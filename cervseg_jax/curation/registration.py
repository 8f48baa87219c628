"""Registration of masks with images, from the correlation of a mask with darkness: nuclei are dark."""

from typing import NamedTuple

import cv2
import numpy as np

WORKING_SIDE = 320
"""Pairs are compared at this length of the longer side, in pixels."""

BLOCKS = 5
REACH_PX = 16
"""Search radius for displacements in pixels of the working size, 5 % of the side."""


class Registration(NamedTuple):
    """How well a mask fits its image."""

    agreement: float
    """Correlation of mask and darkness, -1 .. 1."""
    displacement: float
    """Median length of the local displacements between them, as a share of the longer side; 0 if not measurable."""
    drift: float
    """Length of the median displacement vector; large if all blocks are displaced the same way."""
    num_blocks: int
    """Number of blocks whose displacement could be measured."""
    best_turn: str
    """The turn of the mask that fits clearly better than none; empty if there is none."""


def registration(image: np.ndarray, mask: np.ndarray) -> Registration:
    """Compares a mask with its image.

    The mask is cut into blocks; each is moved over the image's darkness, and where it fits best is its
    displacement. Masks of another image agree badly; masks that were warped on their own are displaced locally.

    Args:
      image: uint8 [h, w, 3], RGB.
      mask: [h, w], non-zero for nucleus.

    Returns:
      The comparison; agreement is NaN for an empty or a full mask.
    """
    scale = WORKING_SIDE / max(mask.shape)
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    gray = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
    dark = cv2.GaussianBlur(255.0 - gray.astype(np.float32), (0, 0), 1.0)
    soft = cv2.GaussianBlur(cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
    agreement = _correlation(soft, dark)
    shifts = np.array(_block_shifts(soft, dark)).reshape(-1, 2) / WORKING_SIDE
    turns = {"mirrored": soft[:, ::-1], "upside down": soft[::-1], "turned by 180 degrees": soft[::-1, ::-1]}
    if soft.shape[0] == soft.shape[1]:
        turns |= {"turned by 90 degrees": np.rot90(soft), "turned by 270 degrees": np.rot90(soft, 3)}
    scores = {name: _correlation(turned, dark) for name, turned in turns.items()}
    best = max(scores, key=lambda name: scores[name])
    best_turn = best if scores[best] > max(agreement, 0.0) + 0.2 else ""
    if len(shifts) == 0:
        return Registration(agreement, 0.0, 0.0, 0, best_turn)
    lengths = np.hypot(shifts[:, 0], shifts[:, 1])
    drift = float(np.hypot(*np.median(shifts, axis=0)))
    return Registration(agreement, float(np.median(lengths)), drift, len(shifts), best_turn)


def _block_shifts(soft: np.ndarray, dark: np.ndarray) -> list[tuple[int, int]]:
    height, width = soft.shape
    side = min(height, width) // BLOCKS
    if side < 2 * REACH_PX:
        return []
    wide = cv2.copyMakeBorder(dark, REACH_PX, REACH_PX, REACH_PX, REACH_PX, cv2.BORDER_REPLICATE)
    shifts = []
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            block = soft[top : top + side, left : left + side]
            if not 0.08 < block.mean() < 0.92:
                continue
            around = wide[top : top + side + 2 * REACH_PX, left : left + side + 2 * REACH_PX]
            fit = cv2.matchTemplate(around, np.ascontiguousarray(block), cv2.TM_CCOEFF_NORMED)
            _, best, _, (x, y) = cv2.minMaxLoc(fit)
            if best > 0.4:
                shifts.append((x - REACH_PX, y - REACH_PX))
    return shifts


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 1e-6 else float("nan")
