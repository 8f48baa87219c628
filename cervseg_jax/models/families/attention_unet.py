"""Attention U-Net: attention gates weight the skip connections.

Reference: Oktay et al. 2018, arXiv:1804.03999.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 2 ** (args["levels"] - 1)


def attention_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: Annotated[int, Field(ge=2)] = 16,
    levels: Annotated[int, Field(ge=2, le=10)] = 5,
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the Attention U-Net.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      base_filters: filters at full resolution (the paper: 64, or a quarter of it).
      levels: number of resolutions, including the bottom one.
      dropout_rate: dropout between the convolutions of a block, and in the gates of the "reference" variant.
      variant: "paper" gates with the coarse decoder features at half the skip's size, one coefficient per pixel;
        "reference" gates at the skip's size with the upsampled features, one coefficient per channel.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps].
    """
    gate = _paper_gate if variant == "paper" else _reference_gate

    def conv(x: Any, filters: int, name: str, *, rate: float = 0.0) -> Any:
        x = net.dropout(net.conv(x, filters, 3, f"{name}_conv", initializer="glorot_uniform"), rate, f"{name}_dropout")
        return net.relu(net.norm(x, f"{name}_norm"), f"{name}_relu")

    def block(x: Any, filters: int, name: str) -> Any:
        return conv(conv(x, filters, f"{name}_1"), filters, f"{name}_2", rate=dropout_rate)

    x = net.scale_input(images, input_range)
    skips = []
    for level in range(levels - 1):
        x = block(x, base_filters * 2**level, f"encoder{level}")
        skips.append(x)
        x = net.max_pool(x, 2, f"encoder{level}_pool")
    x = block(x, base_filters * 2 ** (levels - 1), "bottom")
    for level in reversed(range(levels - 1)):
        filters, name = base_filters * 2**level, f"decoder{level}"
        up = net.upsample(x, 2, f"{name}_up")
        if variant == "paper":
            skip = gate(net, skips[level], x, filters, dropout_rate, f"gate{level}")
            up = conv(up, filters, f"{name}_up")
        else:
            skip = gate(net, skips[level], up, filters, dropout_rate, f"gate{level}")
        x = block(net.concat([up, skip], f"{name}_concat"), filters, name)
    return [net.head(x, num_maps)]


def _paper_gate(net: Layers, skip: Any, coarse: Any, filters: int, _rate: float, name: str) -> Any:
    """Additive attention on the coarse grid (section 3.1 and figure 2)."""
    inner = max(1, filters // 2)
    theta = net.conv(skip, inner, 2, f"{name}_skip", stride=2, use_bias=False)
    phi = net.conv(coarse, inner, 1, f"{name}_gating")
    energy = net.relu(net.add([theta, phi], f"{name}_add"), f"{name}_relu")
    weight = net.conv(energy, 1, 1, f"{name}_energy", activation="sigmoid", initializer="glorot_uniform")
    attended = net.multiply([skip, net.upsample(weight, 2, f"{name}_up")], f"{name}_multiply")
    return net.norm(net.conv(attended, filters, 1, f"{name}_out"), f"{name}_norm")


def _reference_gate(net: Layers, skip: Any, gating: Any, filters: int, rate: float, name: str) -> Any:
    phi = net.norm(net.conv(gating, filters, 1, f"{name}_gating", initializer="glorot_uniform"), f"{name}_gating_norm")
    theta = net.conv(skip, filters, 1, f"{name}_skip", initializer="glorot_uniform")
    theta = net.norm(net.dropout(theta, rate, f"{name}_dropout"), f"{name}_skip_norm")
    energy = net.relu(net.add([phi, theta], f"{name}_add"), f"{name}_relu")
    weight = net.conv(energy, filters, 1, f"{name}_energy", activation="sigmoid", initializer="glorot_uniform")
    return net.multiply([weight, skip], f"{name}_multiply")
