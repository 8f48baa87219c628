"""First pass over a source: every image and annotation is read once before anything is written."""

from collections import Counter
from collections.abc import Sequence

from cervseg_jax.annotations.nuclei import has_label, list_labels, missing_label_message, similar_labels
from cervseg_jax.curation.collect import SourceImage
from cervseg_jax.curation.recipe import Recipe, ScannedImage
from cervseg_jax.curation.similarity import perceptual_hash
from cervseg_jax.curation.truth import LABEL_KINDS, read_truth
from cervseg_jax.data.decode import decode_raw, read_bytes, rgb_of
from cervseg_jax.data.headers import read_header
from cervseg_jax.data.label_files import LabelStats, are_label_maps, label_stats
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import sha256_of


def scan_image(item: SourceImage, recipe: Recipe) -> ScannedImage:
    """Reads an image and its annotation.

    Raises:
      DataError: if a file is bad, or the annotation is for an image of another size.
    """
    data = read_bytes(item.image_path)
    raw = decode_raw(data, source=item.image_path)
    image = rgb_of(raw, source=item.image_path, bit_depth=recipe.bit_depth)
    size = (image.shape[0], image.shape[1])
    stats, counts, problems = None, Counter[str](), ()
    if item.kind in LABEL_KINDS:
        stats, stated_size = label_stats(item.annotation_path)
    else:
        truth = read_truth(item, mask_rule=recipe.mask_rule, crowd=recipe.crowd)
        stated_size, counts, problems = truth.stated_size, truth.label_counts, tuple(truth.problems)
    require_size(item, stated_size, size)
    return ScannedImage(item, size, sha256_of(data), perceptual_hash(image), counts, stats, raw.bits, problems)


def require_size(item: SourceImage, stated: tuple[int, int] | None, size: tuple[int, int]) -> None:
    """Makes sure that an annotation belongs to an image of this height and width.

    Raises:
      DataError: if it does not.
    """
    if stated is not None and stated != size:
        is_turned = read_header(read_bytes(item.image_path)).orientation > 4  # width and height are exchanged
        raise DataError(
            f"{item.annotation_path}: is for an image of {stated[1]}x{stated[0]}, "
            f"{item.image_path.name} is {size[1]}x{size[0]}{' (turned upright by its EXIF tag)' if is_turned else ''}"
        )


def check_labels(scanned: Sequence[ScannedImage], labels: Sequence[str]) -> list[str]:
    """Compares the chosen classes with those of the source.

    Args:
      scanned: all images.
      labels: classes that the user chose; empty for all.

    Returns:
      Warnings: several classes that are all taken, and classes that differ in spelling only.

    Raises:
      ConfigError: if no nucleus has one of the chosen classes.
    """
    counts: Counter[str] = sum((entry.label_counts for entry in scanned), Counter())
    if labels and scanned[0].item.kind in (*LABEL_KINDS, "masks"):
        raise ConfigError(f"--label: {scanned[0].item.kind} have no classes; leave the option out")
    for label in labels:
        if not any(has_label(known, label) for known in counts):
            raise ConfigError(missing_label_message(label, counts))
    alike = [" and ".join(map(repr, group)) for group in similar_labels(counts)]
    warnings = [f"the labels {group} differ in case or blanks only" for group in alike]
    if len(counts) > 1 and not labels:
        warnings.append(
            f"{len(counts)} labels, and all were taken as nuclei: {list_labels(counts)}; --label NAME keeps one"
        )
    return warnings


def tell_masks_from_labels(scanned: Sequence[ScannedImage], recipe: Recipe) -> tuple[list[ScannedImage], list[str]]:
    """Decides for each folder of label files whether they are label maps or masks.

    Args:
      scanned: all images.
      recipe: settings; label maps that the user asked for by name are taken as such.

    Returns:
      The images, those with masks as kind "masks", and one remark for each folder of masks.
    """
    if recipe.annotations in LABEL_KINDS:
        return list(scanned), []
    folders: dict[object, list[LabelStats]] = {}
    for entry in scanned:
        if entry.label_stats is not None:
            folders.setdefault(entry.item.annotation_path.parent, []).append(entry.label_stats)
    masks = {folder for folder, stats in folders.items() if not are_label_maps(stats)}
    decided = [
        entry._replace(item=entry.item._replace(kind="masks"))
        if entry.label_stats is not None and entry.item.annotation_path.parent in masks
        else entry
        for entry in scanned
    ]
    return decided, [f"{folder}: its files are masks, in which touching nuclei are not told apart" for folder in masks]
