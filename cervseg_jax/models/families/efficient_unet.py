"""U-Nets with an EfficientNet (or another) encoder.

Reference: Tan and Le 2019, arXiv:1905.11946, for the encoder; the combination has no single source. The reference
implementation has two decoders: residual blocks after nearest-neighbor upsampling (`efficient_unet`), and transposed
convolutions (`efficientnet_b7_unet`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cervseg_jax.models.encoders import EncoderName, FrozenLevels, encode
from cervseg_jax.models.layers.blocks import Layers


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that the height and width of the input must be multiples of."""
    return 32


def efficient_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    encoder: EncoderName = "efficientnet_b0",
    encoder_weights: str | None = None,
    frozen_levels: FrozenLevels = 0,
    variant: Literal["default", "reference"] = "default",
) -> list[Any]:
    """Builds a U-Net with a classification encoder and residual decoder blocks.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      encoder: name of the encoder.
      encoder_weights: path of a local file with ImageNet weights.
      frozen_levels: number of encoder levels that are not trained, 0 to 5.
      variant: "default" uses the output of each level and the scaled image as skip connections; "reference" uses
        features inside EfficientNet's second blocks, before the residual addition, and the image in 0..255.

    Returns:
      Logits [b, h, w, num_maps].
    """
    is_reference = variant == "reference"
    inner = ("block1a_project_bn", "block2b_drop", "block3b_drop", "block5c_drop", "block7a_project_bn")
    finest = images if is_reference else net.scale_input(images, "unit")
    taps = inner if is_reference else ()
    features = [finest, *encode(net, images, encoder, weights=encoder_weights, frozen_levels=frozen_levels, taps=taps)]
    x = _residual(net, features[-1], features[-1].shape[-1], "bottom")
    for level, skip in reversed(list(enumerate(features[:-1]))):
        x = net.upsample(x, 2, f"decoder{level}_up", method="nearest")
        filters = skip.shape[-1] if level else 16
        x = _residual(net, net.concat([x, skip], f"decoder{level}_concat"), filters, f"decoder{level}")
    return [net.head(x, num_maps)]


def _residual(net: Layers, x: Any, filters: int, name: str) -> Any:
    main = x
    for index in (1, 2):
        main = net.conv(main, filters, 3, f"{name}_{index}_conv", initializer="glorot_uniform")
        main = net.relu(net.norm(main, f"{name}_{index}_norm"), f"{name}_{index}_relu")
    shortcut = net.conv(x, filters, 1, f"{name}_shortcut", initializer="glorot_uniform")
    return net.add([main, shortcut], f"{name}_add")


def efficientnet_b7_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    encoder: EncoderName = "efficientnet_b7",
    encoder_weights: str | None = None,
    frozen_levels: FrozenLevels = 0,
    base_filters: Annotated[int, Field(ge=1)] = 32,
    variant: Literal["default", "reference"] = "default",
) -> list[Any]:
    """Builds a U-Net with a classification encoder and transposed convolutions.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      encoder: name of the encoder.
      encoder_weights: path of a local file with ImageNet weights.
      frozen_levels: number of encoder levels that are not trained; the reference froze all but the last 61 layers.
      base_filters: filters at full resolution; doubled per level.
      variant: "default" uses the output of each level and the scaled image as skip connections; "reference" uses the
        expanded features inside the first block of EfficientNet's stages, and the image in 0..255.

    Returns:
      Logits [b, h, w, num_maps].
    """
    is_reference = variant == "reference"
    inner = tuple(f"block{stage}a_activation" for stage in (1, 2, 3, 4, 7))
    finest = images if is_reference else net.scale_input(images, "unit")
    taps = inner if is_reference else ()
    features = [finest, *encode(net, images, encoder, weights=encoder_weights, frozen_levels=frozen_levels, taps=taps)]
    x = features[-1]
    for level, skip in reversed(list(enumerate(features[:-1]))):
        filters, name = base_filters * 2**level, f"decoder{level}"
        x = net.concat([net.upsample_conv(x, filters, f"{name}_up"), skip], f"{name}_concat")
        for index in (1, 2):
            x = net.conv(x, filters, 3, f"{name}_{index}_conv")
            x = net.relu(net.norm(x, f"{name}_{index}_norm"), f"{name}_{index}_relu")
    return [net.head(x, num_maps)]
