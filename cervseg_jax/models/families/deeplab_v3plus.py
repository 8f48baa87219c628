"""DeepLabV3+: atrous spatial pyramid pooling on a ResNet, with a lightweight decoder.

Reference: Chen et al. 2018, arXiv:1802.02611, the variant with a ResNet encoder.
"""

from collections.abc import Mapping
from typing import Any, Literal

import keras
from keras import ops

from cervseg_jax.models.encoders import FrozenLevels, encode
from cervseg_jax.models.layers.blocks import Layers


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that the height and width of the input must be multiples of."""
    return 16


def deeplab_v3plus(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    encoder: Literal["resnet50", "resnet101", "resnet152"] = "resnet50",
    encoder_weights: str | None = None,
    frozen_levels: FrozenLevels = 0,
    variant: Literal["paper", "reference"] = "paper",
) -> list[Any]:
    """Builds DeepLabV3+ with output stride 16.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      encoder: name of the encoder.
      encoder_weights: path of a local file with ImageNet weights.
      frozen_levels: number of encoder levels that are not trained, 0 to 5.
      variant: "paper" uses the dilated fifth stage and separable convolutions; "reference" uses features inside the
        last blocks of the fourth and second stages, plain convolutions with two activations each, and images in 0..255
        without preprocessing.

    Returns:
      Logits [b, h, w, num_maps].
    """
    is_reference = variant == "reference"
    taps = ("conv2_block3_2_relu", "conv4_block6_2_relu") if is_reference else ()
    features = encode(
        net,
        images,
        encoder,
        weights=encoder_weights,
        frozen_levels=frozen_levels,
        taps=taps,
        preprocess=not is_reference,
        dilated_p5=not is_reference,
    )
    low, high = (features[0], features[1]) if is_reference else (features[1], features[4])

    def norm_relu(x: Any, name: str) -> Any:
        return net.relu(net.norm(x, f"{name}_norm"), f"{name}_relu")

    def conv(x: Any, filters: int, kernel_size: int, name: str, *, dilation: int = 1) -> Any:
        if kernel_size == 3 and not is_reference:
            x = norm_relu(_depthwise(net, x, f"{name}_depthwise", dilation), f"{name}_depthwise")
            kernel_size, dilation = 1, 1
        return norm_relu(net.conv(x, filters, kernel_size, name, dilation=dilation, use_bias=False), name)

    pooled = ops.mean(high, axis=(1, 2), keepdims=True)
    pooled = norm_relu(net.conv(pooled, 256, 1, "aspp_pool", use_bias=is_reference), "aspp_pool")
    branches = [
        ops.repeat(ops.repeat(pooled, high.shape[1], axis=1), high.shape[2], axis=2),
        conv(high, 256, 1, "aspp_1"),
    ]
    branches += [conv(high, 256, 3, f"aspp_{rate}", dilation=rate) for rate in (6, 12, 18)]
    x = conv(net.concat(branches, "aspp_concat"), 256, 1, "aspp_out")
    if not is_reference:
        x = net.dropout(x, 0.1, "aspp_dropout")
    x = net.concat([net.upsample(x, 4, "decoder_up"), conv(low, 48, 1, "decoder_low")], "decoder_concat")
    for name in ("decoder_1", "decoder_2"):
        if is_reference:
            x = norm_relu(net.conv(x, 256, 3, name, use_bias=False, activation="relu"), name)
        else:
            x = conv(x, 256, 3, name)
    if is_reference:
        return [net.head(net.upsample(x, 4, "head_up"), num_maps)]
    return [net.upsample_logits(net.head(x, num_maps), 4, "head_up")]


def _depthwise(net: Layers, x: Any, name: str, dilation: int) -> Any:
    layer = keras.layers.DepthwiseConv2D(
        3, padding="same", dilation_rate=dilation, use_bias=False, dtype=net.policy, name=name
    )
    return net.apply(layer, x)
