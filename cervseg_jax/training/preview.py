"""Predicted masks of a few validation images after each epoch."""

import dataclasses
import functools
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
from cervseg_jax.schema import Scale
from cervseg_jax.segmentation.segmenter import training_segmenter


def write_previews(
    folder: Path,
    experiment: Experiment,
    predict: WeightedPredict,
    state: TrainState,
    pairs: Sequence[Pair],
    *,
    scale: Scale | None,
) -> None:
    """Writes the masks of the first `infer.num_infer_images` pairs, and a sheet that shows them beside the truth.

    The masks equal those of `infer` with the same weights and a threshold of `infer.threshold` or 0.5. With
    `infer.tiled`, masks predicted on tiles are written too, with the suffix `_tiled`.

    Args:
      folder: folder of the epoch.
      experiment: the experiment that is trained.
      predict: compiled prediction function.
      state: state whose (averaged) weights are used.
      pairs: validation images, or windows of them.
      scale: scale of the network's input; None: whole images are resized.

    Raises:
      OSError: if a file cannot be written.
    """
    config = experiment.config
    images_of_pairs = dict.fromkeys(pair._replace(scale=None, window=None) for pair in pairs)
    pairs = list(images_of_pairs)[: config.infer.num_infer_images]
    if not pairs:
        return
    make_folder(folder)
    images = [read_image(pair.image_path, bit_depth=config.data.bit_depth) for pair in pairs]
    segmenter = training_segmenter(
        functools.partial(predict, state.averaged_params, state.model_state), config, experiment.mesh, scale
    )
    segmenters = {"": dataclasses.replace(segmenter, tiled=None)}
    if segmenter.tiled is not None and scale is None:
        segmenters["_tiled"] = segmenter
    overlays: dict[str, list[np.ndarray]] = {}
    for suffix, variant in segmenters.items():
        for pair, result in variant.predict(zip(pairs, images, strict=True), scratch=folder):
            if is_primary():  # other processes only join the prediction
                mask = result.mask.astype(np.uint8)
                write_png(folder / f"{pair.stem}{suffix}.png", mask * 255)
                overlays.setdefault(pair.stem, []).append(draw_overlay(np.asarray(result.image), mask))
    if not is_primary():
        return
    rows = []
    for pair, image in zip(pairs, images, strict=True):
        truth = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
        rows.append((image, draw_overlay(image, truth, color=TRUTH_COLOR), *overlays[pair.stem]))
    captions = ("image", "truth", *(f"prediction{suffix.replace('_', ', ')}" for suffix in segmenters))
    write_png(folder / "sheet.png", draw_sheet(rows, captions=captions))
