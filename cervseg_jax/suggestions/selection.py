"""Which images to annotate next: uncertain ones that differ from each other and from those already annotated."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cervseg_jax.typing import typechecked


class Pick(NamedTuple):
    """A chosen image."""

    candidate: int
    """Its position among the candidates."""
    distance: float
    """To the nearest image that is annotated, or was chosen before; see `select`."""
    score: float
    """Uncertainty times distance."""


@typechecked
def select(
    uncertainty: Float[np.ndarray, " n"],
    embeddings: Float[np.ndarray, "n d"],
    known: Float[np.ndarray, "m d"],
    *,
    count: int,
    come_first: Bool[np.ndarray, " n"] | None = None,
) -> list[Pick]:
    """Chooses images greedily, each time the one with the largest product of uncertainty and distance.

    The distance of an image is that to the nearest image which is annotated or was chosen before, as in the greedy
    solution of the k-center problem: a set without gaps is chosen, and not the same difficulty several times. It is
    Euclidean on features that are standardized over all images, divided by the square root of their number. Without
    annotated images, the first choice is the most uncertain image (distance 1).

    Args:
      uncertainty: of each candidate, at least 0.
      embeddings: features of each candidate.
      known: features of the annotated images; may be empty.
      count: number of images; fewer are chosen where there are no more.
      come_first: candidates that are chosen before all others.

    Returns:
      The choices in order.

    Reference: Sener and Savarese 2018, arXiv:1708.00489, algorithm 1 (k-center greedy); weighted by uncertainty, as
    Yang et al. 2017, arXiv:1706.04737, section 2.2, combine uncertainty and representativeness.

    Example:
      >>> features = np.array([[0.0], [0.1], [1.0]])
      >>> [pick.candidate for pick in select(np.array([0.9, 0.8, 0.5]), features, features[:0], count=2)]
      [0, 2]
    """
    first = np.zeros(len(uncertainty), bool) if come_first is None else come_first
    points = standardized(np.concatenate([embeddings, known]))
    candidates, annotated = points[: len(embeddings)], points[len(embeddings) :]
    distance = np.full(len(candidates), np.inf)
    for point in annotated:
        distance = np.minimum(distance, _distances(candidates, point))
    free = np.ones(len(candidates), bool)
    picks: list[Pick] = []
    while free.any() and len(picks) < count:
        reach = np.where(np.isinf(distance), 1.0, distance)
        allowed = free & first if (free & first).any() else free
        index = int(np.argmax(np.where(allowed, uncertainty * reach, -1.0)))
        picks.append(Pick(index, float(reach[index]), float(uncertainty[index] * reach[index])))
        free[index] = False
        distance = np.minimum(distance, _distances(candidates, candidates[index]))
    return picks


def standardized(features: np.ndarray) -> np.ndarray:
    """Returns features of mean 0 and standard deviation 1, float64 [n, d]; constant ones are 0."""
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64) if len(features) else features
    spread = centered.std(axis=0) if len(features) else np.ones(features.shape[1])
    return centered / np.where(spread > 1e-12, spread, np.inf)


def _distances(points: np.ndarray, point: np.ndarray) -> np.ndarray:
    return np.sqrt(((points - point) ** 2).mean(axis=1))
