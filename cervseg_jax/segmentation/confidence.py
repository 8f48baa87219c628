"""Confidence of single nuclei: the probability that one matches a true nucleus, and how far its outline may be off.

Both are fitted on validation images and stored beside the weights. The probability is a logistic regression on the
nucleus' scores and shape. The margin is split conformal prediction: of the nuclei that match, the stated share has its
true outline within this distance of the predicted one, if the images are like those of the validation.

References: Platt 1999 (probabilities from scores); Vovk et al. 2005, and Angelopoulos and Bates 2021, arXiv:2107.07511,
section 1 (conformal prediction).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.extents import Extent, trimmed
from cervseg_jax.files import write_text
from cervseg_jax.label_maps import distance_to_border
from cervseg_jax.runs.weights import CONFIDENCE_FILE
from cervseg_jax.schema import InferConfig, Section
from cervseg_jax.segmentation.morphometry import Table
from cervseg_jax.segmentation.whole import WholeNucleus

COVERAGE = 0.9
"""Share of matched nuclei whose true outline lies within the margin."""

FEATURES = (
    "log_odds",
    "log_odds_squared",
    "log_size",
    "log_size_squared",
    "solidity",
    "eccentricity",
    "touches_border",
    "is_touching",
    "score",
    "agreement",
    "log_proposals",
    "seen_share",
)
"""Features of a nucleus; the last four are constant for networks without the head "rays"."""


class Confidence(Section):
    """The fitted model of nuclei."""

    features: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    margin: float
    """Distance from the predicted outline, as a share of the nucleus' diameter."""
    coverage: float = COVERAGE
    num_images: int
    num_nuclei: int
    num_matched: int
    curve: tuple[tuple[float, float, float], ...]
    """Probability from which nuclei are kept, their precision, and their recall on the validation images."""

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the probability of each nucleus, float64 [n], from its features [n, features]."""
        standard = (features - np.array(self.center)) / np.array(self.scale)
        return 1 / (1 + np.exp(-(standard @ np.array(self.weights) + self.bias)))


def features_of(table: Table, whole: Sequence[WholeNucleus] | None) -> np.ndarray:
    """Returns the features of nuclei, float64 [n, features], from their measurements.

    Args:
      table: measurements of the nuclei of one image.
      whole: the whole nuclei, in the same order; None for networks without the head "rays".
    """
    confidence = np.clip(table["confidence"].astype(np.float64), 1e-3, 1 - 1e-3)
    odds = np.log(confidence / (1 - confidence))
    diameter = np.log(np.maximum(table["equivalent_diameter_px"], 1.0))
    size = diameter - (np.median(diameter) if len(diameter) else 0.0)
    count = len(odds)
    if whole is None:
        proposed = [np.zeros(count), np.zeros(count), np.zeros(count), np.ones(count)]
    else:
        seen = table["area_px"] / np.maximum(table["whole_area_px"], 1)
        scores = np.array([(n.score, n.agreement, math.log1p(n.num_proposals)) for n in whole]).reshape(-1, 3)
        proposed = [*scores.T, seen]
    columns = (
        odds,
        odds**2,
        size,
        size**2,
        table["solidity"],
        table["eccentricity"],
        table["touches_border"],
        table["num_touching"] > 0,
        *proposed,
    )
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def save_confidence(weights: Path, confidence: Confidence | None) -> None:
    """Stores a fitted model beside the weights; removes an earlier one where nothing could be fitted."""
    path = weights / CONFIDENCE_FILE
    if confidence is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, json.dumps(confidence.model_dump(mode="json"), indent=2) + "\n")


def load_confidence(weights: Path) -> Confidence | None:
    """Reads the model beside the weights; None where there is none.

    Raises:
      CheckpointError: if the file is damaged.
    """
    path = weights / CONFIDENCE_FILE
    try:
        confidence = Confidence.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    sizes = {len(confidence.center), len(confidence.scale), len(confidence.weights), len(FEATURES)}
    if confidence.features != FEATURES or len(sizes) > 1:
        raise CheckpointError(f"{path}: was fitted by another version; train or tune the run again")
    return confidence


def min_probability(config: InferConfig, confidence: Confidence | None) -> float:
    """Returns the probability from which nuclei are kept; 0 keeps all.

    Args:
      config: the section `infer`, with at most one of `min_probability`, `precision` and `recall`.
      confidence: of the weights.

    Raises:
      ConfigError: if the weights have none, or the validation images did not reach the precision or recall.
    """
    for name, column in (("min_probability", 0), ("precision", 1), ("recall", 2)):
        wanted = getattr(config, name)
        if wanted is None:
            continue
        if confidence is None:
            raise ConfigError(
                f"infer.{name}: these weights have no confidence of nuclei, so that none can be left out; "
                "set it to null"
            )
        if column == 0:
            return wanted
        reached = [row[0] for row in confidence.curve if row[column] >= wanted]
        if not reached:
            best = max(row[column] for row in confidence.curve)
            raise ConfigError(f"infer.{name}: the validation images reached {best:.3f} at most, got {wanted:g}")
        return min(reached) if name == "precision" else max(reached)
    return 0.0


def outline_band(extent: Extent, margin_px: float, *, shape: tuple[int, int]) -> tuple[Extent | None, Extent]:
    """Returns the pixels that surely belong to a nucleus, and those that may.

    Args:
      extent: the nucleus.
      margin_px: distance from its outline, in pixels.
      shape: height and width of the image.

    Returns:
      What lies deeper in the nucleus than the margin, None if nothing does; and the nucleus with all that is nearer to
      it than the margin, within the image.
    """
    pad = math.ceil(margin_px) + 1
    own = np.pad(extent.inside, pad)
    inner = distance_to_border(own) > margin_px
    outer = distance_to_border(~own) <= margin_px
    top, left = extent.top - pad, extent.left - pad
    rows, columns = slice(max(0, -top), shape[0] - top), slice(max(0, -left), shape[1] - left)
    cut = trimmed(outer[rows, columns], top=top + rows.start, left=left + columns.start)
    return trimmed(inner, top=top, left=left), extent if cut is None else cut
