"""Convolution, and the one choice of how it and its gradient are computed.

XLA computes the gradient of a kernel on CPUs at a fraction of the speed of the convolution itself. Here it is made of
matrix products of blocks that stay in the cache, up to three times as fast. Convolutions from 16 channels or fewer to
16 also run slowly on CPUs without AVX-512; with four idle filters more they run up to three times as fast. Where a
register holds 16 numbers, idle filters would need a second one and take longer.
`python scripts/benchmark_convolution.py` measures both. On other backends and for images divided over devices XLA's own
is taken; `python scripts/compare_formulations.py` shows why on TPUs.
"""

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.sharding import Mesh

LARGE_KERNEL = 5
"""Gradients of kernels from that size are slow in any case."""
MIN_CHANNELS, MIN_PX = 8, 32 * 32
"""Those of 3x3 are slow from so many input channels and pixels of an image."""
BLOCK_BYTES = 2**18
"""Of a block and its shifted copies: they fit a core's second-level cache, the smallest that is common."""
SLOW_FILTERS, MIN_SLOW_KERNEL, IDLE_FILTERS = 16, 7, 4
"""Convolutions to so many filters, from as many channels or fewer, get idle filters on CPUs with narrow registers."""
_is_for_cpu: ContextVar[bool] = ContextVar("is_for_cpu", default=False)


@contextlib.contextmanager
def formulation_for(mesh: Mesh) -> Iterator[None]:
    """Chooses, for all convolutions traced inside, what is fast on a mesh: our own formulation on a single CPU.

    Args:
      mesh: the devices that the program is for.
    """
    token = _is_for_cpu.set(mesh.size == 1 and mesh.devices.flat[0].platform == "cpu")
    try:
        yield
    finally:
        _is_for_cpu.reset(token)


class SameConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that follows `formulation_for`."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves [b, h, w, c] with [k, k, c, f]."""
        is_plain = self.strides == (1, 1) and self.padding == "same" and self.groups == 1
        if _is_for_cpu.get() and is_plain and _is_slow(inputs.shape, kernel.shape):
            return convolve_on_cpu(inputs, jnp.asarray(kernel), self.dilation_rate[0])
        return super().convolution_op(inputs, kernel)


def _is_slow(images_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Whether XLA's own gradient is slower than ours on a CPU."""
    _, height, width, channels = images_shape
    size, other, _, _ = kernel_shape
    is_large = size >= LARGE_KERNEL or (size == 3 and channels >= MIN_CHANNELS and height * width >= MIN_PX)
    return size == other and size % 2 == 1 and is_large


@functools.cache
def has_wide_registers() -> bool:
    """Whether this machine's CPU has registers of 16 float32 (AVX-512)."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_on_cpu(images: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Convolves with "same" padding; equal to XLA's convolution and its gradients up to rounding.

    Args:
      images: [b, h, w, c].
      kernel: [k, k, c, f], k odd.
      dilation: pixels between the kernel's taps.

    Returns:
      [b, h, w, f].
    """
    return _convolve(images, kernel, dilation)


def _convolve(images: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    size, _, channels, filters = kernel.shape
    is_few_to_16 = filters == SLOW_FILTERS and channels <= filters and size >= MIN_SLOW_KERNEL
    if is_few_to_16 and not has_wide_registers():
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, IDLE_FILTERS)))
    convolved = lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return convolved[..., :filters]


def _forward(images: jax.Array, kernel: jax.Array, dilation: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(images, kernel, dilation), (images, kernel)


def _backward(
    dilation: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    image_gradient = _convolve(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), dilation)
    gradient = kernel_gradient(images, cotangent, kernel_size=kernel.shape[0], dilation=dilation)
    return image_gradient, gradient.astype(kernel.dtype)


convolve_on_cpu.defvjp(_forward, _backward)


def kernel_gradient(images: jax.Array, cotangent: jax.Array, *, kernel_size: int, dilation: int) -> jax.Array:
    """Computes the gradient of a "same" convolution by its kernel, in blocks of rows.

    The gradient at tap (i, j) sums images[y + d * i, x + d * j] * cotangent[y, x] over all pixels. With
    y' = y + d * i it sums images[y', x + d * j] * cotangent[y' - d * i, x]: the images are shifted across alone, the
    cotangent down alone. So k + k shifted copies of a block and one product [k * f, pixels] x [pixels, k * c] give all
    k * k taps.

    Args:
      images: [b, h, w, c].
      cotangent: of the convolution's result, [b, h, w, f].
      kernel_size: k, odd.
      dilation: pixels between taps.

    Returns:
      [k, k, c, f], float32 or better.
    """
    num_images, height, width, channels = images.shape
    filters, taps = cotangent.shape[-1], range(kernel_size)
    precise = jnp.promote_types(images.dtype, jnp.float32)
    margin = dilation * (kernel_size // 2)
    pixel_bytes = images.dtype.itemsize * kernel_size * (channels + filters)
    rows = max(1, BLOCK_BYTES // (pixel_bytes * num_images * width))
    num_blocks = -(-(height + 2 * margin) // rows)
    rest = num_blocks * rows - height - 2 * margin
    # Behind a barrier, as XLA would pad anew in each block.
    images, cotangent = lax.optimization_barrier(
        (
            jnp.pad(images, ((0, 0), (margin, margin + rest), (margin, margin), (0, 0))),
            jnp.pad(cotangent.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (2 * margin, 2 * margin + rest), (0, 0))),
        )
    )

    def add_block(total: jax.Array, top: jax.Array) -> tuple[jax.Array, None]:
        across = [
            lax.dynamic_slice(images, (0, top, dilation * tap, 0), (num_images, rows, width, channels)) for tap in taps
        ]
        down = [
            lax.dynamic_slice(
                cotangent, (0, 0, top + 2 * margin - dilation * tap, 0), (filters, num_images, rows, width)
            )
            for tap in taps
        ]
        product = jnp.einsum(
            "fbyx,byxc->fc",
            jnp.concatenate(down, 0),
            jnp.concatenate(across, -1),
            preferred_element_type=precise,
        )
        return total + product, None

    start = jnp.zeros((kernel_size * filters, kernel_size * channels), precise)
    total, _ = lax.scan(add_block, start, rows * jnp.arange(num_blocks), unroll=2)
    return total.reshape(kernel_size, filters, kernel_size, channels).transpose(0, 2, 3, 1)
