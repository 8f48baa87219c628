"""Convolution for a single CPU, with its own forward pass and gradients.

XLA computes kernel gradients on CPUs at a fraction of the speed of a matrix product, and likewise some convolutions by
large kernels: those with few channels or small images. Here the kernel gradient is a sum of matrix products of blocks
that fit into the cache, those convolutions compute two rows at once, and large kernels are split into even and odd
rows, which saves a fifth of the multiplications. `select` holds the rules and the measurements.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cervseg_jax.models.layers.conv.select import ConvShape, choose_cpu_form

LAYOUT = ("NHWC", "HWIO", "NHWC")
BLOCK_VALUES = 2**19
"""Values in the shifted copies of a block: enough to keep two cores busy, few enough for a shared cache."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_on_cpu(
    images: Float[Array, "b h w c"], kernel: Float[Array, "k k c f"], dilation: int
) -> Float[Array, "b h w f"]:
    """Convolves with "same" padding; equal to XLA's convolution and its gradients up to rounding.

    Args:
      images: the input.
      kernel: of odd size.
      dilation: distance between neighboring taps in pixels.

    Returns:
      The result, of the images' size.
    """
    return _convolve(images, kernel, dilation)


def _convolve(images: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    if choose_cpu_form(ConvShape.of(images.shape, kernel.shape, images.dtype)) == "even_odd_rows":
        pairs = zip(_split_images(images, kernel.shape[0], dilation), _split_kernel(kernel), strict=True)
        return _join_rows(tuple(_convolve_rows(*pair, dilation) for pair in pairs), images.shape[1], dilation)
    return _convolve_rows(images, kernel, dilation, dilation * (kernel.shape[0] // 2))


def _convolve_rows(images: jax.Array, kernel: jax.Array, dilation: int, margin: int = 0) -> jax.Array:
    """Convolves with a kernel of any number of rows and `margin` rows of zeros above and below the images."""
    num_images, height, width, channels = images.shape
    rows, columns, _, _ = kernel.shape
    result = (num_images, height + 2 * margin - dilation * (rows - 1), width, channels)
    if choose_cpu_form(ConvShape.of(result, kernel.shape, images.dtype), split=False) == "row_pairs":
        return _convolve_row_pairs(images, kernel, dilation, margin)
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


def _convolve_row_pairs(images: jax.Array, kernel: jax.Array, dilation: int, margin: int) -> jax.Array:
    """Computes the same as `_convolve_rows`, two rows of the result at once.

    Rows y and y + dilation of the result read the same rows of the images except for one. With the filters of both in
    a kernel of one more row, XLA's convolution reads each pixel for twice as many filters, at the price of 1 / rows
    more multiplications.
    """
    num_images, height, width, channels = images.shape
    rows, columns, _, filters = kernel.shape
    height = height + 2 * margin - dilation * (rows - 1)
    side = dilation * (columns // 2)
    num_pairs = -(-height // (2 * dilation))
    padded = jnp.pad(images, ((0, 0), (margin, margin + 2 * dilation * num_pairs - height), (0, 0), (0, 0)))
    # The rows of a residue class modulo the dilation become an image of their own, without dilation.
    images = padded.reshape(num_images, -1, dilation, width, channels).swapaxes(1, 2)
    shifted = [jnp.pad(kernel, ((row, 1 - row), (0, 0), (0, 0), (0, 0))) for row in (0, 1)]
    pairs = lax.conv_general_dilated(
        images.reshape(num_images * dilation, -1, width, channels),
        jnp.concatenate(shifted, -1),
        (2, 1),
        ((0, 0), (side, side)),
        rhs_dilation=(1, dilation),
        dimension_numbers=LAYOUT,
    )
    joined = pairs.reshape(num_images, dilation, num_pairs, width, 2, filters).transpose(0, 2, 4, 1, 3, 5)
    return joined.reshape(num_images, -1, width, filters)[:, :height]


# The three functions below are the fast FIR algorithm for two outputs (Mou and Duhamel, IEEE Transactions on Signal
# Processing 39, 1991) along rows. Without dilation: let e[q] and o[q] be rows 2 q and 2 q - 1 of the images with their
# margin, E and O the even and odd rows of the kernel, * the correlation along q. Rows 2 q and 2 q - 1 of the result are
#     (E * e)[q] + (O * o)[q + 1]    and    (E * o)[q] + (O * e)[q] = ((E + O) * (e + o) - E * e - O * o)[q],
# three convolutions of half the rows by half the kernel instead of four.


def _split_images(images: jax.Array, kernel_size: int, dilation: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns even rows, odd rows and their sums, each with the margin rows that its part of the kernel needs."""
    num_images, height, width, channels = images.shape
    num_pairs = -(-height // (2 * dilation))
    num_odd = kernel_size // 2
    num_even = num_odd + 1
    top = dilation * num_even  # the margin, and the row above it that `odd` begins with
    bottom = 2 * dilation * (num_pairs + num_even) - top - height
    padded = jnp.pad(images, ((0, 0), (top, bottom), (0, 0), (0, 0)))
    pairs = padded.reshape(num_images, -1, 2, dilation, width, channels)
    odd, even = pairs[:, :, 0], pairs[:, :, 1]
    splits = (even, odd[:, : num_pairs + num_odd], (even + odd)[:, 1:])
    first, second, third = (split.reshape(num_images, -1, width, channels) for split in splits)
    return first, second, third


def _split_kernel(kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns even rows, odd rows and their sums."""
    even, odd = kernel[0::2], kernel[1::2]
    return even, odd, even + jnp.pad(odd, ((0, 1), (0, 0), (0, 0), (0, 0)))


def _join_rows(results: Sequence[jax.Array], height: int, dilation: int) -> jax.Array:
    """Returns the result, [b, height, w, f], from the convolutions of even rows, odd rows and sums."""
    num_images, _, width, filters = results[0].shape
    even, odd, total = (result.reshape(num_images, -1, dilation, width, filters) for result in results)
    rows = jnp.stack([even[:, :-1] + odd[:, 1:], total - even[:, 1:] - odd[:, 1:]], 2)
    return rows.reshape(num_images, -1, width, filters)[:, :height]


def kernel_gradient(
    images: Float[Array, "b h w c"], cotangent: Float[Array, "b h w f"], *, kernel_size: int, dilation: int
) -> Float[Array, "k k c f"]:
    """Computes the gradient of a "same" convolution with respect to its kernel.

    Args:
      images: the convolution's input.
      cotangent: gradient with respect to the convolution's result.
      kernel_size: k, odd.
      dilation: distance between neighboring taps in pixels.

    Returns:
      The gradient, float32 or wider.
    """
    channels, filters = images.shape[-1], cotangent.shape[-1]
    kernel_shape = (kernel_size, kernel_size, channels, filters)
    if choose_cpu_form(ConvShape.of(images.shape, kernel_shape, images.dtype)) != "even_odd_rows":
        margin = dilation * (kernel_size // 2)
        padded = jnp.pad(images, ((0, 0), (margin, margin), (0, 0), (0, 0)))
        return _kernel_gradient_rows(padded, cotangent, (kernel_size, kernel_size), dilation)
    # The steps of the split convolution, transposed.
    kernel = jax.ShapeDtypeStruct(kernel_shape, jnp.promote_types(images.dtype, jnp.float32))
    splits, kernels = _split_images(images, kernel_size, dilation), jax.eval_shape(_split_kernel, kernel)
    convolve = functools.partial(_convolve_rows, dilation=dilation)
    results = [jax.eval_shape(convolve, *pair) for pair in zip(splits, kernels, strict=True)]
    join = functools.partial(_join_rows, height=images.shape[1], dilation=dilation)
    (cotangents,) = jax.linear_transpose(join, results)(cotangent)
    gradients = tuple(
        _kernel_gradient_rows(split, split_cotangent, split_kernel.shape[:2], dilation)
        for split, split_cotangent, split_kernel in zip(splits, cotangents, kernels, strict=True)
    )
    return jax.linear_transpose(_split_kernel, kernel)(gradients)[0]


def _kernel_gradient_rows(
    images: jax.Array, cotangent: jax.Array, kernel_shape: tuple[int, ...], dilation: int
) -> jax.Array:
    """Computes the gradient of `_convolve_rows` with respect to its kernel, in blocks of rows.

    The gradient at tap (i, j) sums images[y + d * i, x + d * j] * cotangent[y, x] over all pixels. With
    x' = x + d * j it sums images[y + d * i, x'] * cotangent[y, x' - d * j]: the images are shifted down alone, the
    cotangent across alone. So as many shifted copies of a block as the kernel has rows and columns, and one product
    [rows * c, pixels] x [pixels, columns * f], give all taps.
    """
    num_images, height, width, filters = cotangent.shape
    channels, (kernel_rows, kernel_columns) = images.shape[-1], kernel_shape
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    side = dilation * (kernel_columns // 2)
    row_values = num_images * width * (kernel_rows * channels + kernel_columns * filters)
    num_blocks = -(-height // max(1, BLOCK_VALUES // row_values))
    rows = -(-height // num_blocks)
    missing = rows * num_blocks - height
    # Behind a barrier: without it XLA pads again in each block.
    images, cotangent = lax.optimization_barrier(
        (
            jnp.pad(images, ((0, 0), (0, missing), (0, 0), (0, 0))),
            jnp.pad(cotangent, ((0, 0), (0, missing), (side, side), (0, 0))),
        )
    )

    def copies(array: jax.Array, corners: Sequence[tuple[jax.Array | int, jax.Array | int]]) -> jax.Array:
        shape = (num_images, rows, width, array.shape[-1])
        shifted = [lax.dynamic_slice(array, (0, *corner, 0), shape) for corner in corners]
        return jnp.concatenate(shifted, -1).reshape(num_images * rows * width, -1)

    def add_block(total: jax.Array, top: jax.Array) -> tuple[jax.Array, None]:
        down = copies(images, [(top + dilation * tap, 0) for tap in range(kernel_rows)])
        across = copies(cotangent, [(top, 2 * side - dilation * tap) for tap in range(kernel_columns)])
        return total + jnp.einsum("pc,pf->cf", down, across, preferred_element_type=dtype), None

    start = jnp.zeros((kernel_rows * channels, kernel_columns * filters), dtype)
    total, _ = lax.scan(add_block, start, rows * jnp.arange(num_blocks))
    return total.reshape(kernel_rows, channels, kernel_columns, filters).transpose(0, 2, 1, 3)
