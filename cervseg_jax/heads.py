"""What a network can predict besides the mask, and where each head's maps are among its outputs."""

from collections.abc import Mapping, Sequence
from typing import Literal

Head = Literal["mask", "boundary", "distance", "hover"]

NUM_MAPS: Mapping[Head, int] = {"mask": 1, "boundary": 1, "distance": 1, "hover": 2}
"""Output channels of each head: whether a pixel is nucleus; whether it is a nucleus' border; its distance to the border
as a share of the nucleus' largest; its horizontal and vertical place within the nucleus, 0.5 at the centroid."""


def num_maps(heads: Sequence[Head]) -> int:
    """Returns the output channels of some heads.

    Example:
      >>> num_maps(["mask", "hover"])
      3
    """
    return sum(NUM_MAPS[head] for head in heads)


def needs_instances(heads: Sequence[Head]) -> bool:
    """Whether some head is learned from instance labels."""
    return tuple(heads) != ("mask",)


def channels(heads: Sequence[Head], head: Head) -> slice:
    """Returns which output channels belong to a head.

    Example:
      >>> channels(["mask", "boundary", "hover"], "hover")
      slice(2, 4, None)
    """
    start = num_maps(heads[: list(heads).index(head)])
    return slice(start, start + NUM_MAPS[head])
