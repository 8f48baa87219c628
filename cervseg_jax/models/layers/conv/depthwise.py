"""Depthwise convolution with an implementation chosen by backend."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import lax

from cervseg_jax.models.layers.backend import WithBackend
from cervseg_jax.models.layers.conv.select import choose_depthwise


class DepthwiseConv(WithBackend, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with an implementation chosen by backend."""

    def call(self, inputs: Any) -> Any:
        """Convolves each channel of [b, h, w, c] with its own kernel."""
        is_plain = self.depth_multiplier == 1 and not self.use_bias and self.data_format == "channels_last"
        if not is_plain or choose_depthwise(self.backend, self.kernel_size) == "xla":
            return super().call(inputs)
        kernel: Any = keras.ops.convert_to_tensor(self.kernel)
        outputs = shifted_depthwise(
            jnp.asarray(inputs),
            kernel,
            stride=self.strides[0],
            dilation=self.dilation_rate[0],
            same=self.padding == "same",
        )
        return self.activation(outputs)


class _Geometry(NamedTuple):
    """Rows and columns of a convolution."""

    stride: int
    dilation: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    """Zeros before and after the rows, and the columns."""
    size: tuple[int, int]
    """Height and width of the result."""


def shifted_depthwise(
    images: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, same: bool = True
) -> jax.Array:
    """Depthwise convolution as a sum of shifted images, one per kernel element.

    Args:
      images: [b, h, w, c].
      kernel: [k, k, c, 1].
      stride: of rows and columns.
      dilation: of rows and columns.
      same: pad with zeros, so that a stride of 1 keeps the size; otherwise there is no padding.

    Returns:
      [b, h', w', c].
    """
    pads, sizes = [], []
    for length, taps in zip(images.shape[1:3], kernel.shape[:2], strict=True):
        reach = (taps - 1) * dilation + 1
        size = -(-length // stride) if same else (length - reach) // stride + 1
        pad = max((size - 1) * stride + reach - length, 0) if same else 0
        pads.append((pad // 2, pad - pad // 2))
        sizes.append(size)
    return _convolve(images, kernel[..., 0], _Geometry(stride, dilation, (pads[0], pads[1]), (sizes[0], sizes[1])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    padded = jnp.pad(images, ((0, 0), *geometry.padding, (0, 0)))
    return _weighted_sum(padded, kernel, geometry)


def _weighted_sum(padded: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """Returns the sum over kernel elements of weight times shifted image."""
    shifted = _shifted(padded, kernel.shape[:2], geometry)
    return sum((part * kernel[place] for place, part in shifted), start=jnp.zeros((), padded.dtype))


def _shifted(
    padded: jax.Array, taps: tuple[int, ...], geometry: _Geometry
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields the row and column of each kernel element, and the pixels that it is multiplied with."""
    stride, dilation = geometry.stride, geometry.dilation
    for place in itertools.product(range(taps[0]), range(taps[1])):
        starts = [index * dilation for index in place]
        ends = [start + (size - 1) * stride + 1 for start, size in zip(starts, geometry.size, strict=True)]
        yield (
            place,
            lax.slice(padded, (0, *starts, 0), (len(padded), *ends, padded.shape[3]), (1, stride, stride, 1)),
        )


def _forward(
    images: jax.Array, kernel: jax.Array, geometry: _Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(images, kernel, geometry), (images, kernel)


def _backward(
    geometry: _Geometry, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    return _image_gradient(images.shape, kernel, geometry, gradient), _kernel_gradient(
        images, kernel, geometry, gradient
    )


_convolve.defvjp(_forward, _backward)


def _image_gradient(shape: tuple[int, ...], kernel: jax.Array, geometry: _Geometry, gradient: jax.Array) -> jax.Array:
    """Returns the convolution of the spread gradient with the flipped kernel."""
    padding = [(0, 0, 0)]
    for length, taps, size, (before, _) in zip(
        shape[1:3], kernel.shape[:2], geometry.size, geometry.padding, strict=True
    ):
        reach, spread = (taps - 1) * geometry.dilation, (size - 1) * geometry.stride + 1
        padding.append((reach - before, length + before - spread, geometry.stride - 1))
    spread_gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), [*padding, (0, 0, 0)])
    whole = geometry._replace(stride=1, size=(shape[1], shape[2]))
    return _weighted_sum(spread_gradient, kernel[::-1, ::-1], whole)


def _kernel_gradient(images: jax.Array, kernel: jax.Array, geometry: _Geometry, gradient: jax.Array) -> jax.Array:
    """Returns the kernel's gradient, summed row by row, so that a row is read once for all kernel elements."""
    padded = jnp.pad(images, ((0, 0), *geometry.padding, (0, 0)))
    reach = (kernel.shape[0] - 1) * geometry.dilation + 1
    of_row = geometry._replace(size=(1, geometry.size[1]))

    def add_row(row: Any, total: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(padded, row * geometry.stride, reach, axis=1)
        row_gradient = lax.dynamic_slice_in_dim(gradient, row, 1, axis=1)
        sums = [jnp.sum(part * row_gradient, axis=(0, 1, 2)) for _, part in _shifted(rows, kernel.shape[:2], of_row)]
        return total + jnp.stack(sums)

    start = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[2]), kernel.dtype)
    return lax.fori_loop(0, geometry.size[0], add_row, start).reshape(kernel.shape)
