"""Writes the history: metrics.csv, history.json and curves. Each file is rewritten as a whole, so a resume is safe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.files import write_json, write_text
from cervseg_jax.plots import draw_curves
from cervseg_jax.tables import csv_text

History = list[dict[str, Any]]
"""One row per finished epoch, with equal keys."""


def columns(metrics: Sequence[str]) -> list[str]:
    """Returns the columns of metrics.csv.

    Example:
      >>> columns(["dice_mean"])[:6]
      ['epoch', 'step', 'loss', 'val_loss', 'dice_mean', 'val_dice_mean']
    """
    scores = [name for metric in ("loss", *metrics) for name in (metric, f"val_{metric}")]
    return ["epoch", "step", *scores, "learning_rate", "seconds", "images_per_second", "input_wait"]


def write_history(folder: Path, history: History, *, metrics: Sequence[str], best_epoch: int) -> None:
    """Writes metrics.csv, history.json, train_losses.png and train_metrics.png.

    Args:
      folder: the run folder.
      history: rows with the keys of `columns`.
      metrics: the metrics among them.
      best_epoch: 1-based; 0 for none.

    Raises:
      OSError: if a file cannot be written.
    """
    names = columns(metrics)
    write_text(folder / "metrics.csv", csv_text(names, [[_rounded(row[name]) for name in names] for row in history]))
    series = {name: [row[name] for row in history] for name in names}
    write_json(folder / "history.json", series)
    drops = rate_drops(series["learning_rate"])
    for name, shown in (("loss", ("loss",)), ("metrics", tuple(metrics))):
        keys = [key for metric in shown for key in (metric, f"val_{metric}")]
        curves = {key: series[key] for key in keys if any(value is not None for value in series[key])}
        file = folder / ("train_losses.png" if name == "loss" else "train_metrics.png")
        if curves:
            rates = series["learning_rate"]
            draw_curves(file, curves, title=name, best_epoch=best_epoch, rate_drops=drops, rates=rates)


def rate_drops(rates: Sequence[float]) -> list[int]:
    """Returns the 1-based epochs in which the plateau rule lowered the learning rate; none for a cosine schedule.

    Example:
      >>> rate_drops([1.0, 1.0, 0.3, 0.3, 0.1])
      [3, 5]
      >>> rate_drops([1.0, 0.8, 0.5, 0.1])
      []
    """
    return [
        row + 1
        for row in range(2, len(rates))
        if rates[row] < 0.9 * rates[row - 1] and rates[row - 1] == rates[row - 2]
    ]


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
