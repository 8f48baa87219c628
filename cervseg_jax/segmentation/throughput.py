"""How fast images are processed, and which stage takes the time."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cervseg_jax.console import format_duration
from cervseg_jax.data.slides import Slide
from cervseg_jax.segmentation.images import plane_of

STAGES = ("reading", "network", "nuclei", "writing")
"""Reading and decoding files; prediction; thresholds, labels, outlines and measurements; encoding and writing files."""


class Throughput:
    """Counts images and pixels, and adds up the time of each stage over all threads."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._start = time.monotonic()
        self._stop: float | None = None
        self.num_images = 0
        self.num_pixels = 0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time that a block takes to one of `STAGES`; blocks of several threads may overlap."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[stage] += time.monotonic() - start

    def add_image(self, shape: Sequence[int]) -> None:
        """Counts a finished image of this height and width."""
        with self._lock:
            self.num_images += 1
            self.num_pixels += shape[0] * shape[1]

    def stop(self) -> None:
        """Stops the clock."""
        self._stop = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start, up to the stop."""
        return (time.monotonic() if self._stop is None else self._stop) - self._start

    @property
    def megapixels_per_second(self) -> float:
        """Finished megapixels per second since the start."""
        return self.num_pixels / 1e6 / max(self.seconds, 1e-9)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in the time of all stages; zeros before anything was measured."""
        total = sum(self._seconds.values())
        return {stage: seconds / total if total else 0.0 for stage, seconds in self._seconds.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns counts, rates and shares as JSON values."""
        return {
            "num_images": self.num_images,
            "megapixels": self.num_pixels / 1e6,
            "seconds": self.seconds,
            "images_per_second": self.num_images / max(self.seconds, 1e-9),
            "megapixels_per_second": self.megapixels_per_second,
            "shares": self.shares,
        }

    def describe(self) -> str:
        """Returns rates and shares in one line."""
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in self.shares.items())
        return (
            f"{self.num_images} images, {self.num_pixels / 1e6:.1f} megapixels in {format_duration(self.seconds)}: "
            f"{self.num_images / max(self.seconds, 1e-9):.2f} images/s, {self.megapixels_per_second:.2f} megapixels/s; "
            f"time: {shares}"
        )


def timed(throughput: Throughput, stage: str, call: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """Returns a function whose time is added to a stage."""

    def measured(images: np.ndarray) -> np.ndarray:
        with throughput.measure(stage):
            return call(images)

    return measured


class TimedSlide:
    """A slide whose windows are read on the clock."""

    def __init__(self, slide: Slide, throughput: Throughput) -> None:
        """Keeps the slide."""
        self._slide = slide
        self._throughput = throughput
        self.shape = slide.shape
        self.plane = plane_of(slide)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Returns a window, uint8 [h, w, 3]."""
        with self._throughput.measure("reading"):
            return self._slide[window]

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()
