"""Swin-Unet: a U-Net of windowed attention.

Reference: Cao et al. 2021, arXiv:2105.05537.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cervseg_jax.models.layers.attention import (
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    SwinTransformerBlock,
    neighbors,
    to_patches,
)
from cervseg_jax.models.layers.blocks import InputRange, Layers
from cervseg_jax.schema import PositiveInt


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width.

    Raises:
      ValueError: if the lists do not fit each other.
    """
    levels = len(args["num_heads"])
    if levels < 2 or len(args["window"]) != levels:
        raise ValueError(
            f"num_heads and window name one value per level, at least two, got {args['num_heads']} and {args['window']}"
        )
    for level, heads in enumerate(args["num_heads"]):
        if args["embed_width"] * 2**level % heads:
            raise ValueError(f"num_heads: {heads} does not divide {args['embed_width'] * 2**level}")
    if args["embed_width"] % args["patch_size"]:
        raise ValueError(f"embed_width must be a multiple of patch_size, got {args['embed_width']}")
    windows = np.lcm.reduce([2**level * window for level, window in enumerate(args["window"])])
    return args["patch_size"] * (int(windows) if args["variant"] == "reference" else 2 ** (levels - 1))


def swin_unet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    embed_width: PositiveInt = 96,
    num_heads: tuple[PositiveInt, ...] = (3, 6, 12, 24),
    window: tuple[Annotated[int, Field(ge=2)], ...] = (8, 8, 8, 8),
    patch_size: PositiveInt = 4,
    blocks_down: PositiveInt = 2,
    blocks_up: PositiveInt = 2,
    mlp_width: PositiveInt | None = None,
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1,
    is_shifted: bool = True,
    is_masked: bool = True,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the Swin-Unet.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      embed_width: channels of the first level; doubled per level.
      num_heads: attention heads per level, the finest first.
      window: side of the windows per level, in patches (the paper: 7, for images of 224); a smaller level has a
        single window without shift.
      patch_size: side of a patch in pixels.
      blocks_down: blocks per level of the encoder.
      blocks_up: blocks per level of the decoder.
      mlp_width: hidden width of the MLPs at every level; None for four times the channels.
      drop_path: largest probability of dropping a residual branch in training; grows with depth. The reference has
        none.
      is_shifted: whether every second block shifts its windows.
      is_masked: whether attention between pixels that the shift wraps around is masked. The reference's mask has no
        effect, so its weights were trained without one.
      variant: "paper" normalizes after embedding, merging and expanding, and at the end; "reference" does not, adds a
        position embedding, expands to fewer channels at the end, and takes heads and windows of the next deeper level
        in its decoder.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps].
    """
    is_paper, levels = variant == "paper", len(num_heads)

    def norm(x: Any, name: str) -> Any:
        return net.layer_norm(x, f"{name}_norm", epsilon=1e-5) if is_paper else x

    def blocks(x: Any, count: int, level: int, settings: int, name: str) -> Any:
        size, fits = _window(window[settings], min(x.shape[1:3]), is_paper)
        for index in range(count):
            shift = size // 2 if is_shifted and fits and index % 2 else 0
            layer = SwinTransformerBlock(
                *(num_heads[settings], size, shift, mlp_width or 4 * x.shape[-1]),
                is_masked=is_masked,
                drop_path=drop_path * level / levels if is_paper else 0.0,
                dtype=net.policy,
                name=f"{name}_block{index}",
            )
            x = net.apply(layer, x)
        return x

    x = net.scale_input(images, input_range)
    if is_paper:
        x = norm(net.dense(to_patches(x, patch_size), embed_width, "embed"), "embed")
    else:
        x = net.apply(PatchEmbedding(embed_width, patch_size, dtype=net.policy, name="embed"), x)
    x = blocks(x, blocks_down, 0, 0, "encoder0")
    skips = [x]
    for level in range(1, levels):
        merged = norm(neighbors(x), f"encoder{level}_merge")
        x = net.apply(PatchMerging(dtype=net.policy, name=f"encoder{level}_merge"), merged)
        x = blocks(x, blocks_down, level, level, f"encoder{level}")
        skips.append(x)
    x = norm(x, "encoder")
    for level in reversed(range(levels - 1)):
        width, name = embed_width * 2**level, f"decoder{level}"
        x = norm(net.apply(PatchExpanding(width, 2, dtype=net.policy, name=f"{name}_expand"), x), f"{name}_expand")
        x = net.dense(net.concat([x, skips[level]], f"{name}_concat"), width, f"{name}_join", use_bias=is_paper)
        x = blocks(x, blocks_up, level, level if is_paper else level + 1, name)
    x = norm(x, "decoder")
    width = embed_width // (1 if is_paper else patch_size)
    x = norm(net.apply(PatchExpanding(width, patch_size, dtype=net.policy, name="final_expand"), x), "final_expand")
    return [net.head(x, num_maps, use_bias=False)]


def _window(window: int, side: int, is_paper: bool) -> tuple[int, bool]:
    """Returns the side of a level's windows, and whether they can be shifted."""
    fits = window < side if is_paper else window <= side
    return (window if fits else side), fits
