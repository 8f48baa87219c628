"""Division of a dataset by source, so that no image has a sibling in another part."""

from collections.abc import Collection

import numpy as np


def split_groups(groups: Collection[str], *, valid: float, test: float, seed: int) -> dict[str, str]:
    """Assigns whole groups to train, valid and test.

    The result depends on the set of names and the seed alone, not on any order. Each part with a share above zero
    gets at least one group.

    Args:
      groups: names of sources (patients, slides or images).
      valid: share of the groups for validation, in (0, 1).
      test: share of the groups for testing, in [0, 1).
      seed: another seed gives another division.

    Returns:
      "train", "valid" or "test" for each group.

    Raises:
      ValueError: if there are too few groups for all parts.

    Example:
      >>> sorted(split_groups(["a", "b", "c", "d"], valid=0.25, test=0.25, seed=0).values())
      ['test', 'train', 'train', 'valid']
    """
    names = sorted(set(groups))
    num_valid = max(1, round(valid * len(names))) if valid else 0
    num_test = max(1, round(test * len(names))) if test else 0
    if num_valid + num_test >= len(names):
        raise ValueError(f"{len(names)} sources are too few for {num_valid} in valid, {num_test} in test and a rest")
    order = np.random.default_rng(seed).permutation(len(names))
    parts = ["valid"] * num_valid + ["test"] * num_test
    parts += ["train"] * (len(names) - len(parts))
    return {names[position]: part for position, part in zip(order, parts, strict=True)}
