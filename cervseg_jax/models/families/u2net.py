"""U2-Net: a U-Net whose every block is a small U-Net.

Reference: Qin et al. 2020, arXiv:2005.09007.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from keras import ops
from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers


class _Block(NamedTuple):
    """One residual U-block."""

    filters: int
    inner: int
    depth: int
    """Poolings inside; 0 for the form with dilations instead."""


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 2 ** (args["levels"] + 1)


def u2net(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: Annotated[int, Field(ge=4)] = 16,
    levels: Annotated[int, Field(ge=2, le=8)] = 4,
    deep_supervision: bool = True,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the U2-Net.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      base_filters: filters of the first level (the paper: 64).
      levels: number of blocks with pooling (the paper: 4); two dilated blocks follow.
      deep_supervision: whether the side outputs are returned too.
      variant: "paper" normalizes after each convolution and fuses logits; "reference" does not normalize, fuses
        probabilities, and has other inner widths.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps]: fused, then per level from the finest on.
    """
    is_paper = variant == "paper"

    def conv(x: Any, filters: int, name: str, *, dilation: int = 1) -> Any:
        if not is_paper:
            return net.conv(x, filters, 3, name, dilation=dilation, activation="relu", initializer="glorot_uniform")
        x = net.conv(x, filters, 3, name, dilation=dilation)
        return net.relu(net.norm(x, f"{name}_norm"), f"{name}_relu")

    def block(x: Any, shape: _Block, name: str) -> Any:
        first = conv(x, shape.filters, f"{name}_in")
        inner = _dilated if shape.depth == 0 else _pooled
        return net.add([inner(net, conv, first, shape, name), first], f"{name}_add")

    down, up = _shapes(base_filters, levels, is_paper)
    x = net.scale_input(images, input_range)
    encoded = []
    for level, shape in enumerate(down):
        x = block(net.max_pool(x, 2, f"encoder{level}_pool") if level else x, shape, f"encoder{level}")
        encoded.append(x)
    decoded = [x]
    for level in reversed(range(levels + 1)):
        x = net.concat([net.upsample(x, 2, f"decoder{level}_up"), encoded[level]], f"decoder{level}_join")
        x = block(x, up[level], f"decoder{level}")
        decoded.insert(0, x)
    sides = [
        net.upsample_logits(net.head(x, num_maps, f"side{level}", kernel_size=3), 2**level, f"side{level}_up")
        for level, x in enumerate(decoded)
    ]
    fused = net.head(net.concat(sides if is_paper else [ops.sigmoid(side) for side in sides], "fuse"), num_maps)
    return [fused, *sides] if deep_supervision else [fused]


def _shapes(base: int, levels: int, is_paper: bool) -> tuple[list[_Block], list[_Block]]:
    """Blocks of encoder and decoder, the finest first."""
    depths = [levels + 1, *range(levels, 1, -1)] if not is_paper else list(range(levels + 1, 1, -1))
    if not is_paper:
        widths = [base * 2**level for level in range(levels)]
        poolings = [_Block(width, width // 4, depth) for width, depth in zip(widths, depths, strict=True)]
        bottom = _Block(widths[-1], widths[-1] // 2, 0)
        return [*poolings, bottom, bottom], [*poolings, bottom]
    # Section 3.3 and figure 5: inner widths 1/2, 1/2, 1, 2 of the base, and 4 with dilations.
    down = [_Block(base * 2**level, max(base // 2, base * 2**level // 4), depth) for level, depth in enumerate(depths)]
    bottom = _Block(down[-1].filters, down[-1].filters // 2, 0)
    up = [_Block(max(base, shape.filters // 2), max(base // 4, shape.filters // 4), shape.depth) for shape in down]
    return [*down, bottom, bottom], [*up, bottom]


def _pooled(net: Layers, conv: Any, first: Any, shape: _Block, name: str) -> Any:
    start = x = conv(first, shape.inner, f"{name}_down0")
    skips = []
    for index in range(1, shape.depth + 1):
        x = conv(net.max_pool(x, 2, f"{name}_pool{index}"), shape.inner, f"{name}_down{index}")
        skips.append(x)
    x = conv(x, shape.inner, f"{name}_bottom", dilation=2)
    for index in reversed(range(shape.depth)):
        x = conv(net.concat([x, skips[index]], f"{name}_concat{index}"), shape.inner, f"{name}_up{index}")
        x = net.upsample(x, 2, f"{name}_enlarge{index}")
    return conv(net.concat([x, start], f"{name}_concat"), shape.filters, f"{name}_out")


def _dilated(net: Layers, conv: Any, first: Any, shape: _Block, name: str) -> Any:
    x, skips = first, []
    for index in range(4):
        x = conv(x, shape.inner, f"{name}_down{index}", dilation=2**index)
        skips.append(x)
    for index in (2, 1):
        x = net.concat([x, skips[index]], f"{name}_concat{index}")
        x = conv(x, shape.inner, f"{name}_up{index}", dilation=2**index)
    return conv(net.concat([x, skips[0]], f"{name}_concat0"), shape.filters, f"{name}_out")
