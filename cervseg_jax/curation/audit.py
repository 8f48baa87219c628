"""Can this dataset be trusted? What is wrong with it, and what that does to a score."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.curation.reference_style import VARIANT_PREFIXES
from cervseg_jax.curation.registration import Registration, registration
from cervseg_jax.curation.similarity import near_pairs, perceptual_hash
from cervseg_jax.data.decode import decode_image, decode_mask, read_bytes
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.data.pairs import list_images, split_folders
from cervseg_jax.errors import DataError
from cervseg_jax.files import sha256_of
from cervseg_jax.runtime.threads import default_threads

MAX_EXAMPLES = 5
OTHER_IMAGE_AGREEMENT, OTHER_IMAGE_DISPLACEMENT = 0.15, 0.04
"""Below this correlation with darkness, or beyond this displacement (share of the side), a mask is of another image."""

MIN_DRIFT, MIN_DISPLACEMENT = 0.012, 0.006
MIN_BLOCKS = 4


class Finding(NamedTuple):
    """One thing that is wrong."""

    name: str
    message: str
    effect: str
    """What it does to a score."""
    files: list[str]


class Report(NamedTuple):
    """What an audit found."""

    dataset: str
    counts: dict[str, int]
    findings: list[Finding]

    def lines(self) -> list[str]:
        """Returns the report as text."""
        shown = [", ".join(f"{name}: {count} pairs" for name, count in self.counts.items())]
        for finding in self.findings:
            shown += [f"!! {finding.name}: {finding.message}", f"   effect: {finding.effect}"]
            shown += [f"   {name}" for name in finding.files[:MAX_EXAMPLES]]
            if len(finding.files) > MAX_EXAMPLES:
                shown.append(f"   and {len(finding.files) - MAX_EXAMPLES} more in audit.json")
        return shown if self.findings else [*shown, "ok: nothing found"]

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "dataset": self.dataset,
            "pairs": self.counts,
            "findings": [finding._asdict() for finding in self.findings],
        }


class ScannedPair(NamedTuple):
    """What reading a pair showed."""

    split: str
    stem: str
    name: str
    pixels_sha256: str
    hashes: np.ndarray
    mask_levels: int
    area: int
    inflated_area: int
    """Area where every non-zero value counts."""
    fit: Registration


def audit(dataset: Path, *, progress: Callable[[str, int], Any]) -> Report:
    """Examines a dataset, made by us or by others.

    Args:
      dataset: `{train,valid,test}/{images,masks}`, or `images` and `masks`.
      progress: as for `prepare`.

    Returns:
      The findings, none if all is well.

    Raises:
      ConfigError: if there are no such folders.
    """
    folders = split_folders(dataset)
    findings: list[Finding] = []
    pairs = [pair for split, folder in folders.items() for pair in _pairs(split, folder, dataset, findings)]
    looks: list[ScannedPair] = []
    unreadable: list[str] = []

    def look(pair: tuple[str, Path, Path]) -> ScannedPair | str:
        try:
            return _look(*pair, dataset)
        except DataError as error:
            return str(error)
        finally:
            advance()

    with progress("auditing", len(pairs)) as advance, ThreadPoolExecutor(default_threads()) as pool:
        for result in pool.map(look, pairs):
            (unreadable if isinstance(result, str) else looks).append(result)  # pyright: ignore[reportArgumentType]
    _add(findings, "unreadable", unreadable, "files cannot be used", "they are missing from every score")
    findings += [*_mask_findings(looks), *_registration_findings(looks), *_label_findings(folders, dataset)]
    groups = _groups(dataset, looks)
    findings += _leaks(looks, groups)
    counts = {split: sum(look.split == split for look in looks) for split in folders}
    return Report(str(dataset), counts, findings)


def source_of(stem: str) -> str:
    """Returns the source that a file name stands for, once the marks of known augmentations are taken off.

    Example:
      >>> source_of("barrdistorted_103_0.3_0.3_10005")
      '10005'
      >>> source_of("flower_7")
      'flower_7'
    """
    while stem.startswith(VARIANT_PREFIXES):
        shorter = re.sub(r"^[a-z]+_(?:(?:alpha|sigmoid|rsigma|sigma)?_?-?[0-9.]+_)*", "", stem)
        if shorter == stem or not shorter:
            return stem
        stem = shorter
    return stem


def _pairs(split: str, folder: Path, dataset: Path, findings: list[Finding]) -> list[tuple[str, Path, Path]]:
    images: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    for found, name in ((images, "images"), (masks, "masks")):
        if (folder / name).is_dir():
            for path in list_images(folder / name):
                found[path.stem].append(path)
    unpaired = [_name(paths[0], dataset) for stem, paths in images.items() if stem not in masks]
    unpaired += [_name(paths[0], dataset) for stem, paths in masks.items() if stem not in images]
    _add(
        findings, "unpaired", unpaired, f"files in {split} have no partner", "pairing by position would shift all after"
    )
    double = [_name(paths[1], dataset) for paths in [*images.values(), *masks.values()] if len(paths) > 1]
    _add(findings, "ambiguous", double, f"files in {split} share a stem", "which one is used depends on the program")
    return [(split, images[stem][0], masks[stem][0]) for stem in sorted(images.keys() & masks.keys())]


def _look(split: str, image_path: Path, mask_path: Path, dataset: Path) -> ScannedPair:
    image = decode_image(read_bytes(image_path), source=image_path)
    data = read_bytes(mask_path)
    mask, levels = decode_mask(data, source=mask_path)
    # The rules differ on lossy masks alone, and most masks are none.
    inflated = mask if levels <= 2 else decode_mask(data, source=mask_path, rule="any_nonzero").mask
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"{_name(image_path, dataset)}: is {image.shape[1]}x{image.shape[0]}, "
            f"its mask is {mask.shape[1]}x{mask.shape[0]}"
        )
    return ScannedPair(
        split=split,
        stem=image_path.stem,
        name=_name(image_path, dataset),
        pixels_sha256=sha256_of(image.tobytes()),
        hashes=perceptual_hash(image),
        mask_levels=levels,
        area=int(mask.sum()),
        inflated_area=int(inflated.sum()),
        fit=registration(image, mask),
    )


def _mask_findings(looks: Sequence[ScannedPair]) -> list[Finding]:
    findings: list[Finding] = []
    noisy = [look for look in looks if look.mask_levels > 2]
    if noisy:
        added = sum(look.inflated_area for look in noisy) / max(sum(look.area for look in noisy), 1) - 1
        _add(
            findings,
            "lossy masks",
            [look.name for look in noisy],
            f"masks of {len(looks)} have more than two levels; counted as non-zero, nuclei grow by {added:.0%}",
            "a network that is trained on non-zero values learns nuclei that are too large",
        )
    empty = [look.name for look in looks if look.area == 0]
    _add(
        findings, "empty masks", empty, f"masks of {len(looks)} have no nucleus", "Dice is undefined there: n/a, not 1"
    )
    return findings


def _registration_findings(looks: Sequence[ScannedPair]) -> list[Finding]:
    """Sorts masks that do not fit their image by what seems to have happened to them."""
    measured = [look.fit.displacement for look in looks if look.fit.num_blocks >= MIN_BLOCKS]
    usual = float(np.median(measured)) if measured else 0.0
    kinds: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        fit = look.fit
        if np.isnan(fit.agreement):
            continue
        sure = fit.num_blocks >= MIN_BLOCKS
        if fit.best_turn:
            kinds[f"would fit {fit.best_turn}"].append(look.name)
        elif fit.agreement < OTHER_IMAGE_AGREEMENT or (sure and fit.displacement > OTHER_IMAGE_DISPLACEMENT):
            kinds["seem to be of another image"].append(look.name)
        elif sure and fit.drift > MIN_DRIFT:
            kinds["are shifted"].append(look.name)
        elif sure and fit.displacement > max(MIN_DISPLACEMENT, 3 * usual):
            kinds["are displaced here and there, as if warped apart from their image"].append(look.name)
    findings: list[Finding] = []
    for kind, names in kinds.items():
        _add(
            findings,
            "misregistered",
            names,
            f"masks of {len(looks)} {kind}",
            "even a perfect prediction scores badly on them, and training on them blurs every edge",
        )
    return findings


def _label_findings(folders: Mapping[str, Path], dataset: Path) -> list[Finding]:
    full, disagreeing = [], []
    for folder in folders.values():
        if not (folder / "instances").is_dir():
            continue
        for path in list_images(folder / "instances"):
            try:
                labels, has_instances = read_labels(path)
                mask = decode_mask(read_bytes(folder / "masks" / path.name), source=path).mask
            except DataError:
                continue  # reported with the masks, or no partner
            if has_instances and labels.max() in (255, 65535):
                full.append(_name(path, dataset))
            if mask.shape == labels.shape and (mask > 0).sum() and ((labels > 0) != (mask > 0)).mean() > 1e-3:
                disagreeing.append(_name(path, dataset))
    findings: list[Finding] = []
    _add(findings, "full labels", full, "label files use the last number of their type", "nuclei beyond it are lost")
    _add(
        findings,
        "labels and masks differ",
        disagreeing,
        "label files mark other pixels than their masks",
        "instance and pixel scores are about different truths",
    )
    return findings


def _groups(dataset: Path, looks: Sequence[ScannedPair]) -> list[str]:
    """The source of each image: from the manifest where there is one, else from the name."""
    path = dataset / "manifest.csv"
    listed = {}
    if path.is_file():
        listed = {(row["split"], row["stem"]): row["group"] for row in read_manifest(path)}
    return [listed.get((look.split, look.stem), source_of(look.stem)) for look in looks]


def _leaks(looks: Sequence[ScannedPair], groups: Sequence[str]) -> list[Finding]:
    findings: list[Finding] = []
    by_pixels: dict[str, list[ScannedPair]] = defaultdict(list)
    for look in looks:
        by_pixels[look.pixels_sha256].append(look)
    copies = [several for several in by_pixels.values() if len(several) > 1]
    _add(
        findings,
        "copies",
        [" = ".join(look.name for look in several) for several in copies],
        "images occur more than once" + _across(copies),
        "a copy in another part is a question whose answer was given before",
    )
    near = [
        (looks[i], looks[j])
        for i, j in (near_pairs(np.stack([look.hashes for look in looks])) if looks else ())
        if looks[i].pixels_sha256 != looks[j].pixels_sha256
        and (looks[i].split != looks[j].split or looks[i].split == "all")  # variants within one part do no harm
    ]
    _add(
        findings,
        "near-duplicates",
        [f"{one.name} ~ {other.name}" for one, other in near],
        "pairs of images look alike, perhaps turned or mirrored" + _across(near),
        "parts that share them are not independent; the score is too high",
    )
    findings += _siblings(looks, groups)
    return findings


def _siblings(looks: Sequence[ScannedPair], groups: Sequence[str]) -> list[Finding]:
    splits: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    for look, group in zip(looks, groups, strict=True):
        splits[group].add(look.split)
        members[group].append(look.name)
    findings: list[Finding] = []
    undivided = [group for group, several in members.items() if len(several) > 1 and len(splits[group]) == 1]
    across = [group for group in members if len(splits[group]) > 1]
    if across:
        held_out = [i for i, look in enumerate(looks) if look.split in ("valid", "test")]
        seen = sum("train" in splits[groups[i]] for i in held_out)
        _add(
            findings,
            "leak",
            [f"{group}: {', '.join(sorted(splits[group]))}" for group in sorted(across)],
            f"sources are in several parts; {seen} of {len(held_out)} images in valid and test have a sibling in train",
            "valid and test measure memory, not generalization; no score of this dataset can be trusted",
        )
    elif undivided and set(splits[undivided[0]]) == {"all"}:
        _add(
            findings,
            "siblings",
            [f"{group}: {', '.join(members[group])}" for group in sorted(undivided)],
            "sources occur more than once",
            "divide them together (data.split.group_pattern, --group-pattern), or the parts will leak",
        )
    return findings


def _across(sets: Sequence[Sequence[ScannedPair]]) -> str:
    crossing = sum(len({look.split for look in several}) > 1 for several in sets)
    return f", {crossing} of them across parts" if crossing else ""


def _add(findings: list[Finding], name: str, files: Sequence[str], message: str, effect: str) -> None:
    if files:
        findings.append(Finding(name, f"{len(files)} {message}", effect, list(files)))


def _name(path: Path, dataset: Path) -> str:
    return path.relative_to(dataset).as_posix()
