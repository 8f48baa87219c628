"""Discovery of image files and their masks."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.data.covered_files import covered_paths
from cervseg_jax.data.decode import IMAGE_SUFFIXES
from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.data.slide_tiff import SCANNER_SUFFIXES
from cervseg_jax.data.split import groups_by_pattern, split_groups
from cervseg_jax.errors import ConfigError, DataError, first_few
from cervseg_jax.schema import DataConfig, SplitConfig
from cervseg_jax.storage.address import as_path

SPLITS = ("train", "valid", "test")
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class Pair(NamedTuple):
    """An image file and its mask file."""

    stem: str
    group: str
    image_path: Path
    mask_path: Path
    instances_path: Path | None = None
    """Instance labels, where the dataset has them."""
    covered_path: Path | None = None
    """Label maps of the nuclei that are partly covered, where there are any; see `data.covered_files`."""
    scale: float | None = None
    """Factor of the image's size at which the network sees it; None: it is resized to the network's input."""
    window: tuple[int, int] | None = None
    """Top and left of the part of the scaled image that is taken, of the network's size; None: all."""


def find_pairs(
    data: DataConfig, *, whole: bool = False, needed: Sequence[str] = ("train", "valid")
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Finds the dataset's files, paired by stem and sorted by it.

    Args:
      data: the config's data section; `data.root` holds `{train,valid,test}/{images,masks}`, or `images` and
        `masks`, which `data.split` splits by source.
      whole: read a folder of `images` and `masks` as the split "test".
      needed: required splits; others are read if they exist.

    Returns:
      Pairs by split, and one message for each file without a partner.

    Raises:
      ConfigError: if folders are missing.
      DataError: if a folder is empty, two files share a stem, or an image has no mask and `data.on_bad_file` is
        "fail".
    """
    root = data.root
    if not root.is_dir():
        raise ConfigError(f"data.root: no such folder: {root}" + (f"\n{data.origin}" if data.origin else ""))
    if whole:
        pairs, problems = _pair_folder(root, data)
        return {"test": pairs}, problems
    if data.split is not None:
        pairs, problems = _pair_folder(root, data)
        return _assign_splits(pairs, data.split, root), problems
    missing = [name for name in needed if not (root / name).is_dir()]
    if missing:
        hint = (
            "it has images and masks without splits; split them with, for example, --set 'data.split={valid: 0.2}'"
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
    """Finds the splits of a dataset folder.

    Args:
      dataset: `{train,valid,test}/{images,masks}`, or `images` and `masks`.

    Returns:
      Folder by split; a folder without splits is the split "all".

    Raises:
      ConfigError: if it is neither.
    """
    dataset = as_path(dataset)
    folders = {split: dataset / split for split in SPLITS if (dataset / split / "images").is_dir()}
    if not folders and (dataset / "images").is_dir():
        return {"all": dataset}
    if not folders:
        raise ConfigError(f"{dataset}: has neither train, valid or test with images, nor images and masks")
    return folders


class FolderScan(NamedTuple):
    """The files of a folder."""

    images: list[Path]
    """Image files, sorted by name."""
    left_out: dict[str, int]
    """Number of other files by suffix, without hidden ones."""
    folders: list[str]
    """Names of its folders, which are not searched, without hidden ones."""

    def left_out_text(self) -> str:
        """Returns the other files as text, such as "2 .jp2, 1 without suffix"; "" if there are none."""
        return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.left_out.items())


def scan_folder(folder: Path, *, with_slides: bool = False) -> FolderScan:
    """Finds a folder's image files by suffix.

    Files whose names begin with a dot are skipped: macOS keeps metadata in `._name.png` beside `name.png`.

    Args:
      folder: the folder; subfolders are not searched.
      with_slides: include the suffixes of slide scanners.

    Raises:
      ConfigError: if there is no such folder, or it cannot be listed.
    """
    suffixes = IMAGE_SUFFIXES | SCANNER_SUFFIXES if with_slides else IMAGE_SUFFIXES
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        images = [path for path in paths if path.suffix.lower() in suffixes]
        others = [path for path in paths if path.suffix.lower() not in suffixes]
        folders = [path for path in others if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no such folder: {folder}") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed: {error.strerror}") from None
    files = [path for path in others if path not in folders and path.name.lower() not in SYSTEM_FILES]
    names = [path.name for path in folders if path.name.lower() not in SYSTEM_FILES]
    return FolderScan(images, dict(sorted(Counter(path.suffix.lower() for path in files).items())), names)


def list_images(folder: Path) -> list[Path]:
    """Returns `scan_folder(folder).images`."""
    return scan_folder(folder).images


def normalized(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC); macOS and its archives use decomposed names."""
    return unicodedata.normalize("NFC", name)


def stem_of(path: Path) -> str:
    """Returns a file's stem, normalized."""
    return normalized(path.stem)


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Returns a folder's images by `stem_of`, by which images and masks are paired.

    Raises:
      ConfigError: if there is no such folder.
      DataError: if two files share a stem.
    """
    by_stem: dict[str, Path] = {}
    for path in list_images(folder):
        first = by_stem.setdefault(stem_of(path), path)
        if first != path:
            raise DataError(f"{folder}: {first.name} and {path.name} share a stem; pairing needs unique ones")
    return by_stem


def _pair_folder(folder: Path, data: DataConfig) -> tuple[list[Pair], list[str]]:
    images, masks = images_by_stem(folder / "images"), images_by_stem(folder / "masks")
    instances = images_by_stem(folder / "instances") if (folder / "instances").is_dir() else {}
    covered = {stem_of(path): path for path in covered_paths(folder)}
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
        Pair(stem, group, images[stem], masks[stem], instances.get(stem), covered.get(stem))
        for stem, group in zip(stems, groups, strict=True)
    ]
    return pairs, problems


def _assign_splits(pairs: Sequence[Pair], split: SplitConfig, root: Path) -> dict[str, list[Pair]]:
    try:
        chosen = split_groups([pair.group for pair in pairs], valid=split.valid, test=split.test, seed=split.seed)
    except ValueError as error:
        raise DataError(f"{root}: {error}") from None
    return {name: [pair for pair in pairs if chosen[pair.group] == name] for name in SPLITS if name in chosen.values()}
