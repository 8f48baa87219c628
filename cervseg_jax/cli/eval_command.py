"""The command that scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.console import Reporter, short_path

SHOWN_PIXEL_SCORES = ("dice", "soft_dice", "iou", "precision", "recall", "brier")
SHOWN_NUCLEUS_SCORES = (
    "aji",
    "aji_plus",
    "pq",
    "sq",
    "rq",
    "f1_70",
    "detection_f1",
    "split_rate",
    "merge_rate",
    "pq_touching",
    "f1_50_touching",
    "merge_rate_touching",
    "hd95_px",
    "assd_px",
)
"""The rest is in summary.json."""


def run_eval(
    run: Path,
    split: str,
    data: Path | None,
    overrides: Sequence[str],
    *,
    others: Sequence[Path],
    allow_trained: bool,
    quiet: bool,
) -> None:
    """Scores a run."""
    from cervseg_jax.evaluation.score import score_run
    from cervseg_jax.training.run_folder import load_run_config

    reporter = Reporter(quiet=quiet)
    config = load_run_config(run, overrides)
    summary, folder = score_run(
        run, config, split=split, data=data, others=others, allow_trained=allow_trained, reporter=reporter
    )
    for line in _lines(summary):
        reporter.info(line)
    reporter.info(f"written to {short_path(folder)}")


def _lines(summary: dict[str, Any]) -> list[str]:
    """Returns what is worth a look at once."""
    intervals = summary["intervals"]
    lines = [
        f"{summary['split']}: {summary['num_images']} images of {summary['num_sources']} sources; weights of epoch "
        f"{summary['epoch']}, threshold {summary['threshold']}"
    ]
    if "loss" in summary:
        lines.append(f"loss {summary['loss']:.4f}, dice_coef {summary['dice_coef']:.4f} (pooled over batches)")
    lines.append(f"{'':<24}over images, 95 % interval       pooled, 95 % interval")
    for name in SHOWN_PIXEL_SCORES:
        mean, pooled = f"{name}_mean", f"{name}_pooled"
        lines.append(
            f"{name:<22}{_scored(summary[mean], intervals[mean])}   {_scored(summary[pooled], intervals[pooled])}"
        )
    for name, count in summary["undefined"].items():
        lines.append(f"{name}: {count} of {summary['num_images']} images are without a value, and left out")
    lines.append(f"{'calibration_error':<47}{_scored(summary['calibration_error'], intervals['calibration_error'])}")
    tuned = summary["tuned"]
    if tuned is not None:
        lines.append(
            f"threshold {tuned['threshold']:.2f}, the best of {tuned['num_images']} validation images: Dice"
            f"{_scored(tuned['dice_mean'], [tuned['low'], tuned['high']])}"
        )
    for row in summary["subsets"]:
        dice, pq = row["dice"], row.get("pq")
        lines.append(
            f"{row['kind']} {row['value']}: {row['num_images']} images, Dice"
            f"{_scored(dice['mean'], [dice['low'], dice['high']])}"
            + ("" if pq is None else f", PQ{_scored(pq['mean'], [pq['low'], pq['high']])}")
        )
    if "nuclei" in summary:
        lines += _nucleus_lines(summary["nuclei"])
    names = {"doubt_against_dice": "Dice", "doubt_against_pq": "PQ"}
    shown = [f"{summary[name]:.2f} with {score}" for name, score in names.items() if name in summary]
    return [*lines, f"rank correlation of the network's doubt: {', '.join(shown)} (negative: doubt finds errors)"]


def _nucleus_lines(nuclei: dict[str, Any]) -> list[str]:
    lines = [
        f"\n{nuclei['num_true']} true nuclei, {nuclei['num_predicted']} predicted; "
        "means over images with 95 % intervals, and pooled:"
    ]
    for name in SHOWN_NUCLEUS_SCORES:
        score = nuclei[name]
        pooled = f"{score['pooled']:10.4f}" if "pooled" in score else ""
        lines.append(f"{name:<22}{_scored(score['mean'], [score['low'], score['high']])}{pooled}")
    return lines


def _scored(value: float, interval: Sequence[float]) -> str:
    return f"{value:8.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"
