"""The choice of a convolution's implementation: backend and layer shape -> implementation, with what was measured.

All rules are equal to XLA's convolution and its gradients up to rounding. `python scripts/benchmark_convolution.py`
measures the rules for CPUs again. Rates are GFLOP/s with a batch of 2, XLA -> ours: on two cores with AVX2 those of
the published U-Net's first level (9x9, dilation 3, 256x256), with AVX-512 those of one core of a Zen 4.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from cervseg_jax.models.layers.backend import Backend

LARGE_KERNEL, VERY_LARGE_KERNEL = 5, 7
"""Kernels of at least these sizes count as large."""
MIN_CHANNELS, MIN_PX = 8, 8 * 8
FEW_CHANNELS, SMALL_PX = 16, 64 * 64

MIN_COLUMNS = 8
PATCHES_PX, MANY_CHANNELS = 8 * 8, 128

Implementation = Literal["xla", "cpu", "patches"]
CpuForm = Literal["even_odd_rows", "row_pairs", "xla"]


class ConvShape(NamedTuple):
    """A "same" convolution of stride 1."""

    height: int
    width: int
    channels: int
    filters: int
    kernel_rows: int
    kernel_columns: int
    dtype: str = "float32"
    """Of the images: "float32", "bfloat16" or "float64"."""

    @classmethod
    def of(cls, images_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype: Any = "float32") -> "ConvShape":
        """Returns the shape of a convolution of [b, h, w, c] with [k, k, c, f]."""
        _, height, width, _ = images_shape
        rows, columns, channels, filters = kernel_shape
        return cls(height, width, channels, filters, rows, columns, jnp.dtype(dtype).name)

    @property
    def is_square(self) -> bool:
        """Whether the kernel is square and of odd size."""
        return self.kernel_rows == self.kernel_columns and self.kernel_rows % 2 == 1

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width


@functools.cache
def has_wide_vectors() -> bool:
    """Whether this machine's processor computes with vectors of 512 bits (AVX-512)."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


class Rule(NamedTuple):
    """One line of the table."""

    backend: Backend
    implementation: Implementation
    applies: Callable[[ConvShape], bool]
    measured: str
    wide_vectors: bool | None = None
    """Whether the line is for processors with vectors of 512 bits, or for the others; None: for both."""


RULES = (
    Rule(
        "cpu",
        "patches",
        lambda shape: (
            shape.is_square
            and shape.kernel_rows == 3
            and shape.pixels <= PATCHES_PX
            and min(shape.channels, shape.filters) >= MANY_CHANNELS
        ),
        "milliseconds on two cores, forward and gradients: 2x2, 2048 channels 643, 897 -> 11, 67; 4x4, 1024 channels "
        "10, 78 -> 5, 23; 8x8, 512 channels 5.5, 16 -> 4.2, 8; at 16x16 XLA's are faster",
    ),
    Rule(
        "cpu",
        "cpu",
        lambda shape: shape.is_square and shape.kernel_rows >= LARGE_KERNEL,
        "kernel and input gradients 28 -> 84 for 16 channels: XLA computes kernel gradients far below matrix products",
        wide_vectors=False,
    ),
    Rule(
        "cpu",
        "cpu",
        lambda shape: (
            shape.is_square and shape.kernel_rows == 3 and shape.channels >= MIN_CHANNELS and shape.pixels >= MIN_PX
        ),
        "gradients of 3x3 kernels are slow from 8 input channels and 8x8 pixels; below, XLA's are as fast",
        wide_vectors=False,
    ),
    Rule(
        "cpu",
        "cpu",
        lambda shape: shape.is_square and shape.kernel_rows >= VERY_LARGE_KERNEL,
        "gradients 25 -> 79 between 16 channels, 99 -> 105 for 7x7 between 32, forward 108 -> 122",
        wide_vectors=True,
    ),
    Rule(
        "cpu",
        "cpu",
        lambda shape: (
            shape.is_square
            and shape.filters <= FEW_CHANNELS
            and shape.pixels >= MIN_PX
            and (shape.kernel_rows == 5 or (shape.kernel_rows == 3 and shape.channels >= MIN_CHANNELS))
        ),
        "gradients 27 -> 61 for 5x5 and 28 -> 55 for 3x3 between 16 channels; with 32 filters XLA's are as fast",
        wide_vectors=True,
    ),
)
"""The first rule that applies wins; XLA's convolution where none does."""


class CpuRule(NamedTuple):
    """One line of the table of forms within the implementation for CPUs."""

    form: CpuForm
    applies: Callable[[ConvShape], bool]
    measured: str
    wide_vectors: bool
    """As in `Rule`."""


CPU_RULES = (
    CpuRule(
        "even_odd_rows",
        lambda shape: _can_split_rows(shape, LARGE_KERNEL),
        "a fifth of the multiplications less; not in bfloat16, where sums of kernel rows would lose digits",
        wide_vectors=False,
    ),
    CpuRule(
        "row_pairs",
        lambda shape: (
            shape.kernel_columns >= LARGE_KERNEL
            and (max(shape.channels, shape.filters) <= FEW_CHANNELS or shape.pixels <= SMALL_PX)
            and shape.dtype != "bfloat16"
        ),
        "forward 55 -> 117 between 16 channels: XLA's convolution is slow between few channels and for few pixels",
        wide_vectors=False,
    ),
    CpuRule(
        "even_odd_rows",
        lambda shape: _can_split_rows(shape, VERY_LARGE_KERNEL),
        "forward 110 -> 127 for 9x9 between 32 channels; 5x5 at 256x256 would lose, 107 -> 87",
        wide_vectors=True,
    ),
    CpuRule(
        "row_pairs",
        lambda shape: (
            shape.kernel_columns >= LARGE_KERNEL
            and max(shape.channels, shape.filters) <= FEW_CHANNELS
            and shape.dtype != "bfloat16"
        ),
        "forward 47 -> 94 for 9x9 between 16 channels; for few pixels between many channels it would lose, 107 -> 86",
        wide_vectors=True,
    ),
)
"""As `RULES`. Even and odd rows are convolved by one of the other two forms each."""


def _can_split_rows(shape: ConvShape, min_kernel: int) -> bool:
    return (
        shape.is_square
        and shape.kernel_rows >= min_kernel
        and min(shape.channels, shape.filters) >= MIN_CHANNELS
        and shape.pixels >= MIN_PX
        and shape.dtype != "bfloat16"
    )


def choose(backend: Backend, shape: ConvShape, *, wide_vectors: bool | None = None) -> Implementation:
    """Returns the implementation of a convolution of stride 1 with "same" padding and without groups.

    Args:
      backend: target of the program.
      shape: the convolution.
      wide_vectors: whether the processor has vectors of 512 bits; None: that of this machine.
    """
    wide_vectors = has_wide_vectors() if wide_vectors is None else wide_vectors
    for rule in RULES:
        if rule.backend == backend and rule.wide_vectors in (None, wide_vectors) and rule.applies(shape):
            return rule.implementation
    return "xla"


def choose_cpu_form(shape: ConvShape, *, split: bool = True, wide_vectors: bool | None = None) -> CpuForm:
    """Returns the form in which the implementation for CPUs computes a convolution or its kernel gradient.

    Args:
      shape: the convolution; height and width are those of the result.
      split: whether "even_odd_rows" is allowed.
      wide_vectors: as of `choose`.
    """
    wide_vectors = has_wide_vectors() if wide_vectors is None else wide_vectors
    for rule in CPU_RULES:
        if rule.wide_vectors == wide_vectors and rule.applies(shape) and (split or rule.form != "even_odd_rows"):
            return rule.form
    return "xla"


MAX_DEPTHWISE_KERNEL = 5
"""Kernels up to this size are unrolled."""


def choose_depthwise(backend: Backend, kernel_size: tuple[int, ...]) -> Implementation:
    """Returns the implementation of a depthwise convolution.

    On CPUs a sum of shifted images is faster than XLA's grouped convolution. CPU seconds on an AVX-512 Xeon, batch 4,
    XLA -> ours: 3x3, 64x64, 144 channels: forward 0.082 -> 0.006, gradients 0.47 -> 0.07; 3x3 with stride 2, 128x128,
    96 channels: 0.060 -> 0.008, 1.20 -> 0.09; 5x5, 16x16, 672 channels: 0.045 -> 0.003, 0.39 -> 0.07.
    """
    return "cpu" if backend == "cpu" and max(kernel_size) <= MAX_DEPTHWISE_KERNEL else "xla"


class PackRule(NamedTuple):
    """One line of the table of packed convolutions."""

    backend: Backend
    block: int
    """Neighboring pixels that are packed into the channels."""
    filters: int
    """Up to so many filters."""
    measured: str


PACK_RULES = (
    PackRule("tpu", 8, 16, "9x9, dilation 3, 16 channels, 512x512: 5.7 -> 2.0 forward, 25.5 -> 2.8 gradients"),
    PackRule("tpu", 4, 32, "7x7, dilation 2, 32 channels, 256x256: 1.15 -> 0.8 forward, 3.3 -> 1.0 gradients"),
    PackRule("tpu", 2, 64, "5x5, 64 channels, 128x128: 0.30 -> 0.30 forward, 0.54 -> 0.40 gradients"),
)
"""The first rule whose filters suffice wins. Millions of cycles that the compiler for TPUs estimates on a v5e for
float32 and a batch of 2, XLA's convolution -> packed. A step of the published network, forward and backward: 202 -> 49
(`cervseg-jax compile clustered --topology v5e:1x1 --against plain --verbose`)."""


def choose_block(backend: Backend, shape: ConvShape) -> int:
    """Returns how many neighboring pixels a convolution of stride 1 packs into the channels; 1 leaves them apart.

    A block divides the width, and leaves at least `MIN_COLUMNS` packed pixels in a row.
    """
    block = next((rule.block for rule in PACK_RULES if rule.backend == backend and shape.filters <= rule.filters), 1)
    if not shape.is_square:
        return 1
    while block > 1 and (shape.width % block or shape.width // block < MIN_COLUMNS):
        block //= 2
    return block
