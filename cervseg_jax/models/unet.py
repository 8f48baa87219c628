"""U-Net with large dilated kernels at the top levels.

Reference: Ronneberger et al. 2015, arXiv:1505.04597. Departures, all of them the reference implementation's: "same"
padding without cropping, kernel size and dilation that shrink with depth, dropout that grows with depth, half of
the usual filters and more levels.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import keras
from pydantic import Field

from cervseg_jax.models.blocks import KERAS_DTYPES, UpsampleConv2x2

Positive = Annotated[int, Field(ge=1)]


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width: a factor of two per pooling.

    Raises:
      ValueError: for arguments that fit no network.

    Example:
      >>> size_divisor({"levels": 8, "dropout_rate": 0.05})
      128
    """
    levels, rate = args["levels"], args["dropout_rate"]
    if rate * (levels - 1) >= 1:
        raise ValueError(
            f"dropout_rate grows to dropout_rate * (levels - 1) at the bottom, which must stay below 1, "
            f"got {rate} * {levels - 1}"
        )
    return 2 ** (levels - 1)


def build_unet(
    *,
    image_size: tuple[int, int],
    base_filters: Positive = 16,
    levels: Annotated[int, Field(ge=2, le=10)] = 5,
    kernel_size: Positive = 3,
    dilation: Positive = 1,
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    activation: Literal["relu", "mish"] = "relu",
    batch_norm: bool = False,
    input_range: Literal["unit", "raw"] = "unit",
    dtype: str = "float32",
) -> keras.Model:
    """Builds the U-Net.

    Level i (0 at full resolution) has `base_filters * 2**i` filters, kernel `max(3, kernel_size - 2i)`, dilation
    `max(1, dilation - i)` and dropout `dropout_rate * i`; the decoder repeats the encoder's values.

    Args:
      image_size: height and width, multiples of `2**(levels - 1)`.
      base_filters: filters at full resolution.
      levels: resolutions, the bottom one included.
      kernel_size: kernel of the first level, in pixels.
      dilation: dilation of the first level.
      dropout_rate: see above.
      activation: activation after each convolution.
      batch_norm: whether BatchNorm follows each activation.
      input_range: "unit" divides the 0..255 input by 255 first; "raw" does not, as in the published experiment.
      dtype: "float32" or "bfloat16".

    Returns:
      A model from [b, h, w, 3] in 0..255 to float32 logits [b, h, w, 1].
    """
    policy = KERAS_DTYPES[dtype]

    def conv(x: Any, level: int, name: str) -> Any:
        x = keras.layers.Conv2D(
            base_filters * 2**level,
            max(3, kernel_size - 2 * level),
            dilation_rate=max(1, dilation - level),
            padding="same",
            kernel_initializer="he_normal",
            activation=activation,
            dtype=policy,
            name=name,
        )(x)
        return keras.layers.BatchNormalization(dtype=policy, name=f"{name}_norm")(x) if batch_norm else x

    def block(x: Any, level: int, name: str) -> Any:
        x = conv(x, level, f"{name}_conv1")
        if dropout_rate * level > 0:
            x = keras.layers.Dropout(dropout_rate * level, seed=level, dtype=policy, name=f"{name}_dropout")(x)
        return conv(x, level, f"{name}_conv2")

    inputs = keras.Input((*image_size, 3), name="image")
    x = (
        keras.layers.Rescaling(1 / 255, dtype="float32", name="scale_input")(inputs)
        if input_range == "unit"
        else inputs
    )
    skips = []
    for level in range(levels):
        x = block(x, level, f"encoder{level}")
        if level < levels - 1:
            skips.append(x)
            x = keras.layers.MaxPooling2D(2, dtype=policy, name=f"encoder{level}_pool")(x)
    for level in reversed(range(levels - 1)):
        x = UpsampleConv2x2(base_filters * 2**level, dtype=policy, name=f"decoder{level}_up")(x)
        x = keras.layers.Concatenate(dtype=policy, name=f"decoder{level}_concat")([x, skips[level]])
        x = block(x, level, f"decoder{level}")
    logits = keras.layers.Conv2D(1, 1, dtype="float32", name="head")(x)
    return keras.Model(inputs, logits, name="unet")
