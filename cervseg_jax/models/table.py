"""The table of networks by config name.

A builder takes a layer factory, images in 0..255 [b, h, w, c], the number of output maps and its own keyword
arguments, and returns a list of logits [b, h, w, maps]: the prediction, then side outputs for deep supervision. A new
network is one file in `families` and one line in `MODELS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cervseg_jax.models.families import (
    attention_unet,
    basnet,
    deeplab_v3plus,
    efficient_unet,
    efficientnet_lite0_unet,
    multires_unet,
    sharp_unet,
    swin_unet,
    trans_unet,
    u2net,
    unet,
    unet3plus,
    xception_like_unet,
)


class ModelEntry(NamedTuple):
    """One line of the model table."""

    build: Callable[..., list[Any]]
    size_divisor: Callable[[Mapping[str, Any]], int]
    """Maps the bound arguments to the number that must divide height and width."""
    paper: str
    has_fixed_size: bool = False
    """Whether weights or layers depend on the image size."""


MODELS: Mapping[str, ModelEntry] = {
    "attention_unet": ModelEntry(
        attention_unet.attention_unet, attention_unet.size_divisor, "Oktay et al. 2018, arXiv:1804.03999"
    ),
    "basnet": ModelEntry(basnet.basnet, basnet.size_divisor, "Qin et al. 2021, arXiv:2101.04704"),
    "deeplab_v3plus": ModelEntry(
        deeplab_v3plus.deeplab_v3plus,
        deeplab_v3plus.size_divisor,
        "Chen et al. 2018, arXiv:1802.02611",
        has_fixed_size=True,
    ),
    "efficient_unet": ModelEntry(
        efficient_unet.efficient_unet, efficient_unet.size_divisor, "encoder: Tan and Le 2019, arXiv:1905.11946"
    ),
    "efficientnet_b7_unet": ModelEntry(
        efficient_unet.efficientnet_b7_unet, efficient_unet.size_divisor, "encoder: Tan and Le 2019, arXiv:1905.11946"
    ),
    "efficientnet_lite0_unet": ModelEntry(
        efficientnet_lite0_unet.efficientnet_lite0_unet,
        efficientnet_lite0_unet.size_divisor,
        "encoder: Tan and Le 2019, arXiv:1905.11946",
    ),
    "multires_unet": ModelEntry(
        multires_unet.multires_unet, multires_unet.size_divisor, "Ibtehaz and Rahman 2019, arXiv:1902.04049"
    ),
    "sharp_unet": ModelEntry(
        sharp_unet.sharp_unet, sharp_unet.size_divisor, "Zunair and Ben Hamza 2021, arXiv:2107.12461"
    ),
    "swin_unet": ModelEntry(
        swin_unet.swin_unet, swin_unet.size_divisor, "Cao et al. 2021, arXiv:2105.05537", has_fixed_size=True
    ),
    "trans_unet": ModelEntry(
        trans_unet.trans_unet, trans_unet.size_divisor, "Chen et al. 2021, arXiv:2102.04306", has_fixed_size=True
    ),
    "u2net": ModelEntry(u2net.u2net, u2net.size_divisor, "Qin et al. 2020, arXiv:2005.09007"),
    "unet": ModelEntry(unet.unet, unet.size_divisor, "Ronneberger et al. 2015, arXiv:1505.04597"),
    "unet3plus": ModelEntry(unet3plus.unet3plus, unet3plus.size_divisor, "Huang et al. 2020, arXiv:2004.08790"),
    "xception_like_unet": ModelEntry(
        xception_like_unet.xception_like_unet, xception_like_unet.size_divisor, "a Keras example; no paper"
    ),
}
"""Networks by config name."""
