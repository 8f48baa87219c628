"""U-Net with large dilated kernels at the top levels.

Reference: Ronneberger et al. 2015, arXiv:1505.04597. Differences, all taken from the reference implementation: "same"
padding without cropping, kernel size and dilation that decrease with depth, dropout that increases with depth, half
the usual number of filters, and more levels.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers
from cervseg_jax.schema import PositiveInt


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that the height and width of the input must be multiples of: a factor of two per pooling.

    Raises:
      ValueError: if the dropout rate of the bottom level is not below 1.

    Example:
      >>> size_divisor({"levels": 8, "dropout_rate": 0.05})
      128
    """
    levels, rate = args["levels"], args["dropout_rate"]
    if rate * (levels - 1) >= 1:
        raise ValueError(
            f"the dropout rate of the bottom level, dropout_rate * (levels - 1), must be below 1, "
            f"got {rate} * {levels - 1}"
        )
    return 2 ** (levels - 1)


def unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: PositiveInt = 16,
    levels: Annotated[int, Field(ge=2, le=10)] = 5,
    kernel_size: PositiveInt = 3,
    dilation: PositiveInt = 1,
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    activation: Literal["relu", "mish"] = "relu",
    batch_norm: bool = False,
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the U-Net.

    Level i (0 at full resolution) has `base_filters * 2**i` filters, kernel `max(3, kernel_size - 2i)`, dilation
    `max(1, dilation - i)` and dropout `dropout_rate * i`; the decoder repeats the encoder's values.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255, height and width multiples of `2**(levels - 1)`.
      num_maps: number of output channels.
      base_filters: filters at full resolution.
      levels: number of resolutions, including the bottom one.
      kernel_size: kernel of the first level, in pixels.
      dilation: dilation of the first level.
      dropout_rate: increase of the dropout rate per level.
      activation: activation after each convolution.
      batch_norm: whether BatchNorm follows each activation.
      input_range: "unit" divides the 0..255 input by 255; "raw" does not, as in the published experiment.

    Returns:
      Logits [b, h, w, num_maps].
    """

    def conv(x: Any, level: int, name: str) -> Any:
        x = net.conv(
            x,
            base_filters * 2**level,
            max(3, kernel_size - 2 * level),
            name,
            dilation=max(1, dilation - level),
            activation=activation,
        )
        return net.norm(x, f"{name}_norm") if batch_norm else x

    def block(x: Any, level: int, name: str) -> Any:
        x = conv(x, level, f"{name}_conv1")
        return conv(net.dropout(x, dropout_rate * level, f"{name}_dropout"), level, f"{name}_conv2")

    x = net.scale_input(images, input_range)
    skips = []
    for level in range(levels):
        x = block(x, level, f"encoder{level}")
        if level < levels - 1:
            skips.append(x)
            x = net.max_pool(x, 2, f"encoder{level}_pool")
    for level in reversed(range(levels - 1)):
        x = net.upsample_conv(x, base_filters * 2**level, f"decoder{level}_up")
        x = net.concat([x, skips[level]], f"decoder{level}_concat")
        x = block(x, level, f"decoder{level}")
    return [net.head(x, num_maps)]
