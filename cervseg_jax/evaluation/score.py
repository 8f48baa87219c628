"""A run and a dataset -> scores, tables, predictions and pictures."""

import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.batch import batch_sharding
from cervseg_jax.data.checks import check_pairs
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.data.pipeline import eval_batches
from cervseg_jax.data.samples import read_instances, sample_loader
from cervseg_jax.engine.experiment import configured_loss, step_options
from cervseg_jax.engine.scores import evaluate
from cervseg_jax.engine.state import TrainState
from cervseg_jax.engine.step import make_eval_step
from cervseg_jax.evaluation.nuclei import (
    NucleusScores,
    join_nucleus_scores,
    score_nuclei,
    summarize_nuclei,
    write_nuclei_per_image,
)
from cervseg_jax.evaluation.nuclei import columns_of as nucleus_columns
from cervseg_jax.evaluation.part import Part, choose_part, refuse_seen_images
from cervseg_jax.evaluation.pictures import write_sheets
from cervseg_jax.evaluation.pixels import (
    PixelScores,
    columns_of,
    join_pixel_scores,
    score_pixels,
    summarize_pixels,
    tuned_threshold,
)
from cervseg_jax.evaluation.subsets import find_subsets, summarize_subsets
from cervseg_jax.files import make_folder, write_json, write_labels, write_png, write_text
from cervseg_jax.metrics.bootstrap import rank_correlation
from cervseg_jax.metrics.pixel import ratio
from cervseg_jax.plots import draw_reliability
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import Network, load_network
from cervseg_jax.runtime.mesh import make_mesh, replicated, require_devices
from cervseg_jax.schema import Config, PostprocessingConfig
from cervseg_jax.segmentation.maps import infer_predictor, predict_maps
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.tuning import MAX_IMAGES, load_postprocessing
from cervseg_jax.segmentation.uncertainty import uncertainty
from cervseg_jax.segmentation.watershed import label_instances
from cervseg_jax.tables import csv_text

PREDICTIONS = ("masks", "probabilities", "instances")
"""Folders of what was predicted, one PNG per image; probabilities times 255."""


class ImageScores(NamedTuple):
    """What the images of a part showed, one row each."""

    pixels: PixelScores
    uncertainty: np.ndarray
    """How unsure the network was; see `segmentation.uncertainty`."""
    nuclei: NucleusScores | None
    """Of the images whose nuclei are told apart."""
    has_instances: np.ndarray
    """Which images these are; bool [images]."""


def score_run(
    run: Path,
    config: Config,
    *,
    split: str,
    data: Path | None,
    others: Sequence[Path] = (),
    allow_trained: bool = False,
    reporter: Reporter,
) -> tuple[dict[str, Any], Path]:
    """Scores the run's best weights, predicting as `infer` does, and writes tables, predictions and pictures.

    Args:
      run: a run folder.
      config: its config.
      split: which part of the dataset.
      data: another dataset than the config's; one with `images` and `masks` at its top is scored whole.
      others: runs whose predictions are averaged with the first one's.
      allow_trained: score images that the run was trained on; the run's own training part needs no leave.
      reporter: for progress.

    Returns:
      The summary and the folder it was written to.

    Raises:
      ConfigError: if the split or a folder is missing.
      DataError: if files are bad, or the run was trained on some.
      CheckpointError: if the run has no usable weights.
    """
    require_devices(config.runtime)
    part = choose_part(config, split, data, reporter)
    allowed = allow_trained or (split == "train" and data is None)
    seen = [refuse_seen_images(member, part, allow=allowed, reporter=reporter) for member in (run, *others)]
    networks = [load_network(member / "best", precision=config.runtime.precision) for member in (run, *others)]
    network = networks[0]
    trained = {"image_size": network.contract.image_size, "heads": network.contract.heads}
    config = config.model_copy(update={"model": config.model.model_copy(update=trained)})
    rules = config.infer.postprocessing or load_postprocessing(run / "best")
    folder = make_folder(run / "eval" / _folder_name(part, config, load_run_config(run), others))
    predictor = infer_predictor(networks, config)
    scores = _score_images(predictor, part.pairs, config, rules, reporter, folder=folder)
    summary: dict[str, Any] = {
        "command": shlex.join(["cervseg-jax", *sys.argv[1:]]),
        "split": part.name,
        "num_images": len(part.facts),
        "num_sources": len(set(part.groups)),
        "num_trained_on": None if None in seen else max(filter(None, seen), default=0),
        "epoch": network.contract.epoch,
        "weights_sha256": [member.contract.weights_sha256 for member in networks],
        "threshold": config.eval.threshold,
    }
    if not others:
        summary |= _batch_scores(network, config, part.pairs, reporter)
        rows = [[key, f"{summary[key]:.4f}"] for key in ("loss", "dice_coef")]
        write_text(folder / "evaluation.csv", csv_text([], rows))
    summary |= summarize_pixels(scores.pixels, part.groups)
    summary["uncertainty_against_dice"] = rank_correlation(scores.uncertainty, columns_of(scores.pixels)["dice"])
    summary["tuned"] = _tuned(predictor, config, part, scores, reporter)
    summary |= _nucleus_scores(folder / "nuclei_per_image.csv", part, scores, rules)
    summary["subsets"] = _subset_scores(part, scores)
    order = _write_per_image(folder, scores, part)
    write_json(folder / "summary.json", summary)
    draw_reliability(folder / "calibration.png", summary["calibration"], error=summary["calibration_error"])
    ordered = [part.facts[row].pair for row in order]
    write_sheets(folder, ordered, count=config.eval.num_example_images, mask_rule=config.data.mask_rule)
    return summary, folder


def _folder_name(part: Part, config: Config, own: Config, others: Sequence[Path]) -> str:
    """Returns the part's name, and how the prediction departs from the run's `own` config: ways do not mix."""
    name = part.name
    if (config.infer.tiled is None) != (own.infer.tiled is None):
        name += "-whole" if config.infer.tiled is None else "-tiled"
    if config.infer.test_time_augmentation != own.infer.test_time_augmentation:
        name += "-symmetries" if config.infer.test_time_augmentation else "-plain"
    return "-with-".join([name, *(other.absolute().name for other in others)])


def _batch_scores(network: Network, config: Config, pairs: Sequence[Pair], reporter: Reporter) -> dict[str, float]:
    """Returns loss and batch-pooled soft Dice at the network's size, as validation in training."""
    batch_size = config.eval.batch_size
    mesh = make_mesh(None, batch_size=batch_size)
    state = jax.device_put(
        TrainState(jnp.int32(network.contract.step), network.params, network.model_state, (), {}), replicated(mesh)
    )
    sharding = batch_sharding(mesh, config.model.heads)
    step = jax.jit(
        make_eval_step(network.apply, configured_loss(config), step_options(config)),
        in_shardings=(replicated(mesh), sharding),
    )
    with reporter.progress("loss", math.ceil(len(pairs) / batch_size)) as advance:
        scores = evaluate(
            lambda batch: step(state, jax.device_put(batch, sharding)),
            eval_batches(config, pairs, batch_size=batch_size, load=sample_loader(config)),
            on_progress=advance,
        )
    assert scores is not None  # noqa: S101 (no `stop` was given)
    return {name: scores.summary()[name] for name in ("loss", "dice_coef")}


def _score_images(
    predictor: Predictor,
    pairs: Sequence[Pair],
    config: Config,
    rules: PostprocessingConfig | None,
    reporter: Reporter,
    *,
    folder: Path | None,
) -> ImageScores:
    """Predicts and scores images in their own size; nuclei where there are `rules`, files where there is a folder."""
    pixels: list[PixelScores] = []
    uncertainties: list[float] = []
    nuclei: list[NucleusScores] = []

    def images() -> Iterator[tuple[Pair, np.ndarray]]:
        for pair in pairs:
            yield pair, read_image(pair.image_path, bit_depth=config.data.bit_depth)

    if folder:
        for name in PREDICTIONS:
            make_folder(folder / name)
    with reporter.progress("scoring", len(pairs)) as advance, tempfile.TemporaryDirectory(dir=folder) as work:
        for pair, _, maps in predict_maps(predictor, config.infer.tiled, images(), work=Path(work)):
            probs = np.asarray(maps[..., 0], np.float32)
            mask = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
            pixels.append(score_pixels(probs, mask, threshold=config.eval.threshold))
            uncertainties.append(uncertainty(maps))
            labels = None
            if rules is not None and pair.instances_path is not None:
                labels = label_instances(maps, config.model.heads, rules)
                nuclei.append(score_nuclei(read_instances(pair, mask.shape), labels))
            if folder:
                write_png(folder / "masks" / f"{pair.stem}.png", _as_uint8(255 * (probs >= config.eval.threshold)))
                write_png(folder / "probabilities" / f"{pair.stem}.png", _as_uint8(np.rint(255 * probs)))
                if labels is not None:
                    write_labels(folder / "instances", pair.stem, labels)
            advance()
    return ImageScores(
        join_pixel_scores(pixels),
        np.array(uncertainties),
        join_nucleus_scores(nuclei) if nuclei else None,
        np.array([pair.instances_path is not None for pair in pairs]),
    )


def _as_uint8(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)


def _tuned(
    predictor: Predictor, config: Config, part: Part, scores: ImageScores, reporter: Reporter
) -> dict[str, Any] | None:
    """Chooses a threshold on validation images of the config's dataset; None where there are none."""
    if part.split == "valid" or not config.data.root.is_dir():
        return None
    found = find_pairs(config.data, needed=())[0].get("valid", [])
    chosen = found[:: max(1, -(-len(found) // MAX_IMAGES))]  # evenly, as neighbors may be alike
    if not chosen:
        return None
    pairs = [fact.pair for fact in check_pairs(chosen, config.data).stats]
    validation = _score_images(predictor, pairs, config, None, reporter, folder=None)
    return {"num_images": len(pairs)} | tuned_threshold(validation.pixels, scores.pixels, part.groups)


def _nucleus_scores(path: Path, part: Part, scores: ImageScores, rules: PostprocessingConfig) -> dict[str, Any]:
    """Writes a row per image whose nuclei are told apart, and returns their summary; empty where there are none."""
    path.unlink(missing_ok=True)  # of an earlier call, perhaps with other images
    if scores.nuclei is None:
        return {}
    own = [pair for pair, known in zip(part.pairs, scores.has_instances, strict=True) if known]
    write_nuclei_per_image(path, scores.nuclei, own)
    pq = nucleus_columns(scores.nuclei)["pq"]
    return {
        "nuclei": summarize_nuclei(scores.nuclei, [pair.group for pair in own]),
        "uncertainty_against_pq": rank_correlation(scores.uncertainty[scores.has_instances], pq),
        "postprocessing": rules.model_dump(),
    }


def _subset_scores(part: Part, scores: ImageScores) -> list[dict[str, Any]]:
    counts, known = scores.pixels.counts, scores.has_instances

    def spread(values: np.ndarray) -> np.ndarray:
        column = np.full(len(known), np.nan)
        column[known] = values
        return column

    area = counts.true_positive + counts.false_negative
    measures = {"share of nucleus": ratio(area, np.sum(counts, axis=0))}
    columns = {"dice": columns_of(scores.pixels)["dice"]}
    if scores.nuclei is not None:
        num_true = scores.nuclei.all_nuclei.num_truth
        measures["nuclei"] = spread(num_true)
        measures["mean area of nuclei, px"] = spread(ratio(area[known], num_true))
        measures["share of touching nuclei"] = spread(ratio(scores.nuclei.touching_nuclei.num_truth, num_true))
        columns["pq"] = spread(nucleus_columns(scores.nuclei)["pq"])
    return summarize_subsets(find_subsets(part.metadata, measures), columns, part.groups)


def _write_per_image(folder: Path, scores: ImageScores, part: Part) -> list[int]:
    """Writes one row per image, worst first, and returns the rows that have a Dice in that order."""
    columns = columns_of(scores.pixels) | {"uncertainty": scores.uncertainty}
    order = np.argsort(columns["dice"], kind="stable").tolist()  # undefined scores (NaN) come last
    rows = [
        [
            part.facts[row].pair.stem,
            part.facts[row].pair.group,
            part.facts[row].pair.image_path,
            part.facts[row].pair.mask_path,
            part.facts[row].pair.instances_path or "",
            part.facts[row].image_sha256,
            *(f"{values[row]:.6f}" for values in columns.values()),
            *(int(field[row]) for field in scores.pixels.counts),
        ]
        for row in order
    ]
    files = ["image_path", "mask_path", "instances_path", "image_sha256"]
    header = ["stem", "group", *files, *columns, *scores.pixels.counts._fields]
    write_text(folder / "per_image.csv", csv_text(header, rows))
    return [row for row in order if not np.isnan(columns["dice"][row])]
