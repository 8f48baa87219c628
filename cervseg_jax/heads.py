"""Output heads of a network and their channels."""

from collections.abc import Mapping, Sequence
from typing import Literal

Head = Literal["mask", "boundary", "distance", "hover", "rays"]

NUM_RAYS = 32
"""Directions of the head "rays"."""
RAY_UNIT_PX = 8.0
"""Length of a ray whose map has the value 0.5, in pixels of the network's input; see `data.rays`."""

NUM_MAPS: Mapping[Head, int] = {"mask": 1, "boundary": 1, "distance": 1, "hover": 2, "rays": 1 + NUM_RAYS}
"""Output channels per head. mask: nucleus probability. boundary: probability of a nucleus border. distance: distance to
the border, relative to the maximum within the nucleus. hover: horizontal and vertical position within the nucleus, 0.5
at the centroid. rays: how central a pixel lies in a whole nucleus, and the distances to that nucleus' outline."""


def num_maps(heads: Sequence[Head]) -> int:
    """Returns the total number of output channels of some heads.

    Example:
      >>> num_maps(["mask", "hover"])
      3
    """
    return sum(NUM_MAPS[head] for head in heads)


def needs_instances(heads: Sequence[Head]) -> bool:
    """Whether any head is trained on instance labels."""
    return tuple(heads) != ("mask",)


def channels(heads: Sequence[Head], head: Head) -> slice:
    """Returns the output channels of a head as a slice.

    Example:
      >>> channels(["mask", "boundary", "hover"], "hover")
      slice(2, 4, None)
    """
    start = num_maps(heads[: list(heads).index(head)])
    return slice(start, start + NUM_MAPS[head])
