"""Operations and memory of compiled programs."""

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from cervseg_jax.errors import ConfigError
from cervseg_jax.schema import Config


class StepCost(NamedTuple):
    """Properties of a compiled train step that are known before it runs."""

    batch_size: int
    flops: float
    """Floating-point operations of a step on all devices together; NaN if XLA does not count them."""
    num_devices: int
    temporary_bytes: int
    """Memory per device in addition to weights, optimizer state and batch: mostly activations."""
    trace_seconds: float
    compile_seconds: float


def program_flops(lowered: jax.stages.Lowered) -> float:
    """Returns the floating-point operations of a program before optimization; a multiply-add counts as two.

    XLA counts the body of a loop once. The value is NaN on platforms where XLA does not count.
    """
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the temporary memory of a compiled program per device, in bytes; 0 if XLA does not report it."""
    analysis: Any = compiled.memory_analysis()
    return int(getattr(analysis, "temp_size_in_bytes", 0))


def peak_device_bytes() -> int:
    """Returns the peak memory of the first local device, or of the process if the device reports none (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["peak_bytes_in_use"]) if "peak_bytes_in_use" in stats else peak_process_bytes()


def peak_process_bytes() -> int:
    """Returns the peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def out_of_memory_advice(config: Config, cost: StepCost | None = None) -> Iterator[None]:
    """Translates out-of-memory errors of a device into a message that names the settings which need less memory.

    Args:
      config: the recipe.
      cost: cost of the train step, if it is compiled.

    Raises:
      ConfigError: if the device runs out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
            raise
        train, height = config.train, config.model.image_size[0]
        needs = "" if cost is None else f" (the step needs {cost.temporary_bytes / 2**30:.1f} GiB besides the weights)"
        raise ConfigError(
            f"the device has too little memory{needs}: {text.splitlines()[0][:300]}\n"
            f"To reduce memory, set train.grad_accum_steps={2 * train.grad_accum_steps} (computes the batch of "
            f"{train.batch_size} in parts), runtime.remat=true or runtime.precision=bfloat16, reduce model.image_size "
            f"or train.batch_size, or use more devices: runtime.mesh.spatial splits the {height} rows of an image, "
            "runtime.mesh.fsdp the weights"
        ) from None
