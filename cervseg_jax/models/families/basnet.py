"""BASNet: a predict-and-refine network with deep supervision.

Reference: Qin et al. 2021, arXiv:2101.04704.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cervseg_jax.models.layers.blocks import InputRange, Layers

RESNET34 = (3, 4, 6, 3)


def size_divisor(args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width."""
    return 32


def basnet(
    net: Layers,
    images: Any,
    *,
    num_maps: int,
    base_filters: Annotated[int, Field(ge=1)] = 64,
    deep_supervision: bool = True,
    variant: Literal["paper", "reference"] = "paper",
    input_range: InputRange = "unit",
) -> list[Any]:
    """Builds the BASNet.

    Args:
      net: layer factory.
      images: [b, h, w, c] in 0..255.
      num_maps: number of output channels.
      base_filters: filters of the first stage; eight times as many at the bottom.
      deep_supervision: whether to return the coarse predictions as well.
      variant: "paper" normalizes the first convolution and narrows the decoder with the encoder; "reference" does
        neither, and takes skips before their last activation.
      input_range: "unit" or "raw".

    Returns:
      Logits [b, h, w, num_maps]: refined, then the coarse ones from the finest decoder stage to the bridge.
    """
    is_paper, widest = variant == "paper", 8 * base_filters

    def conv(x: Any, filters: int, name: str, *, dilation: int = 1) -> Any:
        x = net.conv(x, filters, 3, f"{name}_conv", dilation=dilation, initializer="glorot_uniform")
        return net.relu(net.norm(x, f"{name}_norm"), f"{name}_relu")

    x = net.scale_input(images, input_range)
    x = (
        conv(x, base_filters, "entry")
        if is_paper
        else net.conv(x, base_filters, 3, "entry", initializer="glorot_uniform")
    )
    skips = []
    for stage, blocks in enumerate(RESNET34):
        before = x
        for index in range(1, blocks + 1):
            stride = 2 if stage and index == 1 else 1
            before, x = _basic(
                net, x, base_filters * 2**stage, f"encoder_stack{stage}_block{index}", stride=stride, epsilon=1.001e-5
            )
        skips.append(x if is_paper else before)
    for stage in (4, 5):
        x = net.max_pool(x, 2, f"encoder{stage}_pool")
        for index in (1, 2, 3):
            _, x = _basic(net, x, widest, f"encoder{stage}_{index}")
        skips.append(x)
    for index in (1, 2, 3):
        x = conv(x, widest, f"bridge{index}", dilation=2)
    decoded = [x]
    for stage in reversed(range(6)):
        x = net.upsample(x, 2, f"decoder{stage}_up") if stage < 5 else x
        x = net.concat([skips[stage], x], f"decoder{stage}_concat")
        filters = skips[stage].shape[-1] if is_paper else widest
        after = skips[max(0, stage - 1)].shape[-1] if is_paper else widest
        for index, count in enumerate((filters, filters, after), start=1):
            x = conv(x, count, f"decoder{stage}_{index}")
        decoded.insert(0, x)
    sides = []
    for stage, x in enumerate(decoded):
        logits = net.head(x, num_maps, f"side{stage}", kernel_size=3)
        sides.append(net.upsample_logits(logits, 2 ** min(stage, 5), f"side{stage}_up"))
    refined = _refine(net, conv, sides[0], base_filters)
    return [refined, *sides] if deep_supervision else [refined]


def _basic(net: Layers, x: Any, filters: int, name: str, *, stride: int = 1, epsilon: float = 1e-3) -> tuple[Any, Any]:
    """Residual block; returns the features before and after its last activation."""
    shortcut = x
    if stride > 1:
        shortcut = net.conv(
            x, filters, 1, f"{name}_0_conv", stride=stride, use_bias=False, initializer="glorot_uniform"
        )
        shortcut = net.norm(shortcut, f"{name}_0_bn", epsilon=epsilon)
    y = net.conv(x, filters, 3, f"{name}_1_conv", stride=stride, use_bias=False, initializer="glorot_uniform")
    y = net.relu(net.norm(y, f"{name}_1_bn", epsilon=epsilon), f"{name}_1_relu")
    y = net.conv(y, filters, 3, f"{name}_2_conv", use_bias=False, initializer="glorot_uniform")
    total = net.add([net.norm(y, f"{name}_2_bn", epsilon=epsilon), shortcut], f"{name}_add")
    return total, net.relu(total, f"{name}_out")


def _refine(net: Layers, conv: Any, logits: Any, filters: int) -> Any:
    """The residual refinement module (section 3.3): a U-Net on the coarse logits, whose result is added to them."""
    x = net.conv(logits, filters, 3, "refine_in", initializer="glorot_uniform")
    refine_skips = []
    for level in range(4):
        x = conv(x, filters, f"refine_down{level}")
        refine_skips.append(x)
        x = net.max_pool(x, 2, f"refine_down{level}_pool")
    x = conv(x, filters, "refine_bottom")
    for level in reversed(range(4)):
        x = net.concat([refine_skips[level], net.upsample(x, 2, f"refine_up{level}_up")], f"refine_up{level}_concat")
        x = conv(x, filters, f"refine_up{level}")
    correction = net.head(x, logits.shape[-1], "refine_out", kernel_size=3)
    return correction + logits
