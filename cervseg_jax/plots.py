"""Figures and images: training curves, reliability plots, overlays, and sheets of images, truth and predictions."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cervseg_jax.files import write_bytes
from cervseg_jax.label_maps import inner_borders

TRUTH_COLOR = (20, 160, 60)
PREDICTION_COLOR = (230, 30, 140)
_CURVE_COLORS = ("#1b6ca8", "#d1495b", "#2a9d68", "#8a5cb5")


def save_figure(path: Path, figure: Figure, *, bbox_inches: str | None = None) -> None:
    """Writes a figure to a PNG file atomically; `bbox_inches` as in `Figure.savefig`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches=bbox_inches)
    write_bytes(path, buffer.getvalue())


def draw_curves(
    path: Path,
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    best_epoch: int,
    rate_drops: Sequence[int],
    rates: Sequence[float],
) -> None:
    """Plots values over epochs.

    Args:
      path: the PNG to write.
      curves: values per epoch by name; names with the prefix `val_` are drawn solid, the others dashed.
      title: heading and label of the vertical axis.
      best_epoch: 1-based epoch to mark; 0 for none.
      rate_drops: 1-based epochs at which a reduced learning rate took effect.
      rates: learning rate per epoch, drawn in a panel below.
    """
    figure = Figure(figsize=(8, 5.6), dpi=120, layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    bases = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    for name, values in curves.items():
        validation = name.startswith("val_")
        axes.plot(
            range(1, len(values) + 1),
            values,
            label=name,
            color=_CURVE_COLORS[bases.index(name.removeprefix("val_")) % len(_CURVE_COLORS)],
            linestyle="-" if validation else "--",
            alpha=1.0 if validation else 0.7,
            linewidth=1.8,
            marker="o" if len(values) < 3 else None,
        )
    for index, epoch in enumerate(rate_drops):
        label = "learning rate reduced" if index == 0 else None
        axes.axvline(epoch, color="0.6", linewidth=0.8, linestyle=":", label=label)
    if best_epoch:
        axes.axvline(best_epoch, color="0.25", linewidth=1.0, label=f"best epoch ({best_epoch})")
    axes.set(ylabel=title)
    axes.legend(frameon=False)
    below.step(range(1, len(rates) + 1), rates, where="mid", color="0.35", linewidth=1.4)
    below.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (axes, below):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure)


def draw_family_curves(path: Path, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Plots training and validation losses of several networks as small multiples with shared axes.

    Args:
      path: the PNG to write.
      curves: training and validation loss per epoch, by network.
    """
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3 * columns, 2.3 * rows), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, (training, validation)) in zip(grid.flat, curves.items(), strict=False):
        for label, values, style in (("training", training, "--"), ("validation", validation, "-")):
            axes.plot(range(1, len(values) + 1), values, style, color=_CURVE_COLORS[0], label=label, linewidth=1.6)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("epoch")
    figure.supylabel("loss")
    save_figure(path, figure)


def draw_reliability(
    path: Path, curve: Mapping[str, Sequence[float]], *, error: float, counted: str = "pixels"
) -> None:
    """Draws a reliability diagram, with a histogram of the predicted probabilities below.

    Args:
      path: the PNG to write.
      curve: `predicted`, `observed` and `pixels` per bin; NaN for empty bins.
      error: expected calibration error, for the title.
      counted: what `pixels` counts.
    """
    figure = Figure(figsize=(5, 5.6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.9, linestyle=":", label="perfectly calibrated")
    upper.plot(curve["predicted"], curve["observed"], "o-", color=_CURVE_COLORS[0], markersize=4, label="this network")
    title = f"expected calibration error {error:.4f}"
    observed = "observed fraction of nucleus pixels" if counted == "pixels" else f"observed fraction of right {counted}"
    upper.set(ylabel=observed, xlim=(0, 1), ylim=(0, 1), title=title)
    upper.legend(frameon=False, loc="upper left")
    edges = np.linspace(0, 1, len(curve["pixels"]) + 1)
    lower.stairs(curve["pixels"], edges, fill=True, color=_CURVE_COLORS[0], alpha=0.5)
    lower.set(xlabel="predicted probability", ylabel=counted, yscale="log")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure)


def draw_scatter(path: Path, columns: Mapping[str, Sequence[np.ndarray]], *, names: Sequence[str]) -> None:
    """Plots per-image scores of several methods against those of the first method.

    Args:
      path: the PNG to write.
      columns: by score name, one array [images] per method.
      names: method names.
    """
    figure = Figure(figsize=(4.4 * len(columns), 4.4), dpi=120, layout="constrained")
    grid = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (score, values) in zip(grid, columns.items(), strict=True):
        low = max(0.0, float(np.nanmin(np.concatenate(values))) - 0.03)
        axes.plot([low, 1], [low, 1], color="0.6", linewidth=0.9, linestyle=":")
        for index, (name, column) in enumerate(zip(names[1:], values[1:], strict=True)):
            color = _CURVE_COLORS[index % len(_CURVE_COLORS)]
            axes.scatter(values[0], column, s=16, color=color, alpha=0.7, linewidths=0, label=name)
        axes.set(xlabel=f"{score} of {names[0]}", ylabel=score, xlim=(low, 1.005), ylim=(low, 1.005), aspect="equal")
        axes.set_title("points above the line: better than the first", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    save_figure(path, figure)


class Box(NamedTuple):
    """A stage in the diagram of `draw_stages`."""

    label: str
    level: float
    """Vertical position; larger values are further down."""
    side: str
    """Text at the left of the level, such as the size in pixels."""
    feeds: Sequence[int]
    """Indices of the boxes that feed into it."""


def draw_stages(path: Path, boxes: Sequence[Box], *, title: str) -> None:
    """Draws a network as boxes: in computation order from left to right, coarser resolutions further down.

    Args:
      path: the PNG to write.
      boxes: the stages of the network.
      title: heading.
    """
    depth = max(box.level for box in boxes)
    figure = Figure(figsize=(max(7, 0.62 * len(boxes) + 1.5), max(3, 0.75 * depth + 1.5)), dpi=110)
    axes = figure.subplots()
    for index, box in enumerate(boxes):
        for source in box.feeds:
            start, end = (source + 0.28, -boxes[source].level), (index - 0.28, -box.level)
            is_skip = index - source > 1
            axes.annotate(
                "",
                xy=end,
                xytext=start,
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#d1495b" if is_skip else "0.45",
                    "alpha": 0.6 if is_skip else 1.0,
                    "linewidth": 1.0,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "connectionstyle": f"arc3,rad={-0.18 if is_skip else 0}",
                },
            )
        axes.text(
            index,
            -box.level,
            box.label,
            ha="center",
            va="center",
            fontsize=7,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "#e8f0f7", "edgecolor": "#1b6ca8", "linewidth": 0.8},
            zorder=3,
        )
    for level, side in sorted({box.level: box.side for box in boxes}.items()):
        axes.text(-0.8, -level, side, ha="right", va="center", fontsize=7, color="0.35")
    axes.set(xlim=(-1.0, len(boxes) - 0.3), ylim=(-depth - 0.6, 0.9), title=title)
    axes.set_axis_off()
    save_figure(path, figure, bbox_inches="tight")


def draw_overlay(image: np.ndarray, mask: np.ndarray, *, color: tuple[int, int, int] = PREDICTION_COLOR) -> np.ndarray:
    """Tints the mask's area and draws its outline on a copy of the image.

    Args:
      image: uint8 [h, w, 3], RGB.
      mask: uint8 [h, w], 0 or 1.
      color: RGB.

    Returns:
      uint8 [h, w, 3].
    """
    return draw_outline(tint(image, mask > 0, color=color), mask, color=color)


def tint(image: np.ndarray, inside: np.ndarray, *, color: tuple[int, int, int] = PREDICTION_COLOR) -> np.ndarray:
    """Blends a color at 25 % opacity over the pixels `inside`, bool [h, w], of a copy of the image."""
    tinted = image.copy()
    tinted[inside] = (0.75 * image[inside] + 0.25 * np.array(color)).astype(np.uint8)
    return tinted


def draw_outline(image: np.ndarray, mask: np.ndarray, *, color: tuple[int, int, int]) -> np.ndarray:
    """Draws the outline of a mask on a copy of the image; arguments as in `draw_overlay`."""
    outlined = image.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(min(image.shape[:2]) / 300))
    cv2.drawContours(outlined, contours, -1, color, thickness, lineType=cv2.LINE_AA)
    return outlined


def draw_instance_outlines(image: np.ndarray, labels: np.ndarray, *, color: tuple[int, int, int]) -> np.ndarray:
    """Draws the inner border of every nucleus on a copy of the image.

    Args:
      image: uint8 [h, w, 3], RGB.
      labels: integer labels [h, w], 0 for background.
      color: RGB.

    Returns:
      uint8 [h, w, 3].
    """
    outlined = image.copy()
    outlined[inner_borders(labels)] = color
    return outlined


def draw_sheet(rows: Sequence[Sequence[np.ndarray]], *, captions: Sequence[str], height_px: int = 256) -> np.ndarray:
    """Arranges images in a grid with column headings.

    Args:
      rows: uint8 RGB images [h, w, 3]; each row has one image per caption.
      captions: column headings.
      height_px: height of each row.

    Returns:
      uint8 RGB image [h, w, 3].
    """
    gap = 6
    lines = []
    widths = [
        max(round(row[column].shape[1] * height_px / row[column].shape[0]) for row in rows)
        for column in range(len(captions))
    ]
    header = np.full((28, sum(widths) + gap * (len(widths) + 1), 3), 255, np.uint8)
    for column, caption in enumerate(captions):
        left = gap + sum(widths[:column]) + gap * column
        cv2.putText(header, caption, (left + 4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    lines.append(header)
    for row in rows:
        line = np.full((height_px + gap, header.shape[1], 3), 255, np.uint8)
        for column, image in enumerate(row):
            width = round(image.shape[1] * height_px / image.shape[0])
            interpolation = cv2.INTER_AREA if image.shape[0] > height_px else cv2.INTER_NEAREST
            cell = cv2.resize(image, (width, height_px), interpolation=interpolation)
            left = gap + sum(widths[:column]) + gap * column
            line[:height_px, left : left + width] = cell
        lines.append(line)
    return np.concatenate(lines)
