"""UNet 3+: full-scale skip connections.

Reference: Huang et al. 2020, arXiv:2004.08790. The classification-guided module is omitted: nearly every field of
view contains nuclei, and the data has no labels for those that do not.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers

LEVELS = 5


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 2 ** (LEVELS - 1)


def unet3plus(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: Annotated[int, Field(ge=1)] = 16,
    fused_width: Annotated[int, Field(ge=1)] = 5,
    dropout_rate: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0,
    deep_supervision: bool = True,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the UNet 3+ of five levels.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      base_filters: filters at full resolution, and of each branch of the decoder (the paper: 64).
      fused_width: channels of a decoder level, in multiples of `base_filters`.
      dropout_rate: in the reference variant; doubled after the second convolution of a block.
      deep_supervision: whether the other decoder levels and the bottom give side outputs.
      variant: "paper" normalizes right after each convolution; "reference" drops values before, on the logits too.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps]: of the finest level, then of the coarser ones.
    """
    rate = dropout_rate if variant == "reference" else 0.0

    def block(x: Any, filters: int, name: str, *, repeats: int = 1) -> Any:
        for index in range(1, repeats + 1):
            at = f"{name}_{index}"
            x = net.dropout(net.conv(x, filters, 3, f"{at}_conv"), rate * index, f"{at}_dropout")
            x = net.relu(net.norm(x, f"{at}_norm"), f"{at}_relu")
        return x

    x = net.scale_input(images, input_range)
    encoded = []
    for level in range(LEVELS):
        x = block(x, base_filters * 2**level, f"encoder{level}", repeats=2)
        encoded.append(x)
        if level < LEVELS - 1:
            x = net.max_pool(x, 2, f"encoder{level}_pool")
    decoded = {LEVELS - 1: encoded[-1]}
    for level in reversed(range(LEVELS - 1)):
        branches = []
        for source in range(LEVELS):
            name = f"decoder{level}_from{source}"
            if source < level:
                features = net.max_pool(encoded[source], 2 ** (level - source), f"{name}_pool")
            elif source == level:
                features = encoded[level]
            else:
                features = net.upsample(decoded[source], 2 ** (source - level), f"{name}_up")
            branches.append(block(features, base_filters, name))
        fused = net.concat(branches, f"decoder{level}_concat")
        decoded[level] = block(fused, base_filters * fused_width, f"decoder{level}")
    outputs = []
    for level in range(LEVELS if deep_supervision else 1):
        name = "head" if level == 0 else f"side{level}"
        logits = net.dropout(net.head(decoded[level], num_maps, name, kernel_size=3), rate, f"{name}_dropout")
        outputs.append(net.upsample_logits(logits, 2**level, f"{name}_up"))
    return outputs
