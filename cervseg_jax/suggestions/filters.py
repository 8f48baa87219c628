"""Which images of a pool are no candidates: rejected ones, those that the dataset has, and near copies of others."""

from collections.abc import Sequence

import numpy as np

from cervseg_jax.annotations.decisions import Decisions
from cervseg_jax.curation.membership import Member, NewImage, find_places
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.similarity import join_groups, near_pairs
from cervseg_jax.data.pairs import normalized, stem_of
from cervseg_jax.data.split import groups_by_pattern
from cervseg_jax.errors import DataError
from cervseg_jax.segmentation.jobs import Job
from cervseg_jax.suggestions.pool import Candidate

LeftOut = dict[str, list[str]]
"""Names of images by the reason why they are left out."""


def without_rejected(jobs: Sequence[Job], decisions: Decisions, left_out: LeftOut) -> list[Job]:
    """Returns the files that were not rejected as a whole."""
    kept = []
    for job in jobs:
        decided = decisions.about(job.path)
        if decided is not None and decided.verdict == "rejected":
            left_out.setdefault("rejected in review", []).append(job.path.name)
        else:
            kept.append(job)
    return kept


def without_members(
    candidates: Sequence[Candidate], members: Sequence[Member], recipe: Recipe, left_out: LeftOut
) -> list[Candidate]:
    """Returns the candidates that are new to a dataset, and that may be added to its training split.

    Args:
      candidates: images and crops.
      members: the dataset.
      recipe: its settings; the pattern of its groups is used.
      left_out: receives the others.
    """
    new = [
        NewImage(_group(candidate, recipe.group_pattern), candidate.digests, candidate.hashes)
        for candidate in candidates
    ]
    kept = []
    for candidate, place in zip(candidates, find_places(new, members), strict=True):
        if place.copy is not None:
            reason = f"in the dataset already ({place.copy.split})"
        elif place.alike is not None:
            reason = f"like an image that the dataset has in {place.alike.split}"
        elif place.held_out is not None:
            reason = f"by their names of a source that the dataset has in {place.held_out.split}"
        else:
            kept.append(candidate)
            continue
        left_out.setdefault(reason, []).append(candidate.stem)
    return kept


def _group(candidate: Candidate, pattern: str | None) -> str:
    """Returns the source of a candidate; a pool may have names that the dataset's pattern does not fit."""
    stem = normalized(stem_of(candidate.job.path))
    try:
        return groups_by_pattern([stem], pattern, key="group_pattern")[0]
    except DataError:
        return stem


def without_near_copies(candidates: Sequence[Candidate], left_out: LeftOut) -> list[Candidate]:
    """Returns the candidates, of those that look alike only the most uncertain one."""
    if not candidates:
        return []
    pairs = near_pairs(np.stack([candidate.hashes[0] for candidate in candidates]))
    groups = np.array(join_groups([f"{index:09d}" for index in range(len(candidates))], pairs))
    kept = []
    for index, candidate in enumerate(candidates):
        same = np.flatnonzero(groups == groups[index]).tolist()
        if max(same, key=lambda other: candidates[other].uncertainty) == index:
            kept.append(candidate)
        else:
            left_out.setdefault("near copies of another image of the pool", []).append(candidate.stem)
    return kept
