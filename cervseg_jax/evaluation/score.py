"""A run and a dataset -> scores, tables and pictures."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.pipeline import eval_batches
from cervseg_jax.data.source import SPLITS, Pair, check_pairs, find_pairs, read_image, read_instances, read_mask
from cervseg_jax.errors import ConfigError
from cervseg_jax.evaluation.batches import Scores, evaluate
from cervseg_jax.evaluation.nuclei import score_nuclei, summarise_nuclei, write_nuclei_per_image
from cervseg_jax.files import csv_text, make_folder, write_json, write_png, write_text
from cervseg_jax.inference.doubt import doubt
from cervseg_jax.inference.instances import separate
from cervseg_jax.inference.predict import Predictor, make_predictor, predict_images
from cervseg_jax.inference.tune import load_rules
from cervseg_jax.metrics.pixel import METRICS
from cervseg_jax.plots import PREDICTION_COLOUR, TRUTH_COLOUR, draw_outline, draw_sheet
from cervseg_jax.sections import Config, SeparationConfig
from cervseg_jax.training.compiled import configured_loss, step_rules
from cervseg_jax.training.sharding import batch_sharding, make_mesh, replicated, require_devices
from cervseg_jax.training.state import TrainState
from cervseg_jax.training.step import make_eval_step
from cervseg_jax.weights import Network, load_network


def score_run(
    run: Path, config: Config, *, split: str, data: Path | None, reporter: Reporter
) -> tuple[dict[str, Any], Path]:
    """Scores the run's best weights and writes `evaluation.csv`, `per_image.csv`, `summary.json` and pictures.

    Args:
      run: a run folder.
      config: its config.
      split: which part of the dataset.
      data: another dataset than the config's; one with `images` and `masks` at its top is scored whole.
      reporter: for progress.

    Returns:
      The summary and the folder it was written to.

    Raises:
      ConfigError: if the split or a folder is missing.
      DataError: if files are bad.
      CheckpointError: if the run has no usable weights.
    """
    require_devices(config.runtime)
    pairs, name = _choose_pairs(config, split, data, reporter)
    network = load_network(run / "best", precision=config.runtime.precision)
    trained = {"image_size": network.contract.image_size, "heads": network.contract.heads}
    config = config.model_copy(update={"model": config.model.model_copy(update=trained)})
    mesh = make_mesh(None, batch_size=config.eval.batch_size)
    state = jax.device_put(
        TrainState(jnp.int32(network.contract.step), network.params, network.model_state, (), {}), replicated(mesh)
    )
    sharding = batch_sharding(mesh, config.model.heads)
    step = jax.jit(
        make_eval_step(network.apply, configured_loss(config), step_rules(config)),
        in_shardings=(replicated(mesh), sharding),
    )
    batch_size = config.eval.batch_size
    with reporter.progress("scoring", math.ceil(len(pairs) / batch_size)) as advance:
        scores = evaluate(
            lambda batch: step(state, jax.device_put(batch, sharding)),
            eval_batches(config, pairs, batch_size=batch_size),
            each=advance,
        )
    assert scores is not None  # noqa: S101 (no `stop` was given)
    folder = make_folder(run / "eval" / name)
    summary = _summary(scores, pairs, network, config, split=name)
    write_text(folder / "evaluation.csv", csv_text([], [[key, f"{summary[key]:.4f}"] for key in ("loss", "dice_coef")]))
    order = _write_per_image(folder, scores, pairs)
    predictor = make_predictor([network], batch_size=batch_size)
    separated = [pair for pair in pairs if pair.instances_path is not None]
    if separated:
        rules = config.infer.separation or load_rules(run / "best")
        nuclei = score_nuclei(_label_maps(predictor, separated, config, rules, reporter))
        summary["nuclei"] = summarise_nuclei(nuclei, [pair.group for pair in separated])
        summary["separation"] = rules.model_dump()
        write_nuclei_per_image(folder / "nuclei_per_image.csv", nuclei, separated)
    write_json(folder / "summary.json", summary)
    count = min(config.eval.num_example_images, len(order))
    for title, chosen in (("worst", order[:count]), ("best", order[::-1][:count])):
        if chosen:
            write_png(folder / f"{title}.png", _sheet(predictor, [pairs[index] for index in chosen], config))
    return summary, folder


def _choose_pairs(config: Config, split: str, data: Path | None, reporter: Reporter) -> tuple[list[Pair], str]:
    if split not in SPLITS:
        raise ConfigError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")
    section, name = config.data, split
    if data is not None:
        section = section.model_copy(update={"root": data.absolute(), "synthetic": None, "split": None})
        name = f"{data.absolute().name}-{split}"
    if data is not None and (data / "images").is_dir():
        found, problems = find_pairs(section, whole=True)
        name, split = data.absolute().name, "test"
    else:
        found, problems = find_pairs(section)
    if split not in found:
        raise ConfigError(f"--split: {section.root} has no {split}; it has {', '.join(found)}")
    checked = check_pairs(found[split], section)
    for problem in problems + checked.problems:
        reporter.warn(problem)
    return checked.pairs, name


def _summary(scores: Scores, pairs: Sequence[Pair], network: Network, config: Config, *, split: str) -> dict[str, Any]:
    return {
        "split": split,
        "num_images": scores.num_images,
        "num_sources": len({pair.group for pair in pairs}),
        "epoch": network.contract.epoch,
        "threshold": config.eval.threshold,
        **scores.summary(),
    }


def _write_per_image(folder: Path, scores: Scores, pairs: Sequence[Pair]) -> list[int]:
    """Writes one row per image, worst first, and returns the indices in that order."""
    counts = scores.counts
    columns = {name: metric(counts) for name, metric in METRICS.items()}
    order = np.argsort(columns["dice"], kind="stable").tolist()  # undefined scores (NaN) come last
    rows = [
        [
            pairs[scores.image_ids[row]].stem,
            pairs[scores.image_ids[row]].group,
            *(f"{columns[name][row]:.6f}" for name in METRICS),
            *(int(field[row]) for field in counts),
        ]
        for row in order
    ]
    write_text(folder / "per_image.csv", csv_text(["stem", "group", *METRICS, *counts._fields], rows))
    defined = [row for row in order if not np.isnan(columns["dice"][row])]
    return [scores.image_ids[row] for row in defined]


def _label_maps(
    predictor: Predictor, pairs: Sequence[Pair], config: Config, rules: SeparationConfig, reporter: Reporter
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yields true and predicted instance labels, and the network's doubt."""
    images = (read_image(pair.image_path) for pair in pairs)
    all_maps = predict_images(predictor, images)
    with reporter.progress("nuclei", len(pairs)) as advance:
        for pair, maps in zip(pairs, all_maps, strict=True):
            yield read_instances(pair, maps.shape[:2]), separate(maps, config.model.heads, rules), doubt(maps)
            advance()


def _sheet(predictor: Predictor, pairs: Sequence[Pair], config: Config) -> np.ndarray:
    """Shows images with the outlines of truth and prediction."""
    images = [read_image(pair.image_path) for pair in pairs]
    rows = []
    for pair, image, probs in zip(
        pairs,
        images,
        predict_images(predictor, images),
        strict=True,
    ):
        mask = (probs[..., 0] >= config.eval.threshold).astype(np.uint8)
        truth = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
        both = draw_outline(image, truth, colour=TRUTH_COLOUR)
        both = draw_outline(both, mask, colour=PREDICTION_COLOUR)
        black = np.repeat((mask * 255)[:, :, None], 3, axis=2)
        rows.append((image, both, black))
    return draw_sheet(rows, captions=("image", "truth green, prediction pink", "predicted mask"))
