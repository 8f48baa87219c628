"""Near-duplicate images, by perceptual hashes."""

from collections.abc import Sequence

import cv2
import numpy as np

from cervseg_jax.errors import first_few

NEAR = 6
"""Images whose hashes differ in at most this many of the 64 bits count as near-duplicates."""


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Hashes an image's coarse structure, in all eight orientations.

    The signs of the 64 lowest frequencies of a cosine transform, with the mean left out of the comparison. A resize, a
    recompression or a change of brightness flips few bits or none.

    Args:
      image: uint8 [h, w, 3] or [h, w].

    Returns:
      uint64 [8]: the image as it is, turned by 90, 180 and 270 degrees, and the same four mirrored.
    """
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    turned = [np.rot90(side, turns) for side in (small, small[:, ::-1]) for turns in range(4)]
    return np.array([_hash(np.ascontiguousarray(picture)) for picture in turned], np.uint64)


def near_pairs(hashes: np.ndarray, *, near: int = NEAR) -> list[tuple[int, int]]:
    """Finds the pairs of images that are near-duplicates in any orientation.

    Args:
      hashes: uint64 [n, 8] from `perceptual_hash`.
      near: largest number of differing bits.

    Returns:
      Index pairs (i, j) with i < j, sorted.
    """
    found = set()
    for index in range(len(hashes) - 1):
        differing = np.bitwise_count(hashes[index + 1 :] ^ hashes[index, 0]).min(axis=1)
        found |= {(index, index + 1 + int(other)) for other in np.flatnonzero(differing <= near)}
    return sorted(found)


def join_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Merges the groups of images that belong together.

    Args:
      groups: name of each image's group.
      pairs: indices of images that must stay in one group.

    Returns:
      For each image the name of its merged group: the first of the names in it, in alphabetical order.

    Example:
      >>> join_groups(["a", "b", "c", "a"], [(1, 3)])
      ['a', 'a', 'c', 'a']
    """
    parent = {name: name for name in groups}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for i, j in pairs:
        first, second = sorted((root(groups[i]), root(groups[j])))
        parent[second] = first
    return [root(name) for name in groups]


def _hash(small: np.ndarray) -> int:
    frequencies = cv2.dct(small)[:8, :8].ravel()
    signs = frequencies > np.median(frequencies[1:])
    return int(np.packbits(signs).view(">u8")[0])


def describe_joins(names: Sequence[str], pairs: Sequence[tuple[int, int]], groups: Sequence[str]) -> str:
    """Returns which images were joined as near-duplicates, as text for a message; "" if none were.

    Args:
      names: of the images.
      pairs: from `near_pairs`.
      groups: from `join_groups`, one per image.

    Example:
      >>> describe_joins(["a", "b", "c"], [(0, 2)], ["a", "b", "a"])
      '2 of 3 images look alike and count as 1 source (a = c)'
    """
    alike = sorted({index for pair in pairs for index in pair})
    if not alike:
        return ""
    members: dict[str, list[str]] = {}
    for index in alike:
        members.setdefault(groups[index], []).append(names[index])
    shown = first_few((" = ".join(same[:4] + ["..."] * (len(same) > 4)) for same in members.values()), limit=3)
    sources = f"{len(members)} source{'s' * (len(members) > 1)}"
    return f"{len(alike)} of {len(names)} images look alike and count as {sources} ({shown})"
