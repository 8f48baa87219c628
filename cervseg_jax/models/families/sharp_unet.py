"""Sharp U-Net: skip connections pass through a fixed sharpening filter.

Reference: Zunair and Ben Hamza 2021, arXiv:2107.12461.
"""

from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from cervseg_jax.models.layers.blocks import InputRange, Layers
from cervseg_jax.schema import PositiveInt


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width.

    Raises:
      ValueError: if there are no filters.
    """
    if not args["filters"]:
        raise ValueError("filters must name at least one level, got []")
    return 2 ** len(args["filters"])


def sharp_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    filters: tuple[PositiveInt, ...] = (32, 64, 128, 256),
    bottom_filters: PositiveInt = 512,
    kernel_size: PositiveInt = 3,
    dilation: PositiveInt = 1,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the Sharp U-Net.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      filters: per level, the finest first.
      bottom_filters: at the bottom.
      kernel_size: of all convolutions.
      dilation: of all convolutions.
      variant: "paper" convolves at every decoder level; "reference" only at the finest.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps].
    """

    def block(x: Any, count: int, name: str) -> Any:
        for index in (1, 2):
            x = net.conv(
                x,
                count,
                kernel_size,
                f"{name}_{index}_conv",
                dilation=dilation,
                activation="relu",
                initializer="glorot_uniform",
            )
        return x

    x = net.scale_input(images, input_range)
    skips = []
    for level, count in enumerate(filters):
        x = block(x, count, f"encoder{level}")
        skips.append(x)
        x = net.max_pool(x, 2, f"encoder{level}_pool")
    x = block(x, bottom_filters, "bottom")
    for level, count in reversed(list(enumerate(filters))):
        up = net.upsample_conv(x, count, f"decoder{level}_up")
        x = net.concat([up, _sharpen(net, skips[level], f"skip{level}_sharpen")], f"decoder{level}_concat")
        if variant == "paper" or level == 0:
            x = block(x, count, f"decoder{level}")
    return [net.head(x, num_maps)]


def _sharpen(net: Layers, x: Any, name: str) -> Any:
    layer: Any = keras.layers.DepthwiseConv2D(
        3, padding="same", use_bias=False, trainable=False, dtype=net.policy, name=name
    )
    sharpened = net.apply(layer, x)
    kernel = np.full((3, 3, x.shape[-1], 1), -1.0, np.float32)
    kernel[1, 1] = 8.0
    layer.set_weights([kernel])
    return sharpened
