"""Images -> per-image counts -> scores."""

from collections.abc import Callable, Iterable

import numpy as np

from cervseg_jax.data.batch import Batch
from cervseg_jax.engine.step import StepMetrics
from cervseg_jax.metrics.pixel import Counts, summarize


class Scores:
    """Scores of the batches seen so far; a running total that can be saved and restored as JSON."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._loss_sum = 0.0
        self._dice_coef_sum = 0.0
        self._num_batches = 0
        self._image_ids: list[int] = []
        self._counts: list[list[int]] = []

    def add(self, metrics: StepMetrics) -> float:
        """Adds a batch.

        Args:
          metrics: results of a step; reading them waits for the device.

        Returns:
          The batch's loss.
        """
        real = np.asarray(metrics.valid) > 0
        loss = float(metrics.loss)
        self._loss_sum += loss * int(real.sum())
        self._dice_coef_sum += float(metrics.dice_coef)
        self._num_batches += 1
        self._image_ids += np.asarray(metrics.image_id)[real].tolist()
        self._counts += np.asarray(metrics.counts)[real].tolist()
        return loss

    @property
    def num_images(self) -> int:
        """Images seen."""
        return len(self._image_ids)

    @property
    def image_ids(self) -> list[int]:
        """Identity of each image, in the order of `counts`."""
        return self._image_ids

    @property
    def counts(self) -> Counts:
        """Per-image counts."""
        return Counts(*np.array(self._counts, np.int64).reshape(-1, 4).T)

    @property
    def loss(self) -> float:
        """Mean loss over the images so far; 0 before the first."""
        return self._loss_sum / max(self.num_images, 1)

    def summary(self) -> dict[str, float]:
        """Returns all scores by name.

        `loss` is the mean over images (each batch weighted by its size), `dice_coef` the plain mean over batches, as
        the reference implementation reports them; the rest as `summarize`.
        """
        return {
            "loss": self.loss,
            "dice_coef": self._dice_coef_sum / max(self._num_batches, 1),
            **summarize(self.counts),
        }

    def to_json(self) -> dict:
        """Returns the running total as JSON values."""
        return {
            "loss_sum": self._loss_sum,
            "dice_coef_sum": self._dice_coef_sum,
            "num_batches": self._num_batches,
            "image_ids": list(self._image_ids),
            "counts": [list(row) for row in self._counts],
        }

    @classmethod
    def from_json(cls, stored: dict) -> "Scores":
        """Restores what `to_json` returned."""
        scores = cls()
        scores._loss_sum = stored["loss_sum"]
        scores._dice_coef_sum = stored["dice_coef_sum"]
        scores._num_batches = stored["num_batches"]
        scores._image_ids = list(stored["image_ids"])
        scores._counts = [list(row) for row in stored["counts"]]
        return scores


def evaluate(
    score: Callable[[Batch], StepMetrics],
    batches: Iterable[Batch],
    *,
    on_progress: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Scores batches.

    Args:
      score: from a batch of numpy arrays to its metrics.
      batches: what to score.
      on_progress: called after each batch, for a progress bar.
      stop: asked before each batch whether to give up.

    Returns:
      The scores, or None if `stop` said so.
    """
    scores = Scores()
    for batch in batches:
        if stop():
            return None
        scores.add(score(batch))
        on_progress()
    return scores
