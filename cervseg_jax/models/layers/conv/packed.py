"""Convolution of packed tensors, see `packing`.

A "same" convolution by k x k taps becomes one by k rows and a few columns of blocks. Its kernel repeats the taps for
each pixel of a block, shifted by one pixel each, with zeros elsewhere: a block Toeplitz matrix. It is made from the
k x k kernel by padding, so gradients with respect to that kernel are exact.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cervseg_jax.models.layers.conv.cpu import LAYOUT
from cervseg_jax.models.layers.packing import Layout


def convolve_packed(
    packed: Float[Array, "b h n p"], kernel: Float[Array, "k k c f"], layout: Layout, dilation: int
) -> Float[Array, "b h n q"]:
    """Convolves with "same" padding; equal to XLA's convolution of the unpacked tensor up to rounding.

    Args:
      packed: the input.
      kernel: of odd size.
      layout: of the input.
      dilation: distance between neighboring taps in pixels.

    Returns:
      The packed result, of one group.
    """
    margin, (before, after) = dilation * (kernel.shape[0] // 2), _margins(kernel.shape[1], layout.block, dilation)
    result = lax.conv_general_dilated(
        packed,
        pack_kernel(kernel, layout, dilation),
        window_strides=(1, 1),
        padding=((margin, margin), (before, after)),
        rhs_dilation=(dilation, 1),
        dimension_numbers=LAYOUT,
    )
    # The TPU compiler divides the columns of small batches into images, and aborts where it carries that on past here.
    return lax.optimization_barrier(result)


def pack_kernel(kernel: Float[Array, "k k c f"], layout: Layout, dilation: int) -> Float[Array, "k m p q"]:
    """Returns the kernel for packed tensors.

    Args:
      kernel: of odd size.
      layout: of the convolution's input.
      dilation: distance between neighboring taps in pixels, of the columns.

    Returns:
      The kernel, with as many columns as a block's convolution reads blocks.
    """
    groups = [_pack_group(group, layout.block, dilation) for group in layout.split_channels(kernel, 2)]
    return jnp.concatenate(groups, 2)


def _pack_group(kernel: jax.Array, block: int, dilation: int) -> jax.Array:
    size, _, channels, filters = kernel.shape
    before, after = _margins(size, block, dilation)
    columns = (before + 1 + after) * block
    reach = dilation * (size - 1) + 1
    zero = jnp.zeros((), kernel.dtype)
    shifted = []
    for pixel in range(block):
        first = before * block + pixel - reach // 2
        widths = ((0, 0, 0), (first, columns - first - reach, dilation - 1), (0, 0, 0), (0, 0, 0))
        shifted.append(lax.pad(kernel, zero, widths))
    return jnp.stack(shifted, 3).reshape(size, columns // block, block * channels, block * filters)


def _margins(size: int, block: int, dilation: int) -> tuple[int, int]:
    """Returns how many blocks before and after its own the convolution of a block reads."""
    reach = dilation * (size // 2)
    return -(-reach // block), (block - 1 + reach) // block
