"""What the steps of a run cost: rates, waiting, memory, share of the devices' peak."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from cervseg_jax.engine.step import StepMetrics
from cervseg_jax.errors import ConfigError
from cervseg_jax.runs.folder import EventLog
from cervseg_jax.runs.progress import finite
from cervseg_jax.schema import Config

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
"""Of products in bfloat16 per device, from the makers' data sheets, by the beginning of the device's kind."""


class StepFacts(NamedTuple):
    """What is known of a step before it runs."""

    batch_size: int
    flops: float
    """Of the whole step on all devices, from the program before optimization."""
    num_devices: int
    temporary_bytes: int
    """Per device, besides weights, optimizer and batch."""


class StepMeter:
    """Writes a line of `log.jsonl` every so many steps: loss, norms, rates, waiting, memory."""

    def __init__(self, log: EventLog, *, every: int, facts: StepFacts) -> None:
        """Starts counting.

        Args:
          log: where the lines go.
          every: steps between two of them.
          facts: of the compiled step.
        """
        self._log = log
        self._every = every
        self._facts = facts
        self._start = time.monotonic()
        self._count = 0
        self._waited = 0.0
        self._losses: list[float] = []
        self._under_way: deque[tuple[int, float]] = deque()

    def step(self, number: int, *, rate: float, wait: float) -> None:
        """Notes a step that is about to run.

        Args:
          number: updates before it.
          rate: its learning rate.
          wait: seconds that its batch was waited for.
        """
        self._under_way.append((number, rate))
        self._waited += wait

    def result(self, metrics: StepMetrics) -> None:
        """Notes what the oldest step under way returned, and writes a line where one is due."""
        number, rate = self._under_way.popleft()
        self._count += 1
        self._losses.append(float(metrics.loss))
        if self._count < self._every:
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        steps_per_second = self._count / seconds
        loss = sum(self._losses) / len(self._losses)
        self._log.write(
            "steps",
            step=number,
            loss=finite(loss),
            gradient_norm=finite(float(metrics.gradient_norm)),
            param_norm=finite(float(metrics.param_norm)),
            learning_rate=rate,
            steps_per_second=round(steps_per_second, 4),
            images_per_second=round(steps_per_second * self._facts.batch_size, 3),
            input_wait=round(self._waited / seconds, 4),
            flops_per_second=finite(self._facts.flops * steps_per_second),
            mfu=model_flops_utilization(self._facts, steps_per_second),
            peak_memory_bytes=peak_memory(),
        )
        self._start, self._count, self._waited, self._losses = time.monotonic(), 0, 0.0, []


class StepProfiler:
    """Records what JAX's profiler sees of some steps, for TensorBoard's profile plugin, xprof or Perfetto."""

    FIRST = 5
    """Steps of this process before the recording begins; the first ones are not typical."""

    def __init__(self, folder: Path, *, num_steps: int) -> None:
        """Prepares a recording.

        Args:
          folder: where it goes.
          num_steps: how many steps; 0 for none.
        """
        self._folder = folder
        self._steps = range(self.FIRST, self.FIRST + num_steps)
        self._count = 0
        self._is_on = False

    def __enter__(self) -> "StepProfiler":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a recording that is under way."""
        self._stop()

    def step(self, metrics: StepMetrics) -> None:
        """Begins or ends the recording where it is time; `metrics` are those of the step that has just been started."""
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


def model_flops_utilization(facts: StepFacts, steps_per_second: float) -> float | None:
    """Returns the share of the devices' peak that the model's operations reach; None for an unknown device.

    Reference: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    kind = jax.devices()[0].device_kind
    fitting = [name for name in PEAK_FLOPS if kind.startswith(name)]
    if not fitting or not math.isfinite(facts.flops):
        return None
    peak = PEAK_FLOPS[max(fitting, key=len)] * facts.num_devices
    return round(facts.flops * steps_per_second / peak, 4)


def peak_memory() -> int:
    """Returns the most bytes in use so far: on the first device, or of the process where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@contextmanager
def out_of_memory_advice(config: Config, facts: StepFacts | None = None) -> Iterator[None]:
    """Turns a device's lack of memory into advice.

    Raises:
      ConfigError: if the memory did not suffice.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
            raise
        train, height = config.train, config.model.image_size[0]
        needs = (
            "" if facts is None else f" (the step needs {facts.temporary_bytes / 2**30:.1f} GiB besides the weights)"
        )
        raise ConfigError(
            f"the device has too little memory{needs}: {text.splitlines()[0][:300]}\n"
            f"Less is needed with train.grad_accum_steps={2 * train.grad_accum_steps} (the batch of {train.batch_size} "
            "in parts), "
            "runtime.remat=true, runtime.precision=bfloat16, a smaller model.image_size or train.batch_size, or "
            f"with more devices: runtime.mesh.spatial divides the {height} rows of an image, runtime.mesh.fsdp the "
            "weights"
        ) from None
