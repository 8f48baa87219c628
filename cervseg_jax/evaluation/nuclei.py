"""Scores of single nuclei over a part of a dataset."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.data.source import Pair
from cervseg_jax.files import csv_text, write_text
from cervseg_jax.inference.doubt import rank_correlation
from cervseg_jax.metrics.bootstrap import bootstrap_mean
from cervseg_jax.metrics.instance import INSTANCE_METRICS, InstanceCounts, count_instances, join_counts, pooled
from cervseg_jax.metrics.label_maps import surface_distances


class NucleusScores(NamedTuple):
    """What the images of a part showed, one row each."""

    all_nuclei: InstanceCounts
    touching_nuclei: InstanceCounts
    """Of true nuclei that touch another one, and what was predicted for them."""
    hd95: np.ndarray
    """Mean over the image's matched pairs in pixels; NaN where nothing matches."""
    assd: np.ndarray
    """Likewise."""
    doubt: np.ndarray
    """How unsure the network was."""


def score_nuclei(images: Iterable[tuple[np.ndarray, np.ndarray, float]]) -> NucleusScores:
    """Compares label maps.

    Args:
      images: truth and prediction of each image, integer labels [h, w], and how unsure the network was about it.

    Returns:
      Scores in the same order; at least one image is needed.
    """
    every, near, hd95, assd, doubts = [], [], [], [], []
    for truth, prediction, doubt in images:
        doubts.append(doubt)
        every.append(count_instances(truth, prediction))
        near.append(count_instances(truth, prediction, touching_only=True))
        distances = surface_distances(truth, prediction)
        hd95.append(distances.hd95.mean() if distances.hd95.size else np.nan)
        assd.append(distances.assd.mean() if distances.assd.size else np.nan)
    return NucleusScores(join_counts(every), join_counts(near), np.array(hd95), np.array(assd), np.array(doubts))


def columns_of(scores: NucleusScores) -> dict[str, np.ndarray]:
    """Returns every score per image by name; those of touching nuclei end in `_touching`."""
    columns = {name: metric(scores.all_nuclei) for name, metric in INSTANCE_METRICS.items()}
    columns |= {f"{name}_touching": metric(scores.touching_nuclei) for name, metric in INSTANCE_METRICS.items()}
    return columns | {"hd95_px": scores.hd95, "assd_px": scores.assd}


def summarise_nuclei(scores: NucleusScores, groups: Sequence[str]) -> dict[str, Any]:
    """Summarises scores.

    Args:
      scores: of all images.
      groups: the source of each image; whole sources are drawn for the intervals.

    Returns:
      By name: mean over images with its 95 % interval, the number of images where the score is defined, and the score
      of all images pooled where there is one. `doubt_against_pq` tells whether doubt predicts errors: the rank
      correlation of both, negative where it does.
    """
    summary: dict[str, Any] = {
        "num_true": int(scores.all_nuclei.num_truth.sum()),
        "num_predicted": int(scores.all_nuclei.num_predicted.sum()),
        "num_true_touching": int(scores.touching_nuclei.num_truth.sum()),
        "doubt_against_pq": rank_correlation(scores.doubt, columns_of(scores)["pq"]),
    }
    totals = {"": pooled(scores.all_nuclei), "_touching": pooled(scores.touching_nuclei)}
    for name, values in columns_of(scores).items():
        interval = bootstrap_mean(values, groups)
        summary[name] = {**interval._asdict(), "num_images": int((~np.isnan(values)).sum())}
        base, ending = (name.removesuffix("_touching"), "_touching") if name.endswith("_touching") else (name, "")
        if base in INSTANCE_METRICS:
            summary[name]["pooled"] = float(INSTANCE_METRICS[base](totals[ending])[0])
    return summary


def write_nuclei_per_image(path: Path, scores: NucleusScores, pairs: Sequence[Pair]) -> None:
    """Writes one row per image, the lowest PQ first."""
    columns = columns_of(scores) | {"doubt": scores.doubt}
    counts = {"num_true": scores.all_nuclei.num_truth, "num_predicted": scores.all_nuclei.num_predicted}
    rows = [
        [
            pairs[row].stem,
            pairs[row].group,
            *(int(values[row]) for values in counts.values()),
            *(f"{values[row]:.6f}" for values in columns.values()),
        ]
        for row in np.argsort(columns["pq"], kind="stable").tolist()
    ]
    write_text(path, csv_text(["stem", "group", *counts, *columns], rows))
