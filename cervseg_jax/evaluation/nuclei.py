"""Scores of single nuclei over a split of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from cervseg_jax.data.pairs import Pair
from cervseg_jax.extents import Extent
from cervseg_jax.files import write_text
from cervseg_jax.label_maps import surface_distances
from cervseg_jax.metrics.bootstrap import bootstrap_mean
from cervseg_jax.metrics.instance import (
    INSTANCE_METRICS,
    InstanceCounts,
    count_instances,
    join_counts,
    pooled,
    recognition_quality,
)
from cervseg_jax.metrics.whole import count_by_degree, count_whole
from cervseg_jax.tables import csv_text
from cervseg_jax.typing import typechecked


class WholeScores(NamedTuple):
    """Counts of nuclei at full extent, of one or more images."""

    all_nuclei: InstanceCounts
    by_degree: dict[str, InstanceCounts]
    """By the names of `metrics.whole.DEGREES`."""

    def columns(self) -> dict[str, np.ndarray]:
        """Returns every score per image by name; those by degree of overlap count nuclei of this degree."""
        columns = {f"{name}_whole": INSTANCE_METRICS[name](self.all_nuclei) for name in WHOLE_METRICS}
        return columns | {f"f1_50_overlap_{name}": recognition_quality(own) for name, own in self.by_degree.items()}

    def totals(self) -> "WholeScores":
        """Returns the counts of all images together."""
        return WholeScores(pooled(self.all_nuclei), {name: pooled(own) for name, own in self.by_degree.items()})


class NucleusScores(NamedTuple):
    """Scores of the images of a split, one row each."""

    all_nuclei: InstanceCounts
    touching_nuclei: InstanceCounts
    """Counts of the true nuclei that touch another one, and of their predictions."""
    hd95: np.ndarray
    """95th percentile Hausdorff distance in pixels, mean over the image's matched pairs; NaN without any."""
    assd: np.ndarray
    """Average symmetric surface distance, likewise."""
    whole: WholeScores | None = None
    """Counts of nuclei at full extent; None where neither truth nor prediction knows more than a label map."""


WHOLE_METRICS = ("aji", "aji_plus", "pq", "sq", "rq", "f1_50", "f1_70")
"""Scores of nuclei at full extent, of `INSTANCE_METRICS`."""


def score_whole(truth: Sequence[Extent], prediction: Sequence[Extent]) -> WholeScores:
    """Compares the nuclei of one image at full extent."""
    return WholeScores(count_whole(truth, prediction), count_by_degree(truth, prediction))


@typechecked
def score_nuclei(truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"]) -> NucleusScores:
    """Compares the label maps of one image.

    Args:
      truth: true instance labels.
      prediction: predicted labels.

    Returns:
      Scores of one image, fields of shape [1].
    """
    distances = surface_distances(truth, prediction)
    return NucleusScores(
        count_instances(truth, prediction),
        count_instances(truth, prediction, touching_only=True),
        np.array([distances.hd95.mean() if distances.hd95.size else np.nan]),
        np.array([distances.assd.mean() if distances.assd.size else np.nan]),
    )


def join_nucleus_scores(parts: Sequence[NucleusScores]) -> NucleusScores:
    """Concatenates the scores of one or more images."""
    every, near, hd95, assd, whole = zip(*parts, strict=True)
    return NucleusScores(
        join_counts(every), join_counts(near), np.concatenate(hd95), np.concatenate(assd), _joined(whole)
    )


def _joined(parts: Sequence[WholeScores | None]) -> WholeScores | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    names = known[0].by_degree
    return WholeScores(
        join_counts([part.all_nuclei for part in known]),
        {name: join_counts([part.by_degree[name] for part in known]) for name in names},
    )


def columns_of(scores: NucleusScores) -> dict[str, np.ndarray]:
    """Returns every score per image by name.

    Those of touching nuclei end in `_touching`, those of nuclei at full extent in `_whole` or `_overlap_<degree>`.
    """
    columns = {name: metric(scores.all_nuclei) for name, metric in INSTANCE_METRICS.items()}
    columns |= {f"{name}_touching": metric(scores.touching_nuclei) for name, metric in INSTANCE_METRICS.items()}
    columns |= {"hd95_px": scores.hd95, "assd_px": scores.assd}
    return columns if scores.whole is None else columns | scores.whole.columns()


def summarize_nuclei(scores: NucleusScores, groups: Sequence[str]) -> dict[str, Any]:
    """Summarizes scores.

    Args:
      scores: of all images.
      groups: source of each image; the bootstrap resamples whole sources.

    Returns:
      By name: mean over images with its 95 % interval, the number of images where the score is defined, and the score
      of all images pooled where there is one.
    """
    summary: dict[str, Any] = {
        "num_true": int(scores.all_nuclei.num_truth.sum()),
        "num_predicted": int(scores.all_nuclei.num_predicted.sum()),
        "num_true_touching": int(scores.touching_nuclei.num_truth.sum()),
    }
    totals = {"": pooled(scores.all_nuclei), "_touching": pooled(scores.touching_nuclei)}
    for name, values in columns_of(scores).items():
        interval = bootstrap_mean(values, groups)
        summary[name] = {**interval._asdict(), "num_images": int((~np.isnan(values)).sum())}
        base, ending = (name.removesuffix("_touching"), "_touching") if name.endswith("_touching") else (name, "")
        if base in INSTANCE_METRICS:
            summary[name]["pooled"] = float(INSTANCE_METRICS[base](totals[ending])[0])
    if scores.whole is not None:
        totals_whole = scores.whole.totals()
        for name, values in totals_whole.columns().items():
            summary[name]["pooled"] = float(values[0])
        summary["num_true_by_overlap"] = {name: int(own.num_truth[0]) for name, own in totals_whole.by_degree.items()}
    return summary


def write_nuclei_per_image(path: Path, scores: NucleusScores, pairs: Sequence[Pair]) -> None:
    """Writes one row per image, the lowest PQ first."""
    columns = columns_of(scores)
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
