"""The packed layout: neighboring pixels of a row as channels.

A TPU stores the channels of a tensor in vectors of 128 lanes and multiplies blocks of 128 x 128. Feature maps of 16
channels leave seven eighths of both empty. Packed, `block` neighboring pixels lie side by side in the channels:
[b, h, w, c] -> [b, h, w / block, block * c], pixel before channel. Concatenated tensors keep their own layout each:
[b, h, w / block, block * c1 + block * c2].
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from keras import ops


class Layout(NamedTuple):
    """How the last axis of a packed tensor is composed."""

    block: int
    """Neighboring pixels per packed pixel."""
    groups: tuple[int, ...]
    """Channels of each concatenated tensor."""

    @property
    def channels(self) -> int:
        """Channels of the unpacked tensor."""
        return sum(self.groups)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Start and end of each group on the last axis."""
        ends = np.cumsum([self.block * channels for channels in self.groups])
        return [(int(end) - self.block * channels, int(end)) for end, channels in zip(ends, self.groups, strict=True)]

    def split(self, values: Any) -> list[Any]:
        """Returns the groups of a packed tensor."""
        return [values[..., start:end] for start, end in self.bounds]

    def split_channels(self, values: Any, axis: int = -1) -> list[Any]:
        """Returns the groups of an unpacked array along its axis of channels."""
        return jnp.split(values, np.cumsum(self.groups)[:-1], axis)


def pack(images: Any, block: int) -> Any:
    """Packs [b, h, w, c]; `block` divides the width."""
    _, height, width, channels = images.shape
    return ops.reshape(images, (-1, height, width // block, block * channels))


def unpack(packed: Any, layout: Layout) -> Any:
    """Returns the tensor [b, h, w, c] of a packed one."""
    _, height, columns, _ = packed.shape
    shape = (-1, height, columns * layout.block)
    if len(layout.groups) == 1:
        return ops.reshape(packed, (*shape, layout.channels))
    groups = zip(layout.split(packed), layout.groups, strict=True)
    return ops.concatenate([ops.reshape(values, (*shape, channels)) for values, channels in groups], axis=-1)


def tile(values: Float[Array, " c"], layout: Layout) -> Float[Array, " packed"]:
    """Repeats one value per channel for all pixels of a block."""
    return jnp.concatenate([jnp.tile(group, layout.block) for group in layout.split_channels(values)])


def mean_over_block(values: Float[Array, " packed"], layout: Layout) -> Float[Array, " c"]:
    """Averages over the pixels of a block."""
    groups = zip(layout.split(values), layout.groups, strict=True)
    return jnp.concatenate([group.reshape(layout.block, channels).mean(0) for group, channels in groups])


def halved(layout: Layout) -> Layout:
    """Returns the layout after pooling by two."""
    return layout._replace(block=layout.block // 2)


# Slices of lanes are slow on TPUs, products with matrices of zeros and ones are not. Such products are exact.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_packed(packed: Float[Array, "b h n p"], layout: Layout) -> Float[Array, "b y n q"]:
    """Takes the maximum of 2x2 pixels; the gradient goes to the first pixel that has it, as XLA's does.

    Args:
      packed: a finite packed tensor of even height and an even number of pixels per block.
      layout: its layout.

    Returns:
      The packed maxima; their layout is `halved(layout)`.
    """
    maxima = jnp.maximum(*_rows(packed))
    even, odd = _column_selections(layout)
    return jnp.maximum(_select(maxima, even), _select(maxima, odd))


def _forward(packed: jax.Array, layout: Layout) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maxima = max_pool_packed(packed, layout)
    return maxima, (packed, maxima)


def _backward(layout: Layout, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    packed, maxima = residuals
    even, odd = _column_selections(layout)
    to_both, swap = (even + odd).T, even @ odd.T + odd @ even.T
    is_odd = odd.any(1)
    maxima, cotangent = _select(maxima, to_both), _select(cotangent, to_both)
    is_free = jnp.ones(maxima.shape, bool)
    gradients = []
    for row in _rows(packed):
        # Values are compared again at their neighbor: the compiler for TPUs fails on products of comparisons.
        neighbor = _select(row, swap)
        is_first = (row == maxima) & ~(is_odd & (neighbor == maxima))
        gradients.append(jnp.where(is_first & is_free, cotangent, 0))
        is_free &= jnp.maximum(row, neighbor) != maxima
    return (jnp.stack(gradients, 2).reshape(packed.shape),)


max_pool_packed.defvjp(_forward, _backward)


def _rows(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    num_images, height, columns, lanes = packed.shape
    rows = packed.reshape(num_images, height // 2, 2, columns, lanes)
    return rows[:, :, 0], rows[:, :, 1]


def _column_selections(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrices from a block to its even and to its odd pixels."""
    even, odd = np.zeros((2, layout.block * layout.channels, layout.block // 2 * layout.channels), np.float32)
    for (start, _), channels in zip(layout.bounds, layout.groups, strict=True):
        for lane in range(layout.block // 2 * channels):
            pixel, channel = divmod(lane, channels)
            first = start + 2 * pixel * channels + channel
            even[first, start // 2 + lane] = odd[first + channels, start // 2 + lane] = 1
    return even, odd


def _select(values: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.einsum("bhni,ij->bhnj", values, jnp.asarray(matrix, values.dtype), precision="highest")
