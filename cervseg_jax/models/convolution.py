"""Convolution, and the one choice of how it and its gradient are computed.

XLA computes the gradient of a kernel on CPUs at a fraction of the speed of a matrix product, and so it does some
convolutions by large kernels: those of few channels and those of small images. Here the gradient is made of matrix
products of blocks that stay in the cache, and those convolutions give two rows at once, up to three times as fast;
`python scripts/benchmark_convolution.py` measures it. On other backends and for images divided over devices XLA's own
is taken; `python scripts/compare_formulations.py` shows why on TPUs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax

from cervseg_jax.models.formulation import is_for_cpu

LAYOUT = ("NHWC", "HWIO", "NHWC")
LARGE_KERNEL = 5
"""Gradients of kernels from that size are slow in any case."""
MIN_CHANNELS, MIN_PX = 8, 8 * 8
"""Those of 3x3 are slow from so many input channels and pixels of an image."""
FEW_CHANNELS, SMALL_PX = 16, 64 * 64
"""Convolutions by large kernels in float32 are slow themselves between so few channels, or for so few pixels."""
BLOCK_VALUES = 2**19
"""In a block's shifted copies: enough to keep two cores busy, few enough for a shared cache."""


class SameConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that follows `formulation_for`."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves [b, h, w, c] with [k, k, c, f]."""
        is_plain = self.strides == (1, 1) and self.padding == "same" and self.groups == 1
        if is_for_cpu() and is_plain and _is_slow(inputs.shape, kernel.shape):
            return convolve_on_cpu(inputs, jnp.asarray(kernel), self.dilation_rate[0])
        return super().convolution_op(inputs, kernel)


def _is_slow(images_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Whether XLA's own gradient is slower than ours on a CPU."""
    _, height, width, channels = images_shape
    size, other, _, _ = kernel_shape
    is_large = size >= LARGE_KERNEL or (size == 3 and channels >= MIN_CHANNELS and height * width >= MIN_PX)
    return size == other and size % 2 == 1 and is_large


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
    (_, height, width, _), (size, _, channels, filters) = images.shape, kernel.shape
    is_slow = max(channels, filters) <= FEW_CHANNELS or height * width <= SMALL_PX
    if size >= LARGE_KERNEL and is_slow and images.dtype != jnp.bfloat16:
        return _convolve_pairs_of_rows(images, kernel, dilation)
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
    )


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


def _convolve_pairs_of_rows(images: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Convolves as `convolve_on_cpu` says, two rows of the result at once.

    Rows y and y + d see the same rows of the images but one. With a kernel of k + 1 rows and the filters of both, XLA's
    convolution reads each pixel for twice as many filters, and multiplies 1 / k more.
    """
    num_images, height, width, channels = images.shape
    size, _, _, filters = kernel.shape
    margin = dilation * (size // 2)
    num_pairs = -(-height // (2 * dilation))
    padded = jnp.pad(images, ((0, 0), (margin, margin + 2 * dilation * num_pairs - height), (0, 0), (0, 0)))
    # Every d-th row is an image of its own, without dilation.
    images = padded.reshape(num_images, -1, dilation, width, channels).swapaxes(1, 2)
    both = [jnp.pad(kernel, ((row, 1 - row), (0, 0), (0, 0), (0, 0))) for row in (0, 1)]
    pairs = lax.conv_general_dilated(
        images.reshape(num_images * dilation, -1, width, channels),
        jnp.concatenate(both, -1),
        (2, 1),
        ((0, 0), (margin, margin)),
        rhs_dilation=(1, dilation),
        dimension_numbers=LAYOUT,
    )
    rows = pairs.reshape(num_images, dilation, num_pairs, width, 2, filters).transpose(0, 2, 4, 1, 3, 5)
    return rows.reshape(num_images, -1, width, filters)[:, :height]


def kernel_gradient(images: jax.Array, cotangent: jax.Array, *, kernel_size: int, dilation: int) -> jax.Array:
    """Computes the gradient of a "same" convolution by its kernel, in blocks of rows.

    The gradient at tap (i, j) sums images[y + d * i, x + d * j] * cotangent[y, x] over all pixels. With
    x' = x + d * j it sums images[y + d * i, x'] * cotangent[y, x' - d * j]: the images are shifted down alone, the
    cotangent across alone. So k + k shifted copies of a block and one product [k * c, pixels] x [pixels, k * f] give
    all k * k taps.

    Args:
      images: [b, h, w, c].
      cotangent: of the convolution's result, [b, h, w, f].
      kernel_size: k, odd.
      dilation: pixels between taps.

    Returns:
      [k, k, c, f], float32 or better.
    """
    num_images, height, width, channels = images.shape
    filters = cotangent.shape[-1]
    precise = jnp.promote_types(images.dtype, jnp.float32)
    margin = dilation * (kernel_size // 2)
    row_values = num_images * width * kernel_size * (channels + filters)
    num_blocks = -(-height // max(1, BLOCK_VALUES // row_values))
    rows = -(-height // num_blocks)
    rest = rows * num_blocks - height
    # Behind a barrier, as XLA would pad anew in each block.
    images, cotangent = lax.optimization_barrier(
        (
            jnp.pad(images, ((0, 0), (margin, rest + margin), (0, 0), (0, 0))),
            jnp.pad(cotangent, ((0, 0), (0, rest), (margin, margin), (0, 0))),
        )
    )

    def copies(array: jax.Array, corners: list[tuple[Any, Any]]) -> jax.Array:
        shape = (num_images, rows, width, array.shape[-1])
        shifted = [lax.dynamic_slice(array, (0, *corner, 0), shape) for corner in corners]
        return jnp.concatenate(shifted, -1).reshape(num_images * rows * width, -1)

    def add_block(total: jax.Array, top: jax.Array) -> tuple[jax.Array, None]:
        down = copies(images, [(top + dilation * tap, 0) for tap in range(kernel_size)])
        across = copies(cotangent, [(top, 2 * margin - dilation * tap) for tap in range(kernel_size)])
        return total + jnp.einsum("pc,pf->cf", down, across, preferred_element_type=precise), None

    start = jnp.zeros((kernel_size * channels, kernel_size * filters), precise)
    total, _ = lax.scan(add_block, start, rows * jnp.arange(num_blocks))
    return total.reshape(kernel_size, channels, kernel_size, filters).transpose(0, 2, 1, 3)
