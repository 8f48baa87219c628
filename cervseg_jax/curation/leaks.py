"""Images that occur in several splits: copies, near-duplicates and variants of one source."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.curation.findings import Finding, ScannedPair, add_finding
from cervseg_jax.curation.reference_style import VARIANT_PREFIXES
from cervseg_jax.curation.similarity import near_pairs
from cervseg_jax.data.manifest import read_manifest


def source_of(stem: str) -> str:
    """Returns a file's source: its stem without the prefixes of known augmentations.

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


def groups_of(dataset: Path, scans: Sequence[ScannedPair]) -> list[str]:
    """Returns the source of each image, from the manifest or else from the file name."""
    path = dataset / "manifest.csv"
    listed = {}
    if path.is_file():
        listed = {(row["split"], row["stem"]): row["group"] for row in read_manifest(path)}
    return [listed.get((scan.split, scan.stem), source_of(scan.stem)) for scan in scans]


def find_leaks(scans: Sequence[ScannedPair], groups: Sequence[str]) -> list[Finding]:
    """Finds copies, near-duplicates, and sources that are in several splits.

    Args:
      scans: all pairs of a dataset.
      groups: the source of each.
    """
    findings: list[Finding] = []
    by_pixels: dict[str, list[ScannedPair]] = defaultdict(list)
    for scan in scans:
        by_pixels[scan.pixels_sha256].append(scan)
    copies = [members for members in by_pixels.values() if len(members) > 1]
    add_finding(
        findings,
        "copies",
        [" = ".join(scan.name for scan in members) for members in copies],
        "images occur more than once" + _across(copies),
        "a copy of a training image in another split is scored from memory",
    )
    near = [
        (scans[i], scans[j])
        for i, j in (near_pairs(np.stack([scan.hashes for scan in scans])) if scans else ())
        if scans[i].pixels_sha256 != scans[j].pixels_sha256
        and (scans[i].split != scans[j].split or scans[i].split == "all")  # within one split they do no harm
    ]
    add_finding(
        findings,
        "near-duplicates",
        [f"{first.name} ~ {second.name}" for first, second in near],
        "pairs of images look alike, perhaps turned or mirrored" + _across(near),
        "splits that share them are not independent; the score is too high",
    )
    findings += _siblings(scans, groups)
    return findings


def _siblings(scans: Sequence[ScannedPair], groups: Sequence[str]) -> list[Finding]:
    splits: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    for scan, group in zip(scans, groups, strict=True):
        splits[group].add(scan.split)
        members[group].append(scan.name)
    findings: list[Finding] = []
    undivided = [group for group, several in members.items() if len(several) > 1 and len(splits[group]) == 1]
    across = [group for group in members if len(splits[group]) > 1]
    if across:
        held_out = [i for i, scan in enumerate(scans) if scan.split in ("valid", "test")]
        seen = sum("train" in splits[groups[i]] for i in held_out)
        add_finding(
            findings,
            "leak",
            [f"{group}: {', '.join(sorted(splits[group]))}" for group in sorted(across)],
            f"sources are in several splits; {seen} of {len(held_out)} images in valid and test have a sibling in "
            "train",
            "valid and test measure memory, not generalization; no score of this dataset can be trusted",
        )
    elif undivided and set(splits[undivided[0]]) == {"all"}:
        add_finding(
            findings,
            "siblings",
            [f"{group}: {', '.join(members[group])}" for group in sorted(undivided)],
            "sources occur more than once",
            "divide them together (data.split.group_pattern, --group-pattern), or the splits will leak",
        )
    return findings


def _across(sets: Sequence[Sequence[ScannedPair]]) -> str:
    crossing = sum(len({scan.split for scan in members}) > 1 for members in sets)
    return f", {crossing} of them across splits" if crossing else ""
