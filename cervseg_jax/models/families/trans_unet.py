"""TransUNet: a transformer between a convolutional encoder and decoder.

Reference: Chen et al. 2021, arXiv:2102.04306.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import keras
from keras import ops
from pydantic import Field

from cervseg_jax.models.encoders import EncoderName, FrozenLevels, encode
from cervseg_jax.models.layers.attention import PatchEmbedding
from cervseg_jax.models.layers.blocks import InputRange, Layers
from cervseg_jax.schema import PositiveInt


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width.

    Raises:
      ValueError: if there are fewer than two levels.
    """
    if len(args["filters"]) < 2:
        raise ValueError(f"filters must name at least two levels, got {list(args['filters'])}")
    return 32 if args["variant"] == "paper" else 2 ** (len(args["filters"]) - 1)


def trans_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    encoder: EncoderName = "resnet50",
    encoder_weights: str | None = None,
    frozen_levels: FrozenLevels = 0,
    filters: tuple[PositiveInt, ...] = (16, 64, 128, 256),
    embed_width: PositiveInt = 768,
    mlp_width: PositiveInt = 3072,
    num_heads: PositiveInt = 12,
    num_blocks: PositiveInt = 12,
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the TransUNet.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      encoder: encoder of the paper's variant, with the transformer at 1/16.
      encoder_weights: path of a local file with ImageNet weights.
      frozen_levels: number of encoder levels that are not trained, 0 to 5.
      filters: of the decoder, the finest first; in the reference variant of encoder and decoder.
      embed_width: channels of the transformer.
      mlp_width: hidden width of the MLPs.
      num_heads: attention heads.
      num_blocks: transformer blocks.
      dropout_rate: in the transformer; the reference has none.
      variant: "paper" has a ResNet with batch normalization, keys of embed_width / num_heads channels and a last
        normalization; "reference" has two plain convolutions per level, keys of embed_width channels each, and an
        activation behind each perceptron.
      input_range: "unit" or "raw", for the reference variant; encoders prepare their input themselves.

    Returns:
      Logits [b, h, w, num_maps].
    """
    is_paper = variant == "paper"

    def stack(x: Any, count: int, name: str, *, repeats: int = 2) -> Any:
        for index in range(repeats):
            if is_paper:
                x = net.conv(x, count, 3, f"{name}_{index}_conv", use_bias=False)
                x = net.relu(net.norm(x, f"{name}_{index}_norm"), f"{name}_{index}_relu")
            else:
                x = net.conv(x, count, 3, f"{name}_{index}_conv", activation="relu", initializer="glorot_uniform")
        return x

    if is_paper:
        # P5 would only add parameters that are never used.
        levels = encode(net, images, encoder, weights=encoder_weights, frozen_levels=frozen_levels, num_levels=4)
        *skips, x = levels
        skips = [None, *skips]
    else:
        x, skips = net.scale_input(images, input_range), []
        for level, count in enumerate(filters):
            x = stack(net.max_pool(x, 2, f"encoder{level}_pool") if level else x, count, f"encoder{level}")
            skips.append(x)
        *skips, _ = skips
        x = net.conv(x, filters[-1], 1, "before_transformer", use_bias=False, initializer="glorot_uniform")
    x = net.apply(PatchEmbedding(embed_width, dtype=net.policy, name="embed"), x)
    grid = x.shape[1:3]
    x = ops.reshape(x, (-1, grid[0] * grid[1], embed_width))
    rate = dropout_rate if is_paper else 0.0
    for index in range(num_blocks):
        x = _block(net, x, num_heads, mlp_width, rate, is_paper, f"transformer{index}")
    if is_paper:
        x = net.layer_norm(x, "transformer_norm", epsilon=1e-6)
    x = ops.reshape(x, (-1, *grid, embed_width))
    if is_paper:
        x = stack(x, 512, "after_transformer", repeats=1)
    else:
        x = net.conv(x, filters[-1], 1, "after_transformer", use_bias=False, initializer="glorot_uniform")
    widths = filters if is_paper else filters[:-1]
    for level, (count, skip) in reversed(list(enumerate(zip(widths, skips, strict=False)))):
        x = net.upsample(x, 2, f"decoder{level}_up")
        if not is_paper:
            x = stack(x, count, f"decoder{level}_up", repeats=1)
        x = stack(x if skip is None else net.concat([x, skip], f"decoder{level}_concat"), count, f"decoder{level}")
    return [net.head(x, num_maps)]


def _block(net: Layers, x: Any, num_heads: int, mlp_width: int, rate: float, is_paper: bool, name: str) -> Any:
    """Self-attention and a perceptron, each on normalized input (section 3.1)."""
    width, epsilon = x.shape[-1], 1e-6 if is_paper else 1e-3
    normed = net.layer_norm(x, f"{name}_norm1", epsilon=epsilon)
    layer = keras.layers.MultiHeadAttention(
        num_heads, width // num_heads if is_paper else width, dtype=net.policy, name=f"{name}_attention"
    )
    x = net.add([net.dropout(net.record(layer)(normed, normed), rate, f"{name}_dropout1"), x], f"{name}_add1")
    hidden = net.dense(net.layer_norm(x, f"{name}_norm2", epsilon=epsilon), mlp_width, f"{name}_mlp1")
    hidden = net.dropout(ops.gelu(hidden, approximate=not is_paper), rate, f"{name}_dropout2")
    hidden = net.dense(hidden, width, f"{name}_mlp2")
    if not is_paper:
        hidden = ops.gelu(hidden, approximate=True)
    return net.add([net.dropout(hidden, rate, f"{name}_dropout3"), x], f"{name}_add2")
