"""Splitting of a dataset by source, so that all images of a source are in one split."""

import re
from collections.abc import Collection, Sequence

import numpy as np

from cervseg_jax.errors import ConfigError, DataError


def compile_group_pattern(pattern: str, *, key: str) -> re.Pattern[str]:
    """Compiles a regular expression whose first group matches the name of an image's source.

    Args:
      pattern: a regular expression, searched in file stems.
      key: config key or option that the pattern comes from, for messages.

    Raises:
      ConfigError: if it is not a regular expression or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key}: not a regular expression: {error}") from None
    if compiled.groups < 1:
        raise ConfigError(f"{key}: needs one (group) that names the source, got {pattern!r}; for example '([0-9]+)$'")
    return compiled


def groups_by_pattern(stems: Sequence[str], pattern: str | None, *, key: str) -> list[str]:
    """Returns the name of each image's source.

    Args:
      stems: file stems.
      pattern: see `compile_group_pattern`; None makes each stem its own source.
      key: config key or option that the pattern comes from, for messages.

    Raises:
      ConfigError: if the pattern is wrong.
      DataError: if it does not match a stem.

    Example:
      >>> groups_by_pattern(["flipped_17", "17"], "([0-9]+)$", key="group_pattern")
      ['17', '17']
    """
    if pattern is None:
        return list(stems)
    compiled = compile_group_pattern(pattern, key=key)
    names = []
    for stem in stems:
        match = compiled.search(stem)
        if match is None or match.group(1) is None:
            raise DataError(f"{stem}: does not match {key} {pattern!r}")
        names.append(match.group(1))
    return names


def split_groups(groups: Collection[str], *, valid: float, test: float, seed: int) -> dict[str, str]:
    """Assigns whole groups to train, valid and test.

    The result depends on the set of names and the seed only. Each split with a share above zero gets at least
    one group.

    Args:
      groups: names of sources (patients, slides or images).
      valid: share of the groups for validation, in (0, 1).
      test: share of the groups for testing, in [0, 1]; with 1 all are, whatever `valid` is.
      seed: random seed.

    Returns:
      "train", "valid" or "test" for each group.

    Raises:
      ValueError: if there are too few groups for all splits.

    Example:
      >>> sorted(split_groups(["a", "b", "c", "d"], valid=0.25, test=0.25, seed=0).values())
      ['test', 'train', 'train', 'valid']
    """
    names = sorted(set(groups))
    if test == 1.0:
        return dict.fromkeys(names, "test")
    num_valid = max(1, round(valid * len(names))) if valid else 0
    num_test = max(1, round(test * len(names))) if test else 0
    if num_valid + num_test >= len(names):
        raise ValueError(
            f"{len(names)} sources are too few for {num_valid} in valid, {num_test} in test and at least 1 in train"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    splits = ["valid"] * num_valid + ["test"] * num_test
    splits += ["train"] * (len(names) - len(splits))
    return {names[position]: split for position, split in zip(order, splits, strict=True)}


def assign_folds(groups: Sequence[str], folds: int, *, seed: int) -> dict[str, int]:
    """Assigns groups to folds of nearly equal size for cross-validation.

    Args:
      groups: names of sources.
      folds: number of folds, at least 2.
      seed: random seed.

    Returns:
      Fold of each group, 0 to folds - 1; depends on the set of names and the seed only.

    Raises:
      ValueError: if there are fewer groups than folds.

    Example:
      >>> sorted(assign_folds(["a", "b", "c"], 3, seed=0).values())
      [0, 1, 2]
    """
    names = sorted(set(groups))
    if folds < 2 or len(names) < folds:
        raise ValueError(f"{len(names)} sources are too few for {folds} folds")
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[position]: rank % folds for rank, position in enumerate(order)}
