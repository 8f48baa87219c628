"""Measurements of a running training: rates, input wait, memory, utilization, profiles."""

import math
import time
from collections import deque
from pathlib import Path

import jax

from cervseg_jax.engine.cost import StepCost, peak_device_bytes
from cervseg_jax.engine.step import StepMetrics
from cervseg_jax.runs.log import EventLog
from cervseg_jax.runs.progress import finite

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Peak of bfloat16 matrix products per device, by prefix of the device kind; from the vendors' data sheets."""


class StepMeter:
    """Logs a `steps` event every few steps: loss, norms, rates, input wait, memory."""

    def __init__(self, log: EventLog, *, every: int, cost: StepCost) -> None:
        """Starts the clock.

        Args:
          log: receives the events.
          every: steps between two events.
          cost: cost of the compiled step.
        """
        self._log = log
        self._every = every
        self._cost = cost
        self._start = time.monotonic()
        self._count = 0
        self._waited = 0.0
        self._losses: list[float] = []
        self._running: deque[tuple[int, float]] = deque()

    def start_step(self, step: int, *, learning_rate: float, wait: float) -> None:
        """Records that a step is about to be dispatched.

        Args:
          step: 0-based index of the update.
          learning_rate: its learning rate.
          wait: seconds spent waiting for its batch.
        """
        self._running.append((step, learning_rate))
        self._waited += wait

    def finish_step(self, metrics: StepMetrics) -> None:
        """Adds the metrics of the oldest running step, and logs an event if one is due."""
        step, learning_rate = self._running.popleft()
        self._count += 1
        self._losses.append(float(metrics.loss))
        if self._count < self._every:
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        steps_per_second = self._count / seconds
        loss = sum(self._losses) / len(self._losses)
        self._log.write(
            "steps",
            step=step,
            loss=finite(loss),
            gradient_norm=finite(float(metrics.gradient_norm)),
            param_norm=finite(float(metrics.param_norm)),
            learning_rate=learning_rate,
            steps_per_second=round(steps_per_second, 4),
            images_per_second=round(steps_per_second * self._cost.batch_size, 3),
            input_wait=round(self._waited / seconds, 4),
            flops_per_second=finite(self._cost.flops * steps_per_second),
            mfu=model_flops_utilization(self._cost, steps_per_second),
            peak_memory_bytes=peak_device_bytes(),
        )
        self._start, self._count, self._waited, self._losses = time.monotonic(), 0, 0.0, []


class StepProfiler:
    """Records a trace of some steps with JAX's profiler, for TensorBoard, xprof or Perfetto."""

    FIRST = 5
    """Number of steps before the profile starts; the first ones include compilation and warm-up."""

    def __init__(self, folder: Path, *, num_steps: int) -> None:
        """Creates a profiler that has not started.

        Args:
          folder: receives the profile.
          num_steps: number of steps to profile; 0 disables it.
        """
        self._folder = folder
        self._steps = range(self.FIRST, self.FIRST + num_steps)
        self._count = 0
        self._is_on = False

    def __enter__(self) -> "StepProfiler":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops a profile that is running."""
        self._stop()

    def step(self, metrics: StepMetrics) -> None:
        """Starts or stops the profile when due; `metrics` are those of the last dispatched step."""
        self._count += 1
        if self._count == self._steps.start and self._steps:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        elif self._is_on and self._count == self._steps.stop:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False


def model_flops_utilization(cost: StepCost, steps_per_second: float) -> float | None:
    """Returns the model FLOPs utilization (MFU): operations as a share of the devices' peak; None if it is unknown.

    Reference: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    kind = jax.devices()[0].device_kind
    fitting = [name for name in PEAK_FLOPS if kind.startswith(name)]
    if not fitting or not math.isfinite(cost.flops):
        return None
    peak = PEAK_FLOPS[max(fitting, key=len)] * cost.num_devices
    return round(cost.flops * steps_per_second / peak, 4)
