"""Sheets of the worst, median and best images, with the outlines of truth and prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.files import write_png
from cervseg_jax.plots import PREDICTION_COLOR, TRUTH_COLOR, draw_outline, draw_sheet
from cervseg_jax.schema import DataConfig


def write_sheets(folder: Path, pairs: Sequence[Pair], *, count: int, data: DataConfig) -> None:
    """Writes `worst.png`, `median.png` and `best.png`.

    Args:
      folder: holds the predicted `masks` and receives the sheets.
      pairs: images and truth, the worst first.
      count: images per sheet.
      data: how images and true masks are read.
    """
    middle = max(0, (len(pairs) - count) // 2)
    sheets = {"worst": pairs[:count], "median": pairs[middle : middle + count], "best": pairs[::-1][:count]}
    for title, chosen in sheets.items():
        if chosen:
            rows = [_row(folder, pair, data) for pair in chosen]
            captions = ("image", "truth green, prediction pink", "predicted mask")
            write_png(folder / f"{title}.png", draw_sheet(rows, captions=captions))


def _row(folder: Path, pair: Pair, data: DataConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = read_image(pair.image_path, bit_depth=data.bit_depth)
    truth = read_mask(pair.mask_path, rule=data.mask_rule).mask
    mask = read_mask(folder / "masks" / f"{pair.stem}.png", rule="half_range").mask
    both = draw_outline(image, truth, color=TRUTH_COLOR)
    both = draw_outline(both, mask, color=PREDICTION_COLOR)
    return image, both, np.repeat((mask * 255)[:, :, None], 3, axis=2)
