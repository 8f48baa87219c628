"""Scores of batches: per-image counts and their summary."""

from collections.abc import Callable, Iterable

import numpy as np

from cervseg_jax.data.batch import Batch
from cervseg_jax.engine.step import StepMetrics
from cervseg_jax.metrics.pixel import Counts, summarize


class Scores:
    """Running total of the scores of batches; can be saved and restored as JSON."""

    def __init__(self) -> None:
        """Creates an empty total."""
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

    def extend(self, others: "Scores") -> None:
        """Adds further batches, which were scored elsewhere."""
        self._loss_sum += others._loss_sum
        self._dice_coef_sum += others._dice_coef_sum
        self._num_batches += others._num_batches
        self._image_ids += others._image_ids
        self._counts += others._counts

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self._image_ids)

    @property
    def image_ids(self) -> list[int]:
        """Index of each image in its split, in the order of `counts`."""
        return self._image_ids

    @property
    def counts(self) -> Counts:
        """Per-image counts."""
        return Counts(*np.array(self._counts, np.int64).reshape(-1, 4).T)

    @property
    def loss(self) -> float:
        """Mean loss over the images; 0 if there are none."""
        return self._loss_sum / max(self.num_images, 1)

    def summary(self) -> dict[str, float]:
        """Returns all scores by name.

        As in the reference implementation, `loss` is the mean over images (each batch weighted by its size) and
        `dice_coef` the plain mean over batches; all others are those of `summarize`.
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
      score: computes the metrics of a batch of numpy arrays.
      batches: batches to score.
      on_progress: called after each batch.
      stop: called before each batch; returns whether to stop.

    Returns:
      The scores, or None if stopped.
    """
    scores = Scores()
    for batch in batches:
        if stop():
            return None
        scores.add(score(batch))
        on_progress()
    return scores
