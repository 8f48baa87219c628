"""MultiResUNet: blocks of three resolutions and residual paths in place of plain skips.

Reference: Ibtehaz and Rahman 2019, arXiv:1902.04049.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 2 ** (args["levels"] - 1)


def multires_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: Annotated[int, Field(ge=4)] = 16,
    levels: Annotated[int, Field(ge=2, le=10)] = 5,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the MultiResUNet.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      base_filters: width at full resolution (the paper: 32); a block has about 1.67 times as many channels.
      levels: number of resolutions, including the bottom one.
      variant: "paper" has residual paths of levels - 1 .. 1 steps, activated before their sum; "reference" has one
        step more in each, and no activation there.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps].
    """

    def conv_norm(x: Any, filters: int, kernel_size: int, name: str, *, activated: bool = True) -> Any:
        x = net.conv(x, filters, kernel_size, f"{name}_conv", use_bias=False, initializer="glorot_uniform")
        x = net.norm(x, f"{name}_norm")
        return net.relu(x, f"{name}_relu") if activated else x

    def block(x: Any, filters: int, name: str) -> Any:
        width = 1.67 * filters
        outputs, output = [], x
        for index, share in enumerate((0.167, 0.333, 0.5), start=1):
            output = conv_norm(output, int(width * share), 3, f"{name}_{index}")
            outputs.append(output)
        merged = net.norm(net.concat(outputs, f"{name}_concat"), f"{name}_concat_norm")
        shortcut = conv_norm(x, merged.shape[-1], 1, f"{name}_shortcut", activated=False)
        return net.norm(net.relu(net.add([merged, shortcut], f"{name}_add"), f"{name}_relu"), f"{name}_norm")

    def residual_path(x: Any, filters: int, length: int, name: str) -> Any:
        for step in range(length):
            at = f"{name}_{step}"
            main = conv_norm(x, filters, 3, f"{at}_main", activated=variant == "paper")
            shortcut = conv_norm(x, filters, 1, f"{at}_shortcut", activated=False)
            x = net.norm(net.relu(net.add([main, shortcut], f"{at}_add"), f"{at}_relu"), f"{at}_norm")
        return x

    x = net.scale_input(images, input_range)
    skips = []
    for level in range(levels - 1):
        filters = base_filters * 2**level
        x = block(x, filters, f"encoder{level}")
        length = levels - level - (1 if variant == "paper" else 0)
        skips.append(residual_path(x, filters, length, f"path{level}"))
        x = net.max_pool(x, 2, f"encoder{level}_pool")
    x = block(x, base_filters * 2 ** (levels - 1), "bottom")
    for level in reversed(range(levels - 1)):
        x = net.upsample_conv(x, base_filters * 2**level, f"decoder{level}_up")
        x = block(net.concat([x, skips[level]], f"decoder{level}_join"), base_filters * 2**level, f"decoder{level}")
    return [net.head(x, num_maps)]
