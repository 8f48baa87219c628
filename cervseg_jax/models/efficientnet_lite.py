"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6, for CPUs and TPUs.

Inputs are scaled to (x - 127) / 128. Convolutions pad symmetrically, as in the PyTorch port whose weights are used, and
not only at the end as TensorFlow's "same" does.

Reference: Tan and Le 2019, arXiv:1905.11946, section 4; the Lite variants are described in the documentation of
TensorFlow's TPU models (2020).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

EPSILON = 1e-3
"""Of BatchNorm."""


class Stage(NamedTuple):
    """Equal inverted-residual blocks; the first one changes the resolution and the channels."""

    kernel_size: int
    stride: int
    expansion: int
    filters: int
    num_blocks: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
STEM_FILTERS, TOP_FILTERS, NUM_CLASSES = 32, 1280, 1000


def efficientnet_lite0(*, include_top: bool, weights: None, input_shape: tuple[int | None, ...]) -> keras.Model:
    """Builds the network with the signature of `keras.applications`.

    Args:
      include_top: with the classifier of ImageNet's 1,000 classes, as logits [b, 1000]; else the last features.
      weights: only None; `assign_torch_weights` sets published values.
      input_shape: height, width and channels of the scaled images.

    Returns:
      The model; layers are named `stem_...`, `block<stage><letter>_...` and `top_...`.
    """
    if weights is not None:
        raise ValueError(f"efficientnet_lite0: weights must be None, got {weights!r}")
    images = keras.Input(input_shape, name="images")
    x = _conv(images, STEM_FILTERS, 3, "stem", stride=2)
    x = _relu6(_norm(x, "stem_bn"), "stem_activation")
    for number, stage in enumerate(STAGES, start=1):
        for index in range(stage.num_blocks):
            stride = stage.stride if index == 0 else 1
            x = _block(x, stage, stride, f"block{number}{chr(ord('a') + index)}")
    if include_top:
        x = _relu6(_norm(_conv(x, TOP_FILTERS, 1, "top"), "top_bn"), "top_activation")
        x = keras.layers.GlobalAveragePooling2D(name="top_pool")(x)
        x = keras.layers.Dense(NUM_CLASSES, name="top_logits")(x)
    return keras.Model(images, x, name="efficientnet_lite0")


def _block(x: Any, stage: Stage, stride: int, name: str) -> Any:
    channels, inputs = x.shape[-1], x
    if stage.expansion > 1:
        x = _conv(x, channels * stage.expansion, 1, f"{name}_expand")
        x = _relu6(_norm(x, f"{name}_expand_bn"), f"{name}_expand_activation")
    depthwise = keras.layers.DepthwiseConv2D(
        stage.kernel_size, strides=stride, padding="valid", use_bias=False, name=f"{name}_dwconv"
    )
    x = depthwise(_padded(x, stage.kernel_size, f"{name}_dwconv_pad"))
    x = _relu6(_norm(x, f"{name}_dw_bn"), f"{name}_dw_activation")
    x = _norm(_conv(x, stage.filters, 1, f"{name}_project"), f"{name}_project_bn")
    if stride == 1 and channels == stage.filters:
        x = keras.layers.Add(name=f"{name}_add")([inputs, x])
    return x


def _conv(x: Any, filters: int, kernel_size: int, name: str, *, stride: int = 1) -> Any:
    layer = keras.layers.Conv2D(
        filters, kernel_size, strides=stride, padding="valid", use_bias=False, name=f"{name}_conv"
    )
    return layer(_padded(x, kernel_size, f"{name}_conv_pad"))


def _padded(x: Any, kernel_size: int, name: str) -> Any:
    return keras.layers.ZeroPadding2D(kernel_size // 2, name=name)(x) if kernel_size > 1 else x


def _norm(x: Any, name: str) -> Any:
    return keras.layers.BatchNormalization(epsilon=EPSILON, name=name)(x)


def _relu6(x: Any, name: str) -> Any:
    return keras.layers.ReLU(max_value=6.0, name=name)(x)


def assign_torch_weights(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Copies the values of the PyTorch port into a network built by `efficientnet_lite0`.

    Args:
      model: with or without the classifier.
      state: arrays by their name there, kernels [f, c, h, w].

    Raises:
      KeyError: if an array is missing.
      ValueError: if a shape differs.
    """
    for layer in model.layers:
        source = _torch_name(layer.name)
        if isinstance(layer, keras.layers.BatchNormalization):
            values = [state[f"{source}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
        elif isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D):
            kernel = state[f"{source}.weight"]
            is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            values = [kernel.transpose(2, 3, 0, 1) if is_depthwise else kernel.transpose(2, 3, 1, 0)]
        elif isinstance(layer, keras.layers.Dense):
            values = [state[f"{source}.weight"].T, state[f"{source}.bias"]]
        else:
            continue
        layer.set_weights(values)


def _torch_name(name: str) -> str:
    """Returns what the PyTorch port calls a layer.

    Example:
      >>> _torch_name("block2a_expand_bn"), _torch_name("top_bn")
      ('_blocks.1._bn0', '_bn1')
    """
    outer = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "top_conv": "_conv_head",
        "top_bn": "_bn1",
        "top_logits": "_fc",
    }
    if name in outer:
        return outer[name]
    block, _, part = name.partition("_")
    inner = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dwconv": "_depthwise_conv",
        "dw_bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    if not block.startswith("block") or part not in inner:
        return name
    stage, letter = int(block[5:-1]), ord(block[-1]) - ord("a")
    index = sum(entry.num_blocks for entry in STAGES[: stage - 1]) + letter
    return f"_blocks.{index}.{inner[part]}"
