"""Audit of a dataset: what is wrong with it, and the effect on scores."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.curation.findings import Finding, ScannedPair, add_finding
from cervseg_jax.curation.leaks import find_leaks, groups_of
from cervseg_jax.curation.registration import registration
from cervseg_jax.curation.similarity import perceptual_hash
from cervseg_jax.data.checks import looks_inverted
from cervseg_jax.data.decode import decode_mask, decode_raw, read_bytes, rgb_of
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.pairs import list_images, split_folders, stem_of
from cervseg_jax.errors import DataError
from cervseg_jax.files import sha256_of
from cervseg_jax.runtime.threads import map_files
from cervseg_jax.storage.cached import fetch_ahead

MAX_EXAMPLES = 5
OTHER_IMAGE_AGREEMENT, OTHER_IMAGE_DISPLACEMENT = 0.15, 0.04
"""Below this correlation with darkness, or beyond this displacement (share of the side), a mask is of another image."""

MIN_DRIFT, MIN_DISPLACEMENT = 0.012, 0.006
MIN_BLOCKS = 4


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


def audit(dataset: Path, *, progress: Callable[[str, int], Any]) -> Report:
    """Examines a dataset, from `prepare` or from elsewhere.

    Args:
      dataset: `{train,valid,test}/{images,masks}`, or `images` and `masks`.
      progress: as for `prepare`.

    Returns:
      The findings; empty if nothing is wrong.

    Raises:
      ConfigError: if there are no such folders.
    """
    folders = split_folders(dataset)
    findings: list[Finding] = []
    pairs = [pair for split, folder in folders.items() for pair in _pairs(split, folder, dataset, findings)]
    unreadable: list[str] = []
    with progress("auditing", len(pairs)) as advance:
        scans = map_files(lambda pair: _scan(*pair, dataset), pairs, on_progress=advance, problems=unreadable)
    add_finding(findings, "unreadable", unreadable, "files cannot be used", "they are missing from every score")
    findings += [*_mask_findings(scans), *_registration_findings(scans), *_label_findings(folders, dataset)]
    groups = groups_of(dataset, scans)
    findings += find_leaks(scans, groups)
    counts = {split: sum(scan.split == split for scan in scans) for split in folders}
    return Report(str(dataset), counts, findings)


def _pairs(split: str, folder: Path, dataset: Path, findings: list[Finding]) -> list[tuple[str, Path, Path]]:
    images: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    for found, name in ((images, "images"), (masks, "masks")):
        if (folder / name).is_dir():
            for path in list_images(folder / name):
                found[stem_of(path)].append(path)
    unpaired = [_name(paths[0], dataset) for stem, paths in images.items() if stem not in masks]
    unpaired += [_name(paths[0], dataset) for stem, paths in masks.items() if stem not in images]
    add_finding(
        findings,
        "unpaired",
        unpaired,
        f"files in {split} have no partner",
        "programs that pair files by position pair all later ones wrongly",
    )
    double = [_name(paths[1], dataset) for paths in [*images.values(), *masks.values()] if len(paths) > 1]
    add_finding(
        findings, "ambiguous", double, f"files in {split} share a stem", "which one is used depends on the program"
    )
    return [(split, images[stem][0], masks[stem][0]) for stem in sorted(images.keys() & masks.keys())]


def _scan(split: str, image_path: Path, mask_path: Path, dataset: Path) -> ScannedPair:
    raw = decode_raw(read_bytes(image_path), source=image_path)
    image = rgb_of(raw, source=image_path)
    data = read_bytes(mask_path)
    mask, levels = decode_mask(data, source=mask_path)
    # The rules differ only on masks with more than two levels.
    inflated = mask if levels <= 2 else decode_mask(data, source=mask_path, rule="any_nonzero").mask
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"{_name(image_path, dataset)}: is {image.shape[1]}x{image.shape[0]}, "
            f"its mask is {mask.shape[1]}x{mask.shape[0]}"
        )
    return ScannedPair(
        split=split,
        stem=stem_of(image_path),
        name=_name(image_path, dataset),
        pixels_sha256=sha256_of(image.tobytes()),
        hashes=perceptual_hash(image),
        mask_levels=levels,
        area=int(mask.sum()),
        inflated_area=int(inflated.sum()),
        bits=raw.bits,
        is_inverted=looks_inverted(image, mask),
        fit=registration(image, mask),
    )


def _mask_findings(scans: Sequence[ScannedPair]) -> list[Finding]:
    findings: list[Finding] = []
    noisy = [scan for scan in scans if scan.mask_levels > 2]
    if noisy:
        added = sum(scan.inflated_area for scan in noisy) / max(sum(scan.area for scan in noisy), 1) - 1
        add_finding(
            findings,
            "lossy masks",
            [scan.name for scan in noisy],
            f"masks of {len(scans)} have more than two levels; counted as non-zero, nuclei grow by {added:.0%}",
            "a network that is trained on non-zero values learns nuclei that are too large",
        )
    add_finding(
        findings,
        "inverted masks",
        [scan.name for scan in scans if scan.is_inverted],
        f"masks of {len(scans)} fit if black and white are exchanged",
        "the network learns the background; exchange them so that nuclei are not zero",
    )
    narrow = [scan for scan in scans if scan.bits is not None and scan.bits < 16]
    add_finding(
        findings,
        "narrow values",
        [f"{scan.name}: {scan.bits} bits" for scan in narrow],
        f"16-bit images of {len(scans)} use fewer bits",
        "each is read by its own values here; --set data.bit_depth=12, for example, scales all alike in training",
    )
    empty = [scan.name for scan in scans if scan.area == 0]
    add_finding(
        findings, "empty masks", empty, f"masks of {len(scans)} have no nucleus", "Dice is undefined there: n/a, not 1"
    )
    return findings


def _registration_findings(scans: Sequence[ScannedPair]) -> list[Finding]:
    """Groups masks that do not fit their image by the likely cause."""
    measured = [scan.fit.displacement for scan in scans if scan.fit.num_blocks >= MIN_BLOCKS]
    usual = float(np.median(measured)) if measured else 0.0
    kinds: dict[str, list[str]] = defaultdict(list)
    for scan in scans:
        fit = scan.fit
        if np.isnan(fit.agreement) or scan.is_inverted:
            continue
        sure = fit.num_blocks >= MIN_BLOCKS
        if fit.best_turn:
            kinds[f"would fit {fit.best_turn}"].append(scan.name)
        elif fit.agreement < OTHER_IMAGE_AGREEMENT or (sure and fit.displacement > OTHER_IMAGE_DISPLACEMENT):
            kinds["seem to be of another image"].append(scan.name)
        elif sure and fit.drift > MIN_DRIFT:
            kinds["are shifted"].append(scan.name)
        elif sure and fit.displacement > max(MIN_DISPLACEMENT, 3 * usual):
            kinds["are displaced here and there, as if warped apart from their image"].append(scan.name)
    findings: list[Finding] = []
    for kind, names in kinds.items():
        add_finding(
            findings,
            "misregistered",
            names,
            f"masks of {len(scans)} {kind}",
            "even a perfect prediction scores badly on them, and training on them blurs every edge",
        )
    return findings


def _label_findings(folders: Mapping[str, Path], dataset: Path) -> list[Finding]:
    full, disagreeing = [], []
    for folder in folders.values():
        if not (folder / "instances").is_dir():
            continue
        for path in fetch_ahead(list_images(folder / "instances")):
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
    add_finding(
        findings, "full labels", full, "label files use the largest value of their type", "nuclei beyond it are lost"
    )
    add_finding(
        findings,
        "labels and masks differ",
        disagreeing,
        "label files mark other pixels than their masks",
        "instance scores and pixel scores use different ground truth",
    )
    return findings


def _name(path: Path, dataset: Path) -> str:
    return path.relative_to(dataset).as_posix()
