"""From probabilities to the mask, and the parameters of everything behind the network.

The mask has one threshold, and the label map divides this mask: what `infer` writes, `eval` scores and previews show
are the same pixels. The threshold is `infer.threshold` where that is set, else the one tuned on validation images and
stored beside the weights, else 0.5.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pydantic import ValidationError

from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import write_text
from cervseg_jax.runs.weights import OLD_POSTPROCESSING_FILE, POSTPROCESSING_FILE
from cervseg_jax.schema import DEFAULT_THRESHOLD, InferConfig, PostprocessingConfig, Probability, Section, ThresholdRule
from cervseg_jax.typing import typechecked


class Postprocessing(NamedTuple):
    """How probabilities become a mask and a label map."""

    threshold: float = DEFAULT_THRESHOLD
    """Mask probability from which a pixel belongs to a nucleus; for the rule "fixed"."""
    threshold_rule: ThresholdRule = "fixed"
    params: PostprocessingConfig = PostprocessingConfig()
    """Parameters of the watershed."""

    def at_scale(self, factor: float) -> "Postprocessing":
        """Returns the settings for an image that the network sees at `factor` times its size.

        Lengths and areas are then given in pixels of the network's input.
        """
        lengths = {"smoothing_px": self.params.smoothing_px / factor}
        areas = {name: round(getattr(self.params, name) / factor**2) for name in ("min_area_px", "max_hole_px")}
        return self._replace(params=self.params.model_copy(update=lengths | areas))

    def to_json(self) -> dict[str, Any]:
        """Returns all settings as JSON values, by the names of their config keys."""
        return {"threshold": self.threshold, "threshold_rule": self.threshold_rule, **self.params.model_dump()}


class _StoredThreshold(Section):
    threshold: Probability = DEFAULT_THRESHOLD


@typechecked
def make_mask(
    probs: Float[np.ndarray, "h w"], threshold: float, threshold_rule: str = "fixed"
) -> Bool[np.ndarray, "h w"]:
    """Thresholds mask probabilities.

    Args:
      probs: mask probabilities; may be memory-mapped.
      threshold: pixels of at least this probability are nucleus; for the rule "fixed".
      threshold_rule: "fixed", or "otsu" or "triangle": the threshold is chosen from the histogram of this image's
        probabilities in 256 levels.

    Returns:
      The mask.

    Example:
      >>> make_mask(np.array([[0.2, 0.5, 0.7]]), 0.5).tolist()
      [[False, True, True]]
    """
    if threshold_rule == "fixed":
        return np.asarray(probs >= threshold)
    levels = np.rint(np.asarray(probs) * 255).astype(np.uint8)
    method = {"otsu": cv2.THRESH_OTSU, "triangle": cv2.THRESH_TRIANGLE}[threshold_rule]
    return cv2.threshold(levels, 0, 1, method)[1] > 0


def resolve_postprocessing(config: InferConfig, weights: Path | None = None) -> Postprocessing:
    """Returns the settings of a config, completed by those that were tuned for the weights.

    Args:
      config: the section `infer`; `threshold` and `postprocessing` may be None.
      weights: folder of the weights, such as `RUN/best`; None where there are none yet.

    Raises:
      CheckpointError: if the file beside the weights is damaged.
    """
    tuned = None if weights is None else load_postprocessing(weights)
    if tuned is None:
        tuned = Postprocessing()
    threshold = tuned.threshold if config.threshold is None else config.threshold
    return Postprocessing(threshold, config.threshold_rule, config.postprocessing or tuned.params)


def save_postprocessing(weights: Path, postprocessing: Postprocessing) -> None:
    """Stores tuned parameters beside the weights."""
    stored = {"threshold": postprocessing.threshold, **postprocessing.params.model_dump()}
    write_text(weights / POSTPROCESSING_FILE, json.dumps(stored, indent=2) + "\n")


def load_postprocessing(weights: Path) -> Postprocessing | None:
    """Reads the parameters beside the weights; also those of release 0.1, `separation.json`.

    Returns:
      The parameters, or None where nothing was tuned.

    Raises:
      CheckpointError: if the file is damaged.
    """
    for name in (POSTPROCESSING_FILE, OLD_POSTPROCESSING_FILE):
        path = weights / name
        try:
            stored = json.loads(path.read_bytes())
            if not isinstance(stored, dict):
                raise ValueError("not an object")
            if name == OLD_POSTPROCESSING_FILE and "min_depth" in stored:
                stored["min_saddle_depth"] = stored.pop("min_depth")
            threshold = {"threshold": stored.pop("threshold")} if "threshold" in stored else {}
            return Postprocessing(
                _StoredThreshold.model_validate(threshold).threshold, params=PostprocessingConfig.model_validate(stored)
            )
        except FileNotFoundError:
            continue
        except ValidationError as error:
            raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: is damaged: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return None
