"""A small U-shaped network of separable convolutions with residual sums, without skips.

There is no paper; the reference implementation has it from a Keras example. Only its name and layout are kept.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import keras
from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 2 ** args["levels"]


def xception_like_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: Annotated[int, Field(ge=1)] = 32,
    levels: Annotated[int, Field(ge=2, le=10)] = 4,
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the network.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      base_filters: filters of the first level; doubled per level.
      levels: number of times that the resolution is halved.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps].
    """
    widths = [base_filters * 2**level for level in range(levels)]

    def make(kind: Any, x: Any, filters: int, name: str) -> Any:
        layer = kind(filters, 3, padding="same", dtype=net.policy, name=name)
        return net.norm(net.apply(layer, x), f"{name}_norm")

    def main_path(kind: Any, x: Any, filters: int, name: str) -> Any:
        for index in (1, 2):
            x = make(kind, net.relu(x, f"{name}_{index}_relu"), filters, f"{name}_{index}")
        return x

    def residual(x: Any, filters: int, name: str, *, stride: int = 1) -> Any:
        return net.conv(x, filters, 1, name, stride=stride, initializer="glorot_uniform")

    x = net.scale_input(images, input_range)
    x = net.conv(x, widths[0], 3, "entry_conv", stride=2, initializer="glorot_uniform")
    x = net.relu(net.norm(x, "entry_norm"), "entry_relu")
    for level, filters in enumerate(widths[1:], start=1):
        name = f"encoder{level}"
        y = main_path(keras.layers.SeparableConv2D, x, filters, name)
        y = keras.layers.MaxPooling2D(3, strides=2, padding="same", dtype=net.policy, name=f"{name}_pool")(y)
        x = net.add([y, residual(x, filters, f"{name}_residual", stride=2)], f"{name}_add")
    for level, filters in reversed(list(enumerate(widths))):
        name = f"decoder{level}"
        y = main_path(keras.layers.Conv2DTranspose, x, filters, name)
        y = net.upsample(y, 2, f"{name}_up", method="nearest")
        shortcut = residual(net.upsample(x, 2, f"{name}_residual_up", method="nearest"), filters, f"{name}_residual")
        x = net.add([y, shortcut], f"{name}_add")
    return [net.head(x, num_maps, kernel_size=3)]
