"""Features of images, by the encoder of the network that segments them."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from cervseg_jax.data.resize import resize_image, scaled_size
from cervseg_jax.heads import num_maps
from cervseg_jax.models import backend_for
from cervseg_jax.models.embedding import make_features
from cervseg_jax.runs.weights import Network
from cervseg_jax.runtime.mesh import make_mesh

MAX_WINDOWS = 16
"""Windows of an image that are looked at; of more, a grid of this many is taken."""

Embed = Callable[..., Float32[np.ndarray, " d"]]
"""`embed(image, factor=None)`: features of an image, uint8 RGB [h, w, 3]. With a factor it is seen in windows, at that
factor of its size; without one it is resized whole to the network's input."""


def make_embed(network: Network) -> Embed:
    """Returns the function that computes an image's features: the coarsest feature map, averaged over the image.

    Args:
      network: the network; compiled on the first call.
    """
    contract = network.contract
    features = make_features(
        contract.model_name,
        image_size=contract.image_size,
        args=contract.model_args,
        dtype=network.precision,
        num_maps=num_maps(contract.heads),
        backend=backend_for(make_mesh(None, batch_size=1)),
    )

    def embed(image: np.ndarray, factor: float | None = None) -> np.ndarray:
        windows = windows_of(image, contract.image_size, factor)
        rows = [features(network.params, network.model_state, window[None])[0] for window in windows]
        return np.asarray(np.mean(np.array(rows), axis=0), np.float32)

    return embed


def windows_of(image: np.ndarray, size: tuple[int, int], factor: float | None) -> list[np.ndarray]:
    """Returns the image at the network's input: resized whole, or at a factor of its size in windows.

    Args:
      image: uint8 RGB [h, w, 3].
      size: height and width of the input.
      factor: of the image's size; None resizes it whole.

    Returns:
      One to `MAX_WINDOWS` images of this size, from a grid that reaches all borders.

    Example:
      >>> [window.shape for window in windows_of(np.zeros((100, 60, 3), np.uint8), (64, 64), 1.0)]
      [(64, 64, 3), (64, 64, 3)]
    """
    if factor is None:
        return [resize_image(image, size)]
    height, width = scaled_size(image.shape, factor)
    scaled = resize_image(image, (max(height, size[0]), max(width, size[1])) if _is_small(height, width, size)
                          else (height, width))  # fmt: skip
    tops, lefts = (_starts(length, window) for length, window in zip(scaled.shape[:2], size, strict=True))
    corners = [(top, left) for top in tops for left in lefts]
    kept = [corners[round(index)] for index in np.linspace(0, len(corners) - 1, min(len(corners), MAX_WINDOWS))]
    return [scaled[top : top + size[0], left : left + size[1]] for top, left in kept]


def _is_small(height: int, width: int, size: tuple[int, int]) -> bool:
    return height < size[0] or width < size[1]


def _starts(length: int, window: int) -> list[int]:
    count = math.ceil(length / window)
    return [0] if count == 1 else [round(index * (length - window) / (count - 1)) for index in range(count)]
