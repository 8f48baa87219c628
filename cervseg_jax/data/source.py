"""Datasets on disk: which files belong together, whether they can be read, and their samples at the network's size."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.choices import MaskRule
from cervseg_jax.data.augment import Sample
from cervseg_jax.data.decode import (
    IMAGE_SUFFIXES,
    decode_image,
    decode_mask,
    read_bytes,
    read_image,
    read_mask,
)
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.data.split import groups_by_pattern, split_groups
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import refuse_bucket, sha256_of
from cervseg_jax.runtime.threads import default_threads
from cervseg_jax.schema import DataConfig, SplitConfig

SPLITS = ("train", "valid", "test")


class Pair(NamedTuple):
    """An image file and its mask file."""

    stem: str
    group: str
    image_path: Path
    mask_path: Path
    instances_path: Path | None = None
    """Instance labels, where the dataset has them."""


class PairFacts(NamedTuple):
    """What a full read of one pair showed."""

    pair: Pair
    height: int
    width: int
    mask_levels: int
    foreground: float
    """Share of the pixels that are nucleus."""
    image_sha256: str
    """Hash of the image file's bytes."""


class CheckedPairs(NamedTuple):
    """Pairs that can be used, and what was left out."""

    facts: list[PairFacts]
    problems: list[str]

    @property
    def pairs(self) -> list[Pair]:
        """The usable pairs."""
        return [fact.pair for fact in self.facts]

    @property
    def num_noisy_masks(self) -> int:
        """Masks with more than two levels."""
        return sum(fact.mask_levels > 2 for fact in self.facts)


def find_pairs(
    data: DataConfig, *, whole: bool = False, needed: Sequence[str] = ("train", "valid")
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Finds the dataset's files, paired by stem and sorted by it.

    Args:
      data: the config's data section; `data.root` holds `{train,valid,test}/{images,masks}`, or `images` and
        `masks`, which `data.split` then divides by source.
      whole: take a folder of `images` and `masks` undivided, as the split "test".
      needed: the parts that must be there; others are found where they are.

    Returns:
      Pairs by split, and one message for each file without a partner.

    Raises:
      ConfigError: if folders are missing.
      DataError: if a folder is empty, two files share a stem, or an image has no mask and `data.on_bad_file` is
        "fail".
    """
    root = data.root
    refuse_bucket(root)
    if not root.is_dir():
        raise ConfigError(f"data.root: no such folder: {root}" + (f"\n{data.origin}" if data.origin else ""))
    if whole:
        pairs, problems = _pair_folder(root, data)
        return {"test": pairs}, problems
    if data.split is not None:
        pairs, problems = _pair_folder(root, data)
        return _divide(pairs, data.split, root), problems
    missing = [name for name in needed if not (root / name).is_dir()]
    if missing:
        hint = (
            "it has images and masks at its top: say how to divide them, for example --set 'data.split={valid: 0.2}'"
            if (root / "images").is_dir()
            else "expected are train, valid and test, each with images and masks"
        )
        raise ConfigError(f"data.root: {root} has no folder {missing[0]}; {hint}")
    found, problems = {}, []
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        found[split], split_problems = _pair_folder(root / split, data)
        problems += split_problems
    manifest = root / "manifest.csv"
    if manifest.is_file():
        groups = {(row["split"], row["stem"]): row["group"] for row in read_manifest(manifest)}
        found = {
            split: [pair._replace(group=groups.get((split, pair.stem), pair.group)) for pair in pairs]
            for split, pairs in found.items()
        }
    return found, problems


def split_folders(dataset: Path) -> dict[str, Path]:
    """Finds the parts of a dataset folder.

    Args:
      dataset: `{train,valid,test}/{images,masks}`, or `images` and `masks`.

    Returns:
      Folder by part; a folder that is not divided is the one part "all".

    Raises:
      ConfigError: if it is neither.
    """
    refuse_bucket(dataset)
    folders = {split: dataset / split for split in SPLITS if (dataset / split / "images").is_dir()}
    if not folders and (dataset / "images").is_dir():
        return {"all": dataset}
    if not folders:
        raise ConfigError(f"{dataset}: has neither train, valid or test with images, nor images and masks")
    return folders


def list_images(folder: Path) -> list[Path]:
    """Lists a folder's image files by suffix, sorted by name.

    Raises:
      ConfigError: if there is no such folder, or it cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no such folder: {folder}") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed: {error.strerror}") from None


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Lists a folder's images by their stem, which pairs them with their masks.

    Raises:
      ConfigError: if there is no such folder.
      DataError: if two files share a stem.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise DataError(
                f"{folder}: {found[path.stem].name} and {path.name} share a stem; pairing needs unique ones"
            )
        found[path.stem] = path
    return found


def check_pairs(
    pairs: Sequence[Pair],
    data: DataConfig,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> CheckedPairs:
    """Reads every file once, so that bad ones are known before the work starts.

    Args:
      pairs: what to read.
      data: the config's data section.
      on_progress: called after each pair, for a progress bar.

    Returns:
      Facts of the good pairs in the same order, and one message for each bad one.

    Raises:
      DataError: naming the bad files, if `data.on_bad_file` is "fail" or none is good.
    """

    def check(pair: Pair) -> PairFacts | str:
        try:
            return _read_facts(pair, data.mask_rule)
        except DataError as error:
            return str(error)
        finally:
            on_progress()

    with ThreadPoolExecutor(num_threads(data)) as pool:
        results = list(pool.map(check, pairs))
    facts = [result for result in results if isinstance(result, PairFacts)]
    problems = [result for result in results if isinstance(result, str)]
    if problems and (data.on_bad_file == "fail" or not facts):
        raise DataError(_bad_files_message(problems, len(pairs)))
    return CheckedPairs(facts, problems)


def num_threads(data: DataConfig) -> int:
    """Returns how many threads work on images."""
    return default_threads() if data.threads is None else data.threads


def load_sample(
    pair: Pair, *, image_size: tuple[int, int], mask_rule: MaskRule, with_instances: bool = False
) -> Sample:
    """Reads a pair at the network's size.

    Args:
      pair: the files.
      image_size: height and width in pixels.
      mask_rule: see `decode_mask`.
      with_instances: read the instance labels as well, where there are any.

    Returns:
      Image and labels.

    Raises:
      DataError: if a file is bad.
    """
    mask = read_mask(pair.mask_path, rule=mask_rule).mask
    instances = None
    if with_instances and pair.instances_path is not None:
        instances = resize_mask(read_instances(pair, mask.shape), image_size)
    return Sample(resize_image(read_image(pair.image_path), image_size), resize_mask(mask, image_size), instances)


def read_instances(pair: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a pair's instance labels, int32 [h, w].

    Raises:
      DataError: if the file is bad, or of another size than the image.
    """
    if pair.instances_path is None:
        raise ValueError(f"read_instances: {pair.stem} has none")
    labels, _ = read_labels(pair.instances_path)
    if labels.shape != shape:
        raise DataError(
            f"{pair.instances_path}: is {labels.shape[1]}x{labels.shape[0]}, the image {shape[1]}x{shape[0]}"
        )
    return labels


def resize_image(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes by area averaging where it shrinks and bilinearly where it grows; [h, w] or [h, w, c]."""
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes by nearest neighbor, so that no new values appear; [h, w] of any type."""
    if mask.shape == image_size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(image_size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def _pair_folder(folder: Path, data: DataConfig) -> tuple[list[Pair], list[str]]:
    images, masks = images_by_stem(folder / "images"), images_by_stem(folder / "masks")
    instances = images_by_stem(folder / "instances") if (folder / "instances").is_dir() else {}
    if not images:
        raise DataError(f"{folder / 'images'}: no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    unpaired = sorted(images.keys() - masks.keys())
    if unpaired and (data.on_bad_file == "fail" or len(unpaired) == len(images)):
        raise DataError(
            f"{folder / 'images'}: {len(unpaired)} of {len(images)} images have no mask of the same stem in "
            f"{folder / 'masks'}: {first_few(images[stem].name for stem in unpaired)}"
        )
    problems = [f"{images[stem]}: has no mask" for stem in unpaired]
    problems += [f"{masks[stem]}: a mask without an image" for stem in sorted(masks.keys() - images.keys())]
    stems = sorted(images.keys() & masks.keys())
    pattern = data.split.group_pattern if data.split else None
    groups = groups_by_pattern(stems, pattern, key="data.split.group_pattern")
    pairs = [
        Pair(stem, group, images[stem], masks[stem], instances.get(stem))
        for stem, group in zip(stems, groups, strict=True)
    ]
    return pairs, problems


def _divide(pairs: Sequence[Pair], split: SplitConfig, root: Path) -> dict[str, list[Pair]]:
    try:
        parts = split_groups([pair.group for pair in pairs], valid=split.valid, test=split.test, seed=split.seed)
    except ValueError as error:
        raise DataError(f"{root}: {error}") from None
    return {name: [pair for pair in pairs if parts[pair.group] == name] for name in SPLITS if name in parts.values()}


def _read_facts(pair: Pair, mask_rule: MaskRule) -> PairFacts:
    data = read_bytes(pair.image_path)
    image = decode_image(data, source=pair.image_path)
    mask, num_levels = decode_mask(read_bytes(pair.mask_path), source=pair.mask_path, rule=mask_rule)
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{pair.image_path}: is {image.shape[1]}x{image.shape[0]}, "
            f"its mask {pair.mask_path} is {mask.shape[1]}x{mask.shape[0]}"
        )
    height, width = mask.shape
    return PairFacts(pair, height, width, num_levels, float(mask.mean()), sha256_of(data))


def _bad_files_message(problems: Sequence[str], num_pairs: int) -> str:
    advice = "repair or remove them, or leave them out with --set data.on_bad_file=skip"
    return f"{len(problems)} of {num_pairs} pairs cannot be used; {advice}:\n  " + first_few(problems, "\n  ")


def first_few(items: Iterable[str], separator: str = ", ", limit: int = 10) -> str:
    """Joins the first items, and says how many more there are."""
    listed = list(items)
    rest = len(listed) - limit
    return separator.join(listed[:limit] + ([f"and {rest} more"] if rest > 0 else []))
