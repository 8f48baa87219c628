"""Statistics of a dataset, as JSON and as figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from cervseg_jax.curation.overview import write_overview
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.pairs import list_images, split_folders, stem_of
from cervseg_jax.errors import DataError
from cervseg_jax.files import write_json, write_png
from cervseg_jax.label_maps import touching
from cervseg_jax.plots import TRUTH_COLOR, draw_outline, draw_sheet, save_figure
from cervseg_jax.runtime.threads import map_files

NUM_SAMPLES = 12
COLUMNS = 4


class ImageStats(NamedTuple):
    """Measurements of one image."""

    size: tuple[int, int]
    foreground: float
    areas: list[int]
    """Pixels of each nucleus; of each connected region where there are no instance labels."""
    touching: int
    """Number of nuclei that touch another one; 0 without instance labels."""
    has_instances: bool
    mean_rgb: tuple[float, float, float]
    """Mean color of the nuclei, or of the image where it has none."""


class _Member(NamedTuple):
    """An image, and the files that say where its nuclei are."""

    image: Path
    instances: Path | None
    mask: Path | None


def write_statistics(dataset: Path, out: Path, *, progress: Callable[[str, int], Any]) -> dict[str, Any]:
    """Writes `stats.json`, `<name>_statistics.png`, `train_{images,masks}_sample.png` and `overview.html`.

    Args:
      dataset: `{train,valid,test}/{images,masks[,instances]}`, or `images` and `masks`.
      out: folder for the files.
      progress: as for `prepare`.

    Returns:
      The content of `stats.json`: per split counts, sizes, shares, nuclei per image, quantiles of areas, colors.

    Raises:
      ConfigError: if there are no such folders.
      DataError: if a file is bad or has no partner.
    """
    folders = split_folders(dataset)
    paths = {split: _members(folder) for split, folder in folders.items()}
    images: dict[str, list[ImageStats]] = {}
    with progress("counting", sum(map(len, paths.values()))) as advance:
        for split, members in paths.items():
            images[split] = map_files(_measure, members, on_progress=advance)
    summary = {split: summarize_split(members) for split, members in images.items() if members}
    write_json(out / "stats.json", summary)
    draw_statistics(out / f"{dataset.name}_statistics.png", images, title=dataset.name)
    first = next(iter(folders))
    prefix = "train" if first == "train" else first
    _write_samples(out, prefix, paths[first])
    pictures = {
        f"{dataset.name}_statistics.png": "Distributions: images, nuclei per image, stain, areas, foreground, touching",
        f"{prefix}_images_sample.png": f"Images: a sample of {first} with outlines of the truth",
        f"{prefix}_masks_sample.png": "Masks: of the same images",
    }
    write_overview(out / "overview.html", dataset, summary, pictures)
    return summary


def summarize_split(images: Sequence[ImageStats]) -> dict[str, Any]:
    """Summarizes the images of one split.

    Args:
      images: measurements of at least one image.

    Returns:
      JSON values; areas in pixels.
    """
    areas = [area for image in images for area in image.areas]
    has_instances = all(image.has_instances for image in images)
    counts = [len(image.areas) for image in images]
    sizes = sorted({image.size for image in images})
    return {
        "images": len(images),
        "sizes": [list(size) for size in sizes[:20]],
        "foreground_mean": float(np.mean([image.foreground for image in images])),
        "empty_masks": sum(not image.areas for image in images),
        "nuclei" if has_instances else "regions": int(np.sum(counts)),
        "per_image": {"mean": float(np.mean(counts)), "min": int(min(counts)), "max": int(max(counts))},
        "touching_share": sum(image.touching for image in images) / max(len(areas), 1) if has_instances else None,
        "area_px": {f"p{q}": float(np.percentile(areas, q)) for q in (5, 25, 50, 75, 95)} if areas else None,
        "nucleus_rgb_mean": np.mean([image.mean_rgb for image in images], axis=0).round(1).tolist(),
    }


def draw_statistics(path: Path, images: dict[str, list[ImageStats]], *, title: str) -> None:
    """Draws images per split, nuclei per image, stain colors, areas, foreground and touching shares.

    Args:
      path: the PNG to write.
      images: measurements by split.
      title: heading.
    """
    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    (count, per_image, color), (area, share, touching) = figure.subplots(2, 3)
    names = [name for name, members in images.items() if members]
    bars = count.bar(names, [len(images[name]) for name in names], color="#1b6ca8", width=0.6)
    count.bar_label(bars)
    count.set_ylabel("images")
    has_instances = all(image.has_instances for name in names for image in images[name])
    what = "nuclei" if has_instances else "connected regions"
    groups: dict[str, dict[str, list[float]]] = {
        "per_image": {name: [len(image.areas) for image in images[name]] for name in names},
        "area": {name: [float(np.log10(a)) for image in images[name] for a in image.areas] for name in names},
        "share": {name: [100 * image.foreground for image in images[name]] for name in names},
        "touching": {
            name: [100 * image.touching / len(image.areas) for image in images[name] if image.areas and has_instances]
            for name in names
        },
    }
    _histogram(per_image, groups["per_image"], f"{what} per image")
    _histogram(area, groups["area"], f"log10 of the area of {what}, pixels")
    _histogram(share, groups["share"], "share of nucleus, %")
    _histogram(touching, groups["touching"], "touching nuclei, % (needs instance labels)")
    for name in names:
        rgb = np.array([image.mean_rgb for image in images[name]])
        color.scatter(rgb[:, 0], rgb[:, 2], c=rgb / 255, s=28, edgecolors="0.3", linewidths=0.4)
    color.set(xlabel="red of the nuclei (each dot an image, in its color)", ylabel="blue")
    per_image.legend(frameon=False)
    for axes in (count, per_image, color, area, share, touching):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    save_figure(path, figure)


def _histogram(axes: Axes, values: dict[str, list[float]], label: str) -> None:
    """Draws shares of each split over common bins, as outlines that do not hide each other."""
    combined = [value for several in values.values() for value in several]
    axes.set(xlabel=label, ylabel="share")
    if not combined:
        return
    edges = np.linspace(min(combined), max(combined) + 1e-9, 16)
    for name, several in values.items():
        if several:
            counts, _ = np.histogram(several, edges)
            axes.stairs(counts / len(several), edges, label=name, linewidth=1.8)


def _measure(member: _Member) -> ImageStats:
    image = read_image(member.image)
    labels, has_instances = _labels_of(member)
    if labels.shape != image.shape[:2]:
        path = member.image
        raise DataError(f"{path}: is {image.shape[1]}x{image.shape[0]}, its truth {labels.shape[1]}x{labels.shape[0]}")
    if not has_instances:
        regions: Any = ndimage.label(labels > 0)
        labels = np.asarray(regions[0], np.int32)
    areas = np.bincount(labels.ravel())[1:]
    inside = labels > 0
    pixels = image[inside] if inside.any() else image.reshape(-1, 3)
    red, green, blue = pixels.mean(axis=0)
    return ImageStats(
        size=image.shape[:2],
        foreground=float(inside.mean()),
        areas=areas[areas > 0].tolist(),
        touching=int(touching(labels).sum()) if has_instances else 0,
        has_instances=has_instances,
        mean_rgb=(float(red), float(green), float(blue)),
    )


def _labels_of(member: _Member) -> tuple[np.ndarray, bool]:
    """Reads instance labels where there are some, else the mask."""
    if member.instances is not None:
        return read_labels(member.instances)
    if member.mask is not None:
        return read_mask(member.mask).mask.astype(np.int32), False
    raise DataError(f"{member.image}: has neither instance labels nor a mask")


def _members(folder: Path) -> list[_Member]:
    """Lists the images of a split with what is known about each."""
    known = {}
    for kind in ("instances", "masks"):
        paths = list_images(folder / kind) if (folder / kind).is_dir() else []
        # A file of the very same name comes before one in another of Unicode's forms.
        known[kind] = {stem_of(path): path for path in reversed(paths)} | {path.stem: path for path in reversed(paths)}

    def truth_of(path: Path, kind: str) -> Path | None:
        return known[kind].get(path.stem) or known[kind].get(stem_of(path))

    images = list_images(folder / "images")
    return [_Member(path, truth_of(path, "instances"), truth_of(path, "masks")) for path in images]


def _write_samples(out: Path, prefix: str, members: Sequence[_Member]) -> None:
    """Writes a grid of images with outlines, and one of their masks."""
    chosen = [members[int(i)] for i in np.linspace(0, len(members) - 1, min(NUM_SAMPLES, len(members)))]
    outlined, masks = [], []
    for member in chosen:
        labels, _ = _labels_of(member)
        picture = read_image(member.image)
        for label in np.unique(labels[labels > 0]):
            picture = draw_outline(picture, labels == label, color=TRUTH_COLOR)
        outlined.append(picture)
        masks.append(np.repeat(((labels > 0) * 255).astype(np.uint8)[:, :, None], 3, axis=2))
    for name, pictures in ((f"{prefix}_images_sample", outlined), (f"{prefix}_masks_sample", masks)):
        blank = np.full_like(pictures[0], 255)
        filled = pictures + [blank] * (-len(pictures) % COLUMNS)
        rows = [filled[start : start + COLUMNS] for start in range(0, len(filled), COLUMNS)]
        write_png(out / f"{name}.png", draw_sheet(rows, captions=("",) * COLUMNS))
