"""The layer factory for backends that profit from packed tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

from cervseg_jax.models.layers.backend import Backend
from cervseg_jax.models.layers.blocks import BATCH_NORM_MOMENTUM, Layers
from cervseg_jax.models.layers.conv.select import ConvShape, choose_block
from cervseg_jax.models.layers.packed import (
    PackedBatchNormalization,
    PackedConv2D,
    PackedMaxPool,
    PackedUpsampleConv2x2,
)
from cervseg_jax.models.layers.packing import Layout, halved, pack, unpack


class Packed(NamedTuple):
    """A symbolic tensor in the packed layout."""

    tensor: Any
    layout: Layout

    @property
    def shape(self) -> tuple[int | None, int, int, int]:
        """Shape of the unpacked tensor, [b, h, w, c]."""
        batch, height, columns, _ = self.tensor.shape
        return (batch, height, columns * self.layout.block, self.layout.channels)


class PackedLayers(Layers):
    """Creates layers that pack feature maps with few channels, and keeps them packed as long as layers allow it.

    A level is packed by its first convolution and unpacked by the first layer that does not know the layout. Names,
    weights and results are those of `Layers`; masks of dropout differ.
    """

    def plain(self, x: Any) -> Any:
        """Returns a tensor [b, h, w, c]."""
        return unpack(*x) if isinstance(x, Packed) else x

    def conv(self, x: Any, filters: int, kernel_size: int, name: str, **options: Any) -> Any:
        """Applies a convolution with "same" padding."""
        block = self._block(x, filters, kernel_size, options.get("stride", 1))
        if block == 1:
            return super().conv(self.plain(x), filters, kernel_size, name, **options)
        return self._conv(x, block, filters, kernel_size, name, policy=self.policy, **options)

    def head(self, x: Any, num_maps: int, name: str = "head", *, kernel_size: int = 1, use_bias: bool = True) -> Any:
        """Applies the last convolution; the logits are float32 and not packed."""
        if not isinstance(x, Packed):
            return super().head(x, num_maps, name, kernel_size=kernel_size, use_bias=use_bias)
        block, policy = x.layout.block, self.float_policy
        options = {"use_bias": use_bias, "initializer": "glorot_uniform"}
        return self.plain(self._conv(x, block, num_maps, kernel_size, name, policy=policy, **options))

    def _conv(
        self,
        x: Any,
        block: int,
        filters: int,
        kernel_size: int,
        name: str,
        *,
        policy: str,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = True,
        activation: str | None = None,
        initializer: str = "he_normal",
    ) -> Packed:
        packed = self._packed(x, block)
        layer = PackedConv2D(
            filters,
            kernel_size,
            layout=packed.layout,
            dilation_rate=dilation,
            use_bias=use_bias,
            activation=activation,
            kernel_initializer=initializer,
            dtype=policy,
            name=name,
        )
        return Packed(self.record(layer)(packed.tensor), Layout(block, (filters,)))

    def norm(self, x: Any, name: str, *, epsilon: float = 1e-3) -> Any:
        """Applies BatchNorm."""
        if not isinstance(x, Packed):
            return super().norm(x, name, epsilon=epsilon)
        layer = PackedBatchNormalization(
            layout=x.layout, momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, dtype=self.policy, name=name
        )
        return x._replace(tensor=self.record(layer)(x.tensor))

    def layer_norm(self, x: Any, name: str, *, epsilon: float) -> Any:
        """Applies layer normalization over channels."""
        return super().layer_norm(self.plain(x), name, epsilon=epsilon)

    def dense(self, x: Any, units: int, name: str, **options: Any) -> Any:
        """Applies a linear map to the channels."""
        return super().dense(self.plain(x), units, name, **options)

    def apply(self, layer: Any, x: Any) -> Any:
        """Records a layer that a builder created itself, and applies it to a plain tensor."""
        return super().apply(layer, self.plain(x))

    def relu(self, x: Any, name: str) -> Any:
        """Applies a ReLU."""
        return x._replace(tensor=super().relu(x.tensor, name)) if isinstance(x, Packed) else super().relu(x, name)

    def dropout(self, x: Any, rate: float, name: str) -> Any:
        """Applies dropout in training; creates no layer for a rate of zero."""
        if not isinstance(x, Packed):
            return super().dropout(x, rate, name)
        return x._replace(tensor=super().dropout(x.tensor, rate, name))

    def max_pool(self, x: Any, size: int, name: str) -> Any:
        """Applies max pooling over blocks of `size` x `size` pixels."""
        if not isinstance(x, Packed) or size != 2 or x.shape[1] % 2:
            return super().max_pool(self.plain(x), size, name)
        tensor = PackedMaxPool(layout=x.layout, dtype=self.policy, name=name)(x.tensor)
        return self._unpacked_if_single(Packed(tensor, halved(x.layout)))

    def upsample(self, x: Any, factor: int, name: str, *, method: str = "bilinear") -> Any:
        """Enlarges by interpolation with half-pixel centers and repeated edges."""
        return super().upsample(self.plain(x), factor, name, method=method)

    def upsample_conv(self, x: Any, filters: int, name: str) -> Any:
        """Doubles the size with a learned kernel."""
        _, height, width, _ = x.shape
        shape = ConvShape(2 * height, 2 * width, filters, filters, 3, 3)
        if choose_block(self.backend, shape) == 1:
            return super().upsample_conv(self.plain(x), filters, name)
        packed = self._packed(x, x.layout.block if isinstance(x, Packed) else 1)
        if len(packed.layout.groups) > 1:
            packed = self._packed(self.plain(packed), packed.layout.block)
        layer = PackedUpsampleConv2x2(filters, layout=packed.layout, dtype=self.policy, name=name)
        return Packed(self.record(layer)(packed.tensor), Layout(2 * packed.layout.block, (filters,)))

    def concat(self, tensors: Sequence[Any], name: str) -> Any:
        """Concatenates channels."""
        block = max(x.layout.block if isinstance(x, Packed) else 1 for x in tensors)
        if block == 1:
            return super().concat(tensors, name)
        packed = [self._packed(x, block) for x in tensors]
        groups = tuple(channels for x in packed for channels in x.layout.groups)
        return Packed(super().concat([x.tensor for x in packed], name), Layout(block, groups))

    def add(self, tensors: Sequence[Any], name: str) -> Any:
        """Adds tensors of equal shape."""
        tensors, layout = self._alike(tensors)
        total = super().add(tensors, name)
        return total if layout is None else Packed(total, layout)

    def multiply(self, tensors: Sequence[Any], name: str) -> Any:
        """Multiplies tensors; a single channel is broadcast."""
        tensors, layout = self._alike(tensors)
        product = super().multiply(tensors, name)
        return product if layout is None else Packed(product, layout)

    def _alike(self, tensors: Sequence[Any]) -> tuple[list[Any], Layout | None]:
        """Returns tensors in one layout: that of the packed ones where they share it, plain otherwise."""
        layouts = {x.layout for x in tensors if isinstance(x, Packed)}
        if len(layouts) != 1:
            return [self.plain(x) for x in tensors], None
        (layout,) = layouts
        if len(layout.groups) > 1 or any(x.shape[-1] != layout.channels for x in tensors):
            return [self.plain(x) for x in tensors], None
        return [self._packed(x, layout.block).tensor for x in tensors], layout

    def _block(self, x: Any, filters: int, kernel_size: int, stride: int) -> int:
        """Returns how many pixels a convolution packs: what its input has if it is packed already."""
        _, height, width, channels = x.shape
        if stride != 1:
            return 1
        block = choose_block(self.backend, ConvShape(height, width, channels, filters, kernel_size, kernel_size))
        return x.layout.block if block > 1 and isinstance(x, Packed) else block

    def _packed(self, x: Any, block: int) -> Packed:
        """Returns a tensor in the layout of a block."""
        if not isinstance(x, Packed):
            return Packed(x if block == 1 else pack(x, block), Layout(block, (x.shape[-1],)))
        if x.layout.block == block:
            return x
        layout = x.layout._replace(block=block)
        _, height, width, _ = x.shape
        groups = zip(x.layout.split(x.tensor), layout.groups, strict=True)
        tensors = [ops.reshape(group, (-1, height, width // block, block * channels)) for group, channels in groups]
        return Packed(tensors[0] if len(tensors) == 1 else ops.concatenate(tensors, axis=-1), layout)

    def _unpacked_if_single(self, x: Packed) -> Any:
        return x.tensor if x.layout.block == 1 else x


def layers_for(dtype: str, backend: Backend) -> Layers:
    """Returns the layer factory of a backend.

    Args:
      dtype: "float32" or "bfloat16".
      backend: "xla", "cpu" or "tpu".
    """
    return PackedLayers(dtype, backend=backend) if backend == "tpu" else Layers(dtype, backend=backend)
