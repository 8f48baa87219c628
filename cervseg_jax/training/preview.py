"""Predicted masks of a few validation images after each epoch."""

import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.engine.experiment import Experiment
from cervseg_jax.engine.predict import WeightedPredict
from cervseg_jax.engine.state import TrainState
from cervseg_jax.files import make_folder, write_png
from cervseg_jax.plots import TRUTH_COLOR, draw_overlay, draw_sheet
from cervseg_jax.runtime.distributed import is_primary
from cervseg_jax.runtime.mesh import num_batch_shards
from cervseg_jax.segmentation.maps import predict_maps
from cervseg_jax.segmentation.predict import Predictor


def write_previews(
    folder: Path, experiment: Experiment, predict: WeightedPredict, state: TrainState, pairs: Sequence[Pair]
) -> None:
    """Writes the masks of the first `infer.num_infer_images` pairs, and a sheet that shows them beside the truth.

    With `infer.tiled` the masks from tiles are written as well, under names that end in `_tiled`.

    Args:
      folder: the epoch's folder.
      experiment: the experiment that is trained.
      predict: its compiled prediction.
      state: state whose (averaged) weights are used.
      pairs: validation images.

    Raises:
      OSError: if a file cannot be written.
    """
    config = experiment.config
    pairs = pairs[: config.infer.num_infer_images]
    if not pairs:
        return
    make_folder(folder)
    images = [read_image(pair.image_path, bit_depth=config.data.bit_depth) for pair in pairs]
    predict_images = functools.partial(predict, state.averaged_params, state.model_state)
    batch_size = math.lcm(config.infer.batch_size, num_batch_shards(experiment.mesh))
    predictor = Predictor(predict_images, config.model.image_size, batch_size, config.model.heads)
    ways = {"": None} | ({} if config.infer.tiled is None else {"_tiled": config.infer.tiled})
    overlays: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        for ending, tiled in ways.items():
            for pair, image, maps in predict_maps(predictor, tiled, zip(pairs, images, strict=True), work=Path(work)):
                if is_primary():  # the other processes only take part in the prediction
                    mask = (maps[..., 0] >= config.infer.threshold).astype(np.uint8)
                    write_png(folder / f"{pair.stem}{ending}.png", mask * 255)
                    overlays.setdefault(pair.stem, []).append(draw_overlay(np.asarray(image), mask))
    if not is_primary():
        return
    rows = []
    for pair, image in zip(pairs, images, strict=True):
        truth = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
        rows.append((image, draw_overlay(image, truth, color=TRUTH_COLOR), *overlays[pair.stem]))
    captions = ("image", "truth", *(f"prediction{ending.replace('_', ', ')}" for ending in ways))
    write_png(folder / "sheet.png", draw_sheet(rows, captions=captions))
