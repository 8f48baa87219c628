"""One source image and its truth -> the files of the dataset."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.annotations.labelme import labelme_document
from cervseg_jax.annotations.outlines import Rings, draw_instances, enclosed_area, from_pixel_centers
from cervseg_jax.curation.collect import SourceImage, Truth, read_truth
from cervseg_jax.curation.geometry import Tile, pieces
from cervseg_jax.curation.recipe import Part, Recipe, ScannedImage
from cervseg_jax.data.augment import AUGMENTATIONS, apply_operations
from cervseg_jax.data.decode import read_bytes, read_image
from cervseg_jax.data.manifest import Record
from cervseg_jax.data.samples import Sample
from cervseg_jax.errors import DataError
from cervseg_jax.files import make_folder, sha256_of, write_png, write_text

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
"""How variants are made; a function of the recipe's seed, the image's name and the variant's number."""


def build_source(
    entry: ScannedImage, part: Part, source: Path, out: Path, recipe: Recipe
) -> tuple[list[Record], list[str]]:
    """Writes the files of one source image.

    Args:
      entry: the image.
      part: where it goes.
      source: the source folder, for relative names.
      out: the dataset.
      recipe: what to do.

    Returns:
      A record per written image, and remarks on its annotation.

    Raises:
      DataError: if a file is bad, or does not fit its image.
    """
    item = entry.item
    image, truth = read_image(item.image_path), read_truth(item, mask_rule=recipe.mask_rule)
    _check_size(item, truth, image.shape[:2])
    notes = list(truth.notes)
    outlines = None if truth.nuclei is None else _kept_outlines(item, truth, image.shape[:2], recipe, notes)
    records = []
    for piece in pieces(image, truth.labels, recipe.geometry):
        stem = item.stem + piece.suffix
        labels, moved = _instances(piece, outlines)
        sample = Sample(piece.image, (labels > 0).astype(np.uint8), labels)
        samples = [(stem, sample), *_variants(stem, sample, recipe if part.split == "train" else None)]
        folder = out / part.split
        if moved is not None:
            make_folder(folder / "labelme")
            document = labelme_document(moved, image_path=f"../images/{stem}.png", shape=labels.shape)
            write_text(folder / "labelme" / f"{stem}.json", document, durable=False)
        for name, made in samples:
            _write_sample(folder, name, made, has_instances=truth.has_instances)
            records.append(
                Record(
                    split=part.split,
                    stem=name,
                    group=part.group,
                    fold=part.fold,
                    subset=item.subset,
                    source_path=str(item.image_path.relative_to(source)),
                    annotation_path=str(item.annotation_path.relative_to(source)),
                    source_height=entry.size[0],
                    source_width=entry.size[1],
                    height=labels.shape[0],
                    width=labels.shape[1],
                    transform=str(piece.transform) + (" augmented" if name != stem else ""),
                    num_nuclei=_num_nuclei(made) if truth.has_instances else -1,
                    foreground=round(float(made.mask.mean()), 6),
                    source_sha256=entry.sha256,
                    image_sha256=sha256_of(read_bytes(folder / "images" / f"{name}.png")),
                )
            )
    return records, notes


def _variants(stem: str, sample: Sample, recipe: Recipe | None) -> Iterator[tuple[str, Sample]]:
    for number in range(1, 1 + (recipe.variants if recipe else 0)):
        seed = recipe.seed if recipe else 0
        rng = np.random.default_rng([seed, number, zlib.crc32(stem.encode("utf-8", "surrogateescape"))])
        yield f"{stem}_v{number:02d}", apply_operations(sample, rng, VARIANT_OPERATIONS)


def _write_sample(folder: Path, stem: str, sample: Sample, *, has_instances: bool) -> None:
    for name in ("images", "masks", *(("instances",) if has_instances else ())):
        make_folder(folder / name)
    write_png(folder / "images" / f"{stem}.png", sample.image)
    write_png(folder / "masks" / f"{stem}.png", sample.mask * 255)
    if has_instances and sample.instances is not None:
        _write_instances(folder / "instances" / f"{stem}.png", sample.instances)


def _num_nuclei(sample: Sample) -> int:
    return 0 if sample.instances is None else len(np.unique(sample.instances[sample.instances > 0]))


def _check_size(item: SourceImage, truth: Truth, size: tuple[int, int]) -> None:
    stated = truth.claimed_size if truth.labels is None else truth.labels.shape
    if stated is not None and tuple(stated) != tuple(size):
        raise DataError(
            f"{item.annotation_path}: is for an image of {stated[1]}x{stated[0]}, "
            f"{item.image_path.name} is {size[1]}x{size[0]} (turned upright by its EXIF tag)"
        )


def _kept_outlines(
    item: SourceImage, truth: Truth, size: tuple[int, int], recipe: Recipe, notes: list[str]
) -> list[Rings]:
    """Filters by label, drops what has no area inside the image, and orders large to small."""
    kept = []
    whole = bool(truth.nuclei)
    for number, nucleus in enumerate(truth.nuclei or [], start=1):
        name = f"{item.annotation_path}: nucleus {number}"
        if recipe.labels and nucleus.label not in recipe.labels:
            continue
        rings = nucleus.rings
        points = np.concatenate(list(rings))
        whole = whole and bool((points == np.rint(points)).all())
        if (points.max(axis=0) <= 0).any() or (points.min(axis=0) >= (size[1], size[0])).any():
            notes.append(f"{name}: lies outside the image and is left out")
            continue
        if recipe.outlines == "traced":
            rings = [edge for ring in rings for edge in from_pixel_centers(ring)]
        if enclosed_area(rings) == 0:
            notes.append(f"{name}: has no area and is left out")
        else:
            kept.append(rings)
    if whole and recipe.outlines == "drawn" and item.kind in ("labelme", "geojson"):
        notes.append(
            f"{item.annotation_path}: all coordinates are whole numbers; if a program traced them along pixel "
            "centers, --outlines traced gives back the half pixel all round that is missing"
        )
    return sorted(kept, key=enclosed_area, reverse=True)


def _instances(piece: Tile, outlines: Sequence[Rings] | None) -> tuple[np.ndarray, list[Rings] | None]:
    """Returns the piece's label map with the numbers 1, 2, 3 ..., and its outlines at full extent."""
    if outlines is None:
        labels = np.zeros(piece.image.shape[:2], np.int32) if piece.labels is None else piece.labels
        return np.unique(labels, return_inverse=True)[1].reshape(labels.shape) if labels.any() else labels, None
    moved = [piece.transform.apply(rings) for rings in outlines]
    shape = piece.image.shape[:2]
    inside = [
        rings
        for rings in moved
        if (np.concatenate(rings).max(axis=0) > 0).all()
        and (np.concatenate(rings).min(axis=0) < (shape[1], shape[0])).all()
    ]
    return draw_instances(inside, shape=shape), inside


def _write_instances(path: Path, labels: np.ndarray) -> None:
    if labels.max() > 65535:
        raise DataError(f"{path.name}: has {labels.max()} nuclei, more than a 16-bit label file can hold; use --tile")
    write_png(path, labels.astype(np.uint16))
