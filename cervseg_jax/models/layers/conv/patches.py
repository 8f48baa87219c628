"""Convolution of small images as a matrix product.

XLA's convolution on CPUs reads the kernel once per pixel; with many channels that is nearly all of its time. Here the
pixels that a kernel covers lie side by side, and one product reads the kernel once for all pixels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve_patches(
    images: Float[Array, "b h w c"], kernel: Float[Array, "k k c f"], dilation: int
) -> Float[Array, "b h w f"]:
    """Convolves with "same" padding; equal to XLA's convolution up to rounding.

    Args:
      images: the input.
      kernel: of odd size.
      dilation: distance between neighboring taps in pixels.

    Returns:
      The result, of the images' size.
    """
    num_images, height, width, channels = images.shape
    size, _, _, filters = kernel.shape
    margin = dilation * (size // 2)
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    taps = range(0, dilation * size, dilation)
    patches = jnp.concatenate([padded[:, y : y + height, x : x + width] for y in taps for x in taps], -1)
    product = jnp.matmul(
        patches.reshape(-1, size * size * channels),
        kernel.reshape(-1, filters),
        preferred_element_type=jnp.promote_types(images.dtype, jnp.float32),
    )
    return product.astype(images.dtype).reshape(num_images, height, width, filters)
