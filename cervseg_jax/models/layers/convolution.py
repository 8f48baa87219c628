"""Convolution, and the one choice of how it and its gradient are computed.

XLA computes the gradient of a kernel on CPUs at a fraction of the speed of a matrix product, and so it does some
convolutions by large kernels: those of few channels and those of small images. Here the gradient is made of matrix
products of blocks that stay in the cache, and those convolutions give two rows at once, up to three times as fast.
Large kernels are parted into even and odd rows, which saves a fifth of the multiplications.
`python scripts/benchmark_convolution.py` measures it. On other backends and for images divided over devices XLA's own
is taken; `python scripts/compare_formulations.py` shows why on TPUs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax

from cervseg_jax.models.layers.backend import is_for_cpu

LAYOUT = ("NHWC", "HWIO", "NHWC")
LARGE_KERNEL = 5
"""Gradients of kernels from that size are slow in any case."""
MIN_CHANNELS, MIN_PX = 8, 8 * 8
"""Those of 3x3 are slow from so many input channels and pixels of an image. Parting of rows pays from so many."""
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
    size, _, channels, filters = kernel.shape
    if not _is_parted(images, size, channels, filters):
        margin = dilation * (size // 2)
        return _convolve_rows(images, kernel, dilation, margin)
    parts = zip(_part_images(images, size, dilation), _part_kernel(kernel), strict=True)
    return _join_rows(tuple(_convolve_rows(*part, dilation) for part in parts), images.shape[1], dilation)


def _convolve_rows(images: jax.Array, kernel: jax.Array, dilation: int, margin: int = 0) -> jax.Array:
    """Convolves by a kernel of any number of rows, with so many rows of zeros above and below the images."""
    (_, height, width, _), (rows, columns, channels, filters) = images.shape, kernel.shape
    result_px = (height + 2 * margin - dilation * (rows - 1)) * width
    is_slow = max(channels, filters) <= FEW_CHANNELS or result_px <= SMALL_PX
    if columns >= LARGE_KERNEL and is_slow and images.dtype != jnp.bfloat16:
        return _convolve_pairs_of_rows(images, kernel, dilation, margin)
    side = dilation * (columns // 2)
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding=((margin, margin), (side, side)),
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


def _convolve_pairs_of_rows(images: jax.Array, kernel: jax.Array, dilation: int, margin: int) -> jax.Array:
    """Convolves as `_convolve_rows` says, two rows of the result at once.

    Rows y and y + d see the same rows of the images but one. With a kernel of one row more and the filters of both,
    XLA's convolution reads each pixel for twice as many filters, and multiplies 1 / rows more.
    """
    num_images, height, width, channels = images.shape
    rows, columns, _, filters = kernel.shape
    height = height + 2 * margin - dilation * (rows - 1)
    side = dilation * (columns // 2)
    num_pairs = -(-height // (2 * dilation))
    padded = jnp.pad(images, ((0, 0), (margin, margin + 2 * dilation * num_pairs - height), (0, 0), (0, 0)))
    # Every d-th row is an image of its own, without dilation.
    images = padded.reshape(num_images, -1, dilation, width, channels).swapaxes(1, 2)
    both = [jnp.pad(kernel, ((row, 1 - row), (0, 0), (0, 0), (0, 0))) for row in (0, 1)]
    pairs = lax.conv_general_dilated(
        images.reshape(num_images * dilation, -1, width, channels),
        jnp.concatenate(both, -1),
        (2, 1),
        ((0, 0), (side, side)),
        rhs_dilation=(1, dilation),
        dimension_numbers=LAYOUT,
    )
    joined = pairs.reshape(num_images, dilation, num_pairs, width, 2, filters).transpose(0, 2, 4, 1, 3, 5)
    return joined.reshape(num_images, -1, width, filters)[:, :height]


def _is_parted(images: jax.Array, kernel_size: int, channels: int, filters: int) -> bool:
    """Whether a convolution, or its gradient, is computed from even and odd rows apart.

    Sums of parts would cost bfloat16 digits that it does not have.
    """
    is_worth_it = min(channels, filters) >= MIN_CHANNELS and images.shape[1] * images.shape[2] >= MIN_PX
    return kernel_size >= LARGE_KERNEL and is_worth_it and images.dtype != jnp.bfloat16


# The three functions below are the fast FIR algorithm for two outputs (Mou and Duhamel, IEEE Transactions on Signal
# Processing 39, 1991) along rows. Without dilation: let e[q] and o[q] be rows 2 q and 2 q - 1 of the images with their
# margin, E and O the even and odd rows of the kernel, * the correlation along q. Rows 2 q and 2 q - 1 of the result are
#     (E * e)[q] + (O * o)[q + 1]    and    (E * o)[q] + (O * e)[q] = ((E + O) * (e + o) - E * e - O * o)[q],
# three convolutions of half the rows by half the kernel instead of four.


def _part_images(images: jax.Array, kernel_size: int, dilation: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns even rows, odd rows and their sums, each with the rows that its part of the kernel needs around it."""
    num_images, height, width, channels = images.shape
    num_pairs = -(-height // (2 * dilation))
    num_odd = kernel_size // 2
    num_even = num_odd + 1
    top = dilation * num_even  # the margin, and the row above it that `odd` begins with
    rest = 2 * dilation * (num_pairs + num_even) - top - height
    padded = jnp.pad(images, ((0, 0), (top, rest), (0, 0), (0, 0)))
    pairs = padded.reshape(num_images, -1, 2, dilation, width, channels)
    odd, even = pairs[:, :, 0], pairs[:, :, 1]
    parts = (even, odd[:, : num_pairs + num_odd], (even + odd)[:, 1:])
    first, second, third = (part.reshape(num_images, -1, width, channels) for part in parts)
    return first, second, third


def _part_kernel(kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns even rows, odd rows and their sums."""
    even, odd = kernel[0::2], kernel[1::2]
    return even, odd, even + jnp.pad(odd, ((0, 1), (0, 0), (0, 0), (0, 0)))


def _join_rows(parts: Sequence[jax.Array], height: int, dilation: int) -> jax.Array:
    """Returns the result, [b, height, w, f], from the convolutions of the three parts."""
    num_images, _, width, filters = parts[0].shape
    even, odd, both = (part.reshape(num_images, -1, dilation, width, filters) for part in parts)
    rows = jnp.stack([even[:, :-1] + odd[:, 1:], both - even[:, 1:] - odd[:, 1:]], 2)
    return rows.reshape(num_images, -1, width, filters)[:, :height]


def kernel_gradient(images: jax.Array, cotangent: jax.Array, *, kernel_size: int, dilation: int) -> jax.Array:
    """Computes the gradient of a "same" convolution by its kernel.

    Args:
      images: [b, h, w, c].
      cotangent: of the convolution's result, [b, h, w, f].
      kernel_size: k, odd.
      dilation: pixels between taps.

    Returns:
      [k, k, c, f], float32 or better.
    """
    channels, filters = images.shape[-1], cotangent.shape[-1]
    if not _is_parted(images, kernel_size, channels, filters):
        margin = dilation * (kernel_size // 2)
        padded = jnp.pad(images, ((0, 0), (margin, margin), (0, 0), (0, 0)))
        return _kernel_gradient_rows(padded, cotangent, (kernel_size, kernel_size), dilation)
    # The steps of the parted convolution, transposed.
    precise = jnp.promote_types(images.dtype, jnp.float32)
    kernel = jax.ShapeDtypeStruct((kernel_size, kernel_size, channels, filters), precise)
    parts, kernels = _part_images(images, kernel_size, dilation), jax.eval_shape(_part_kernel, kernel)
    convolve = functools.partial(_convolve_rows, dilation=dilation)
    results = [jax.eval_shape(convolve, *given) for given in zip(parts, kernels, strict=True)]
    join = functools.partial(_join_rows, height=images.shape[1], dilation=dilation)
    (cotangents,) = jax.linear_transpose(join, results)(cotangent)
    gradients = tuple(
        _kernel_gradient_rows(part, one, given.shape[:2], dilation)
        for part, one, given in zip(parts, cotangents, kernels, strict=True)
    )
    return jax.linear_transpose(_part_kernel, kernel)(gradients)[0]


def _kernel_gradient_rows(
    images: jax.Array, cotangent: jax.Array, kernel_shape: tuple[int, ...], dilation: int
) -> jax.Array:
    """Computes the gradient of `_convolve_rows` by its kernel, in blocks of rows.

    The gradient at tap (i, j) sums images[y + d * i, x + d * j] * cotangent[y, x] over all pixels. With
    x' = x + d * j it sums images[y + d * i, x'] * cotangent[y, x' - d * j]: the images are shifted down alone, the
    cotangent across alone. So as many shifted copies of a block as the kernel has rows and columns, and one product
    [rows * c, pixels] x [pixels, columns * f], give all taps.
    """
    num_images, height, width, filters = cotangent.shape
    channels, (kernel_rows, kernel_columns) = images.shape[-1], kernel_shape
    precise = jnp.promote_types(images.dtype, jnp.float32)
    side = dilation * (kernel_columns // 2)
    row_values = num_images * width * (kernel_rows * channels + kernel_columns * filters)
    num_blocks = -(-height // max(1, BLOCK_VALUES // row_values))
    rows = -(-height // num_blocks)
    rest = rows * num_blocks - height
    # Behind a barrier, as XLA would pad anew in each block.
    images, cotangent = lax.optimization_barrier(
        (
            jnp.pad(images, ((0, 0), (0, rest), (0, 0), (0, 0))),
            jnp.pad(cotangent, ((0, 0), (0, rest), (side, side), (0, 0))),
        )
    )

    def copies(array: jax.Array, corners: list[tuple[Any, Any]]) -> jax.Array:
        shape = (num_images, rows, width, array.shape[-1])
        shifted = [lax.dynamic_slice(array, (0, *corner, 0), shape) for corner in corners]
        return jnp.concatenate(shifted, -1).reshape(num_images * rows * width, -1)

    def add_block(total: jax.Array, top: jax.Array) -> tuple[jax.Array, None]:
        down = copies(images, [(top + dilation * tap, 0) for tap in range(kernel_rows)])
        across = copies(cotangent, [(top, 2 * side - dilation * tap) for tap in range(kernel_columns)])
        return total + jnp.einsum("pc,pf->cf", down, across, preferred_element_type=precise), None

    start = jnp.zeros((kernel_rows * channels, kernel_columns * filters), precise)
    total, _ = lax.scan(add_block, start, rows * jnp.arange(num_blocks))
    return total.reshape(kernel_rows, channels, kernel_columns, filters).transpose(0, 2, 1, 3)
