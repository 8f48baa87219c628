"""Conversion of one source image and its annotation into the files of the dataset."""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.annotations.labelme import NUCLEUS, LabeledOutline, labelme_document
from cervseg_jax.annotations.nuclei import Nucleus
from cervseg_jax.annotations.objects import Note, tally
from cervseg_jax.annotations.outlines import (
    draw_instances,
    enclosed_area,
    follows_pixel_centers,
    from_pixel_centers,
    has_whole_numbers,
    rasterize,
)
from cervseg_jax.curation.collect import SourceImage
from cervseg_jax.curation.geometry import Tile, cut_tiles
from cervseg_jax.curation.recipe import Assignment, Recipe, ScannedImage
from cervseg_jax.curation.scan import require_size
from cervseg_jax.curation.truth import read_truth
from cervseg_jax.data.augment import AUGMENTATIONS, apply_operations
from cervseg_jax.data.checks import looks_inverted
from cervseg_jax.data.covered_files import save_covered
from cervseg_jax.data.decode import decode_image, read_bytes
from cervseg_jax.data.headers import read_header
from cervseg_jax.data.manifest import Record
from cervseg_jax.data.samples import Sample
from cervseg_jax.extents import Extent, covered_layers
from cervseg_jax.files import make_folder, sha256_of, write_labels, write_png, write_text

PIXEL_CENTER_SHARE = 0.5
"""Share of outlines through pixel centers above which all whole-numbered ones of a file are taken for such."""
MAX_NUCLEUS_SHARE = 0.5
"""Share of the image above which a nucleus is remarked on."""
_TOO_LARGE = "a nucleus that covers more than half of its image: is it a region, or the background?"
LABELME_DECIMALS = 9
"""Digits of coordinates in LabelMe files, so many that reading them restores the label map."""

VARIANT_OPERATIONS = (
    (AUGMENTATIONS["flip"], 1.0, {}),
    (AUGMENTATIONS["rotate90"], 1.0, {}),
    (AUGMENTATIONS["affine"], 0.7, {}),
    (AUGMENTATIONS["elastic"], 0.5, {}),
    (AUGMENTATIONS["bulge"], 0.3, {}),
    (AUGMENTATIONS["stain"], 0.7, {}),
    (AUGMENTATIONS["color"], 0.5, {}),
    (AUGMENTATIONS["blur"], 0.2, {}),
)
"""Operations of variants; a function of the recipe's seed, the stem and the index of the variant."""


def build_source(
    entry: ScannedImage, assigned: Assignment, source: Path, out: Path, recipe: Recipe
) -> tuple[list[Record], list[Note]]:
    """Writes the files of one source image.

    Args:
      entry: the image.
      assigned: its split and group.
      source: the source folder, for relative names.
      out: folder of the dataset.
      recipe: settings.

    Returns:
      A record per written image, and notes on the annotation.

    Raises:
      DataError: if a file is bad, or the annotation does not fit its image.
    """
    item = entry.item
    data = read_bytes(item.image_path)
    image = decode_image(data, source=item.image_path, bit_depth=recipe.bit_depth)
    truth = read_truth(item, mask_rule=recipe.mask_rule, labels=recipe.labels, crowd=recipe.crowd)
    size = (image.shape[0], image.shape[1])
    require_size(item, truth.stated_size, size)
    notes = [*truth.notes, *_remarks(item, image, truth.labels, is_turned=read_header(data).orientation != 1)]
    outlines = (
        None if truth.nuclei is None else _usable_outlines(truth.nuclei, size, recipe, str(item.annotation_path), notes)
    )
    records = []
    layers = np.stack([truth.labels, *truth.covered], axis=2) if truth.labels is not None else None
    for tile in cut_tiles(image, layers, recipe.geometry):
        stem = item.stem + tile.suffix
        labels, covered, moved = _instances(tile, outlines)
        sample = Sample(tile.image, (labels > 0).astype(np.uint8), labels, covered)
        samples = [(stem, sample), *_variants(stem, sample, recipe if assigned.split == "train" else None)]
        folder = out / assigned.split
        if moved is not None:
            make_folder(folder / "labelme")
            document = labelme_document(
                moved, image_path=f"../images/{stem}.png", shape=labels.shape, decimals=LABELME_DECIMALS
            )
            write_text(folder / "labelme" / f"{stem}.json", document, durable=False)
        for name, variant in samples:
            _write_sample(folder, name, variant, has_instances=truth.has_instances)
            records.append(
                Record(
                    split=assigned.split,
                    stem=name,
                    group=assigned.group,
                    fold=assigned.fold,
                    subset=item.subset,
                    source_path=relative_path(item.image_path, source),
                    annotation_path=relative_path(item.annotation_path, source),
                    source_height=entry.size[0],
                    source_width=entry.size[1],
                    height=labels.shape[0],
                    width=labels.shape[1],
                    transform=str(tile.transform) + (" augmented" if name != stem else ""),
                    num_nuclei=_num_nuclei(variant) if truth.has_instances else -1,
                    foreground=round(float(variant.mask.mean()), 6),
                    source_sha256=entry.sha256,
                    image_sha256=sha256_of(read_bytes(folder / "images" / f"{name}.png")),
                )
            )
    return records, tally(notes)


def _remarks(item: SourceImage, image: np.ndarray, labels: np.ndarray | None, *, is_turned: bool) -> Iterator[Note]:
    """Yields notes on an annotation that is probably not meant as it is read."""
    if is_turned:
        yield Note(
            "is turned upright by its EXIF tag; its annotation must be upright, too, which `cervseg-jax audit` checks",
            str(item.image_path),
        )
    if labels is None or not labels.any():
        return
    if item.kind != "masks" and np.bincount(labels.ravel())[1:].max() > MAX_NUCLEUS_SHARE * labels.size:
        yield Note(_TOO_LARGE, str(item.annotation_path))
    if item.kind == "masks" and labels.all():
        yield Note("a mask that marks the whole image", str(item.annotation_path))
    elif item.kind == "masks" and looks_inverted(image, labels.astype(np.uint8)):
        message = "a mask that seems inverted: it marks the background, the larger part of the image"
        yield Note(message, str(item.annotation_path))


def relative_path(path: Path, source: Path) -> str:
    """Returns a path as the manifest names it: relative to the source, also where it is outside of it."""
    return os.path.relpath(path, source)


def _variants(stem: str, sample: Sample, recipe: Recipe | None) -> Iterator[tuple[str, Sample]]:
    for index in range(1, 1 + (recipe.variants if recipe else 0)):
        seed = recipe.seed if recipe else 0
        rng = np.random.default_rng([seed, index, zlib.crc32(stem.encode("utf-8", "surrogateescape"))])
        yield f"{stem}_v{index:02d}", apply_operations(sample, rng, VARIANT_OPERATIONS)


def _write_sample(folder: Path, stem: str, sample: Sample, *, has_instances: bool) -> None:
    for name in ("images", "masks", *(("instances",) if has_instances else ())):
        make_folder(folder / name)
    write_png(folder / "images" / f"{stem}.png", sample.image)
    write_png(folder / "masks" / f"{stem}.png", sample.mask * 255)
    if has_instances and sample.instances is not None:
        write_labels(folder / "instances", stem, sample.instances)
        save_covered(folder, stem, sample.covered)


def _num_nuclei(sample: Sample) -> int:
    return 0 if sample.instances is None else len(np.unique(sample.instances[sample.instances > 0]))


def _usable_outlines(
    nuclei: Sequence[Nucleus], size: tuple[int, int], recipe: Recipe, source: str, notes: list[Note]
) -> list[LabeledOutline]:
    """Drops nuclei without a pixel inside the image, and sorts the rest from large to small."""
    kept = []
    are_centered = sum(follows_pixel_centers(nucleus.rings) for nucleus in nuclei) > PIXEL_CENTER_SHARE * len(nuclei)
    for nucleus in nuclei:
        rings = nucleus.rings
        points = np.concatenate(list(rings))
        if (points.max(axis=0) <= 0).any() or (points.min(axis=0) >= (size[1], size[0])).any():
            notes.append(Note("lies outside the image and is left out", nucleus.name))
            continue
        # Fractions are of outlines that were added by hand.
        is_traced = recipe.outlines == "auto" and are_centered and has_whole_numbers(rings)
        if recipe.outlines == "pixel_centers" or is_traced:
            rings = [edge for ring in rings for edge in from_pixel_centers(ring)]
        num_pixels = int(rasterize(rings, shape=size).inside.sum())
        if num_pixels == 0:
            notes.append(Note("covers no pixel (coordinates count pixels) and is left out", nucleus.name))
            continue
        if num_pixels > MAX_NUCLEUS_SHARE * size[0] * size[1]:
            notes.append(Note(_TOO_LARGE, nucleus.name))
        kept.append(LabeledOutline(rings, nucleus.label or NUCLEUS))
    if are_centered and recipe.outlines != "pixel_centers":
        does = "restored" if recipe.outlines == "auto" else "left out with --outlines exact"
        notes.append(
            Note(
                "the outlines run through pixel centers, as cv2.findContours writes them: the half pixel that they "
                f"lose on every side is {does}",
                source,
            )
        )
    return sorted(kept, key=lambda outline: enclosed_area(outline.rings), reverse=True)


def _instances(
    tile: Tile, outlines: Sequence[LabeledOutline] | None
) -> tuple[np.ndarray, tuple[np.ndarray, ...], list[LabeledOutline] | None]:
    """Returns the tile's label map with the labels 1, 2, 3 ..., its covered nuclei, and its outlines at full extent."""
    if outlines is None:
        layers = np.zeros((*tile.image.shape[:2], 1), np.int32) if tile.labels is None else tile.labels
        labels, *covered = np.moveaxis(_renumbered(layers), 2, 0)
        return labels, tuple(layer for layer in covered if layer.any()), None
    moved = [outline._replace(rings=tile.transform.apply(outline.rings)) for outline in outlines]
    shape = (tile.image.shape[0], tile.image.shape[1])
    inside = [
        outline
        for outline in moved
        if (np.concatenate(list(outline.rings)).max(axis=0) > 0).all()
        and (np.concatenate(list(outline.rings)).min(axis=0) < (shape[1], shape[0])).all()
    ]
    labels = draw_instances([outline.rings for outline in inside], shape=shape)
    return labels, _covered(inside, labels), inside


def _covered(outlines: Sequence[LabeledOutline], labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the label maps of the nuclei that others partly cover, whole, with the labels of the label map."""
    whole = (rasterize(outline.rings, shape=labels.shape) for outline in outlines)
    extents = {label: Extent(*window) for label, window in enumerate(whole, start=1)}
    return covered_layers(extents, labels)


def _renumbered(labels: np.ndarray) -> np.ndarray:
    levels, positions = np.unique(labels, return_inverse=True)
    first = 0 if levels[0] == 0 else 1  # no pixel of background: labels still begin at 1
    return (positions.reshape(labels.shape) + first).astype(np.int32)
