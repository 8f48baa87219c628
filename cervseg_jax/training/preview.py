"""Masks of a few validation images after each epoch."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.source import Pair
from cervseg_jax.files import make_folder, write_png
from cervseg_jax.inference.predict import predict_images
from cervseg_jax.plots import TRUTH_COLOUR, draw_overlay, draw_sheet
from cervseg_jax.sections import Config
from cervseg_jax.training.compiled import Compiled
from cervseg_jax.training.state import TrainState


def write_previews(folder: Path, config: Config, compiled: Compiled, state: TrainState, pairs: Sequence[Pair]) -> None:
    """Writes the masks of the first `infer.num_infer_images` pairs, and a sheet that shows them beside the truth.

    Args:
      folder: the epoch's folder.
      config: the recipe.
      compiled: the functions of the run.
      state: the weights to use.
      pairs: validation images.

    Raises:
      OSError: if a file cannot be written.
    """
    pairs = pairs[: config.infer.num_infer_images]
    if not pairs:
        return
    make_folder(folder)
    images = [read_image(pair.image_path) for pair in pairs]
    batch_size = math.lcm(config.infer.batch_size, compiled.mesh.shape["data"])
    predict = functools.partial(compiled.predict, state.averaged_params, state.model_state)
    all_probs = predict_images(predict, images, image_size=config.model.image_size, batch_size=batch_size)
    rows = []
    for pair, image, probs in zip(pairs, images, all_probs, strict=True):
        mask = (probs[..., 0] >= config.infer.threshold).astype(np.uint8)
        truth = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
        write_png(folder / f"{pair.stem}.png", mask * 255)
        rows.append((image, draw_overlay(image, truth, colour=TRUTH_COLOUR), draw_overlay(image, mask)))
    write_png(folder / "sheet.png", draw_sheet(rows, captions=("image", "truth", "prediction")))
