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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_packed(packed: Float[Array, "b h n p"], layout: Layout) -> Float[Array, "b y n q"]:
    """Takes the maximum of 2x2 pixels; the gradient goes to the first pixel that has it, as XLA's does.

    Args:
      packed: a packed tensor of even height and an even number of pixels per block.
      layout: its layout.

    Returns:
      The packed maxima; their layout is `halved(layout)`.
    """
    return functools.reduce(jnp.maximum, _quarters(packed, layout))


def _forward(packed: jax.Array, layout: Layout) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maxima: Any = max_pool_packed(packed, layout)
    return maxima, (packed, maxima)


def _backward(layout: Layout, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    packed, maxima = residuals
    is_free = jnp.ones(maxima.shape, bool)
    gradients = []
    for quarter in _quarters(packed, layout):
        is_first = is_free & (quarter == maxima)
        is_free = is_free & ~is_first
        gradients.append(jnp.where(is_first, cotangent, 0))
    (gradient,) = jax.linear_transpose(lambda values: _quarters(values, layout), packed)(gradients)
    return (gradient,)


max_pool_packed.defvjp(_forward, _backward)


def _quarters(packed: jax.Array, layout: Layout) -> list[jax.Array]:
    """Returns the pixels of each 2x2 block as four packed tensors, row by row."""
    num_images, height, columns, lanes = packed.shape
    rows = packed.reshape(num_images, height // 2, 2, columns, lanes)

    def pixels(row: int, column: int) -> jax.Array:
        slices = [
            rows[:, :, row, :, start + pixel * channels : start + (pixel + 1) * channels]
            for (start, _), channels in zip(layout.bounds, layout.groups, strict=True)
            for pixel in range(column, layout.block, 2)
        ]
        return jnp.concatenate(slices, -1)

    return [pixels(row, column) for row in (0, 1) for column in (0, 1)]
