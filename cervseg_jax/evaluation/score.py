"""Scores a run on a dataset: tables, predictions and pictures."""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cervseg_jax import __version__
from cervseg_jax.annotations.decisions import read_decisions
from cervseg_jax.config import dump_config
from cervseg_jax.console import Reporter
from cervseg_jax.data.batch import batch_sharding
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.data.pipeline import eval_batches
from cervseg_jax.data.samples import sample_loader
from cervseg_jax.data.scale import scale_pairs, window_pairs
from cervseg_jax.engine.experiment import configured_loss, step_options
from cervseg_jax.engine.scores import Scores
from cervseg_jax.engine.state import TrainState
from cervseg_jax.engine.step import make_eval_step
from cervseg_jax.evaluation.confidence import draw_confidence, summarize_confidence
from cervseg_jax.evaluation.images import ImageScores, score_images
from cervseg_jax.evaluation.nuclei import columns_of as nucleus_columns
from cervseg_jax.evaluation.nuclei import summarize_nuclei, write_nuclei_per_image
from cervseg_jax.evaluation.pictures import write_sheets
from cervseg_jax.evaluation.pixels import columns_of, summarize_pixels, tuned_threshold
from cervseg_jax.evaluation.split import EvalSplit, check_shares, choose_split, refuse_seen_images, without_rejected
from cervseg_jax.evaluation.subsets import find_subsets, summarize_subsets
from cervseg_jax.evaluation.unfinished import UnfinishedScores
from cervseg_jax.files import make_folder, remove_stale_temporaries, sha256_of, write_json, write_text
from cervseg_jax.metrics.bootstrap import rank_correlation
from cervseg_jax.metrics.pixel import ratio
from cervseg_jax.plots import draw_reliability
from cervseg_jax.pretrained_weights import results_folder
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import Contract, Network
from cervseg_jax.runtime.distributed import (
    allgather_json,
    is_primary,
    require_equal,
    require_shared,
    share_of,
    sync_errors,
)
from cervseg_jax.runtime.mesh import make_mesh, replicated, require_devices
from cervseg_jax.runtime.processes import without_process_options
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.segmentation.tuning import MAX_IMAGES
from cervseg_jax.tables import csv_text


@dataclass(frozen=True)
class ScoreRequest:
    """Which run to score, and on which images."""

    run: Path
    """Run folder with best weights."""
    split: str = "test"
    """train, valid or test."""
    data: Path | None = None
    """Another dataset than the config's; one with `images` and `masks` at its top is scored whole."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` items on the run's config."""
    members: tuple[Path, ...] = ()
    """Further runs, whose predictions are averaged with those of `run`."""
    allow_trained: bool = False
    """Score images that a run was trained on; the run's own training split is always allowed."""
    decisions: Path | None = None
    """File of a reviewing page: rejected images are not scored, and rejected nuclei are left out of the truth."""


class Evaluation(NamedTuple):
    """Results of `score_run`."""

    summary: dict[str, Any]
    """Content of `summary.json`."""
    folder: Path
    """Where it was written."""


def score_run(request: ScoreRequest, *, reporter: Reporter) -> Evaluation:
    """Scores a run's best weights, predicting as `infer` does, and writes tables, predictions and pictures.

    Several processes that are connected share the images, and all get the result; each writes its predictions into the
    folder, which they share, and process 0 the tables. Collective: call it on every process.

    Args:
      request: run and images.
      reporter: for progress and warnings.

    Returns:
      The summary and the folder it was written to.

    Raises:
      ConfigError: if the split or a folder is missing.
      DataError: if files are bad, or a run was trained on some.
      CheckpointError: if a run has no usable weights.
    """
    run, members = request.run, (request.run, *request.members)
    with sync_errors():
        config = load_run_config(run, request.overrides)
        require_devices(config.runtime)
        decisions = None if request.decisions is None else read_decisions(request.decisions)
    split = choose_split(config, request.split, request.data, reporter)
    with sync_errors():
        if decisions is not None:
            split = without_rejected(split, decisions, reporter)
        allowed = request.allow_trained or (request.split == "train" and request.data is None)
        seen = [refuse_seen_images(member, split, allow=allowed, reporter=reporter) for member in members]
        segmenter = load_segmenter(members, config)
        contract = segmenter.networks[0].contract
        trained = {"image_size": contract.image_size, "heads": contract.heads}
        config = config.model_copy(update={"model": config.model.model_copy(update=trained)})
        name = _folder_name(split, config, load_run_config(run), request.members)
        folder = make_folder(results_folder(run) / "eval" / (name if decisions is None else f"{name}-reviewed"))
    weights = [network.contract.weights_sha256 for network in segmenter.networks]
    decided = None if request.decisions is None else sha256_of(request.decisions.read_bytes())
    key = f"{__version__} {weights} {segmenter.postprocessing} {segmenter.confidence} {decided} {dump_config(config)}"
    require_equal("the command, the weights or the results' folder", f"{folder} {key}")
    require_shared(folder, option="the run folder")
    if is_primary():
        remove_stale_temporaries(folder)
    scores = score_images(segmenter, split.pairs, config, reporter, folder=folder, key=key, decisions=decisions)
    is_fixed = segmenter.postprocessing.threshold_rule == "fixed"
    summary: dict[str, Any] = {
        "command": shlex.join(["cervseg-jax", *without_process_options(sys.argv[1:])]),
        "split": split.name,
        "num_images": len(split.stats),
        "num_sources": len(set(split.groups)),
        "num_trained_on": None if None in seen else max(filter(None, seen), default=0),
        "epoch": contract.epoch,
        "weights_sha256": weights,
        "threshold": segmenter.postprocessing.threshold if is_fixed else None,
        "threshold_rule": segmenter.postprocessing.threshold_rule,
    }
    if not request.members and decisions is None:  # the batches know nothing of rejected nuclei
        summary |= _batch_scores(segmenter.networks[0], config, _network_pairs(split, config, contract), reporter)
    summary |= summarize_pixels(scores.pixels, split.groups)
    summary["uncertainty_against_dice"] = rank_correlation(scores.uncertainty, columns_of(scores.pixels)["dice"])
    summary["tuned"] = _tuned(segmenter, config, split, scores, reporter)
    summary |= summarize_confidence(scores, segmenter.confidence)
    summary |= _nucleus_scores(split, scores, segmenter.postprocessing)
    summary["subsets"] = _subset_scores(split, scores)
    with sync_errors():
        if is_primary():
            _write_tables(folder, summary, scores, split, config)
            UnfinishedScores.remove(folder)
    return Evaluation(summary, folder)


def _write_tables(folder: Path, summary: dict[str, Any], scores: ImageScores, split: EvalSplit, config: Config) -> None:
    """Writes everything but the predictions."""
    if "loss" in summary:
        rows = [[key, f"{summary[key]:.4f}"] for key in ("loss", "dice_coef")]
        write_text(folder / "evaluation.csv", csv_text([], rows))
    nuclei_path = folder / "nuclei_per_image.csv"
    if scores.nuclei is None:
        nuclei_path.unlink(missing_ok=True)  # an earlier call may have scored other images
    else:
        write_nuclei_per_image(nuclei_path, scores.nuclei, _pairs_with_instances(split, scores))
    order = _write_per_image(folder, scores, split)
    write_json(folder / "summary.json", summary)
    draw_reliability(folder / "calibration.png", summary["calibration"], error=summary["calibration_error"])
    draw_confidence(folder / "confidence.png", summary.get("confidence"))
    ordered = [split.stats[row].pair for row in order]
    write_sheets(folder, ordered, count=config.eval.num_example_images, data=config.data)


def _folder_name(split: EvalSplit, config: Config, own: Config, others: Sequence[Path]) -> str:
    """Returns the name of the results' folder: the split, and what differs from predicting as the run's `own` config.

    Results of different ways to predict must not replace each other.
    """
    name = split.name
    if (config.infer.tiled is None) != (own.infer.tiled is None):
        name += "-whole" if config.infer.tiled is None else "-tiled"
    if config.infer.test_time_augmentation != own.infer.test_time_augmentation:
        name += "-symmetries" if config.infer.test_time_augmentation else "-plain"
    return "-with-".join([name, *(other.absolute().name for other in others)])


def _network_pairs(split: EvalSplit, config: Config, contract: Contract) -> list[Pair]:
    """Returns the images as the network saw them in training: resized whole, or windows at its scale."""
    if contract.scale is None:
        return split.pairs
    pairs, _ = scale_pairs(split.pairs, config.data, nucleus_px=contract.scale.nucleus_px)
    return window_pairs(pairs, [(item.height, item.width) for item in split.stats], contract.image_size)


def _batch_scores(network: Network, config: Config, pairs: Sequence[Pair], reporter: Reporter) -> dict[str, float]:
    """Returns loss and batch-pooled soft Dice at the network's size, as validation in training does. Collective."""
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
    num_batches = math.ceil(len(pairs) / batch_size)
    own = share_of(num_batches)
    own_pairs = [pair for index in own for pair in pairs[index * batch_size : (index + 1) * batch_size]]
    scored = []
    with reporter.progress("loss", len(own)) as advance, sync_errors():
        batches = eval_batches(config, own_pairs, batch_size=batch_size, load=sample_loader(config))
        for index, batch in zip(own, batches, strict=True):
            of_batch = Scores()
            of_batch.add(step(state, jax.device_put(batch, sharding)))
            scored.append((index, of_batch.to_json()))
            advance()
    scores = Scores()
    for _, of_batch in sorted((row for rows in allgather_json(scored) for row in rows), key=lambda row: row[0]):
        scores.extend(Scores.from_json(of_batch))
    return {name: scores.summary()[name] for name in ("loss", "dice_coef")}


def _tuned(
    segmenter: Segmenter, config: Config, split: EvalSplit, scores: ImageScores, reporter: Reporter
) -> dict[str, Any] | None:
    """Chooses a threshold on validation images of the config's dataset; None where there are none."""
    if split.dataset_split == "valid" or config.data.train_on_valid or not config.data.root.is_dir():
        return None
    found = find_pairs(config.data, needed=())[0].get("valid", [])
    chosen = found[:: max(1, -(-len(found) // MAX_IMAGES))]  # evenly, as neighbors may be alike
    if not chosen:
        return None
    pairs = check_shares(chosen, config.data).pairs
    validation = score_images(segmenter, pairs, config, reporter, with_nuclei=False)
    return {"num_images": len(pairs)} | tuned_threshold(validation.pixels, scores.pixels, split.groups)


def _pairs_with_instances(split: EvalSplit, scores: ImageScores) -> list[Pair]:
    return [pair for pair, known in zip(split.pairs, scores.has_instances, strict=True) if known]


def _nucleus_scores(split: EvalSplit, scores: ImageScores, postprocessing: Postprocessing) -> dict[str, Any]:
    """Returns the summary of the images with instance labels; empty where there are none."""
    if scores.nuclei is None:
        return {}
    own = _pairs_with_instances(split, scores)
    pq = nucleus_columns(scores.nuclei)["pq"]
    return {
        "nuclei": summarize_nuclei(scores.nuclei, [pair.group for pair in own]),
        "uncertainty_against_pq": rank_correlation(scores.uncertainty[scores.has_instances], pq),
        "postprocessing": postprocessing.to_json(),
    }


def _subset_scores(split: EvalSplit, scores: ImageScores) -> list[dict[str, Any]]:
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
    return summarize_subsets(find_subsets(split.metadata, measures), columns, split.groups)


def _write_per_image(folder: Path, scores: ImageScores, split: EvalSplit) -> list[int]:
    """Writes one row per image, worst first, and returns the rows that have a Dice in that order."""
    columns = columns_of(scores.pixels) | {"uncertainty": scores.uncertainty}
    order = np.argsort(columns["dice"], kind="stable").tolist()  # undefined scores (NaN) come last
    rows = [
        [
            split.stats[row].pair.stem,
            split.stats[row].pair.group,
            split.stats[row].pair.image_path,
            split.stats[row].pair.mask_path,
            split.stats[row].pair.instances_path or "",
            split.stats[row].image_sha256,
            *(f"{values[row]:.6f}" for values in columns.values()),
            *(int(field[row]) for field in scores.pixels.counts),
        ]
        for row in order
    ]
    files = ["image_path", "mask_path", "instances_path", "image_sha256"]
    header = ["stem", "group", *files, *columns, *scores.pixels.counts._fields]
    write_text(folder / "per_image.csv", csv_text(header, rows))
    return [row for row in order if not np.isnan(columns["dice"][row])]
