"""The batch: what crosses from the input pipeline to the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from cervseg_jax.data.augment import Sample


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Images and targets of one step; rows with `valid == 0` are padding and never count."""

    image: jax.Array
    """uint8 [b, h, w, 3], RGB."""
    mask: jax.Array
    """uint8 [b, h, w, 1], 0 or 1."""
    valid: jax.Array
    """float32 [b], 1 for real images."""
    image_id: jax.Array
    """int32 [b], position of the image in its split."""


class Element(NamedTuple):
    """One sample on its way into a batch."""

    sample: Sample
    image_id: int


def collate(elements: Sequence[Element], *, batch_size: int) -> Batch:
    """Stacks samples; a short batch is filled with copies of its first sample, marked as padding.

    Copies keep BatchNorm statistics close to those of real images, which zeros would not.

    Args:
      elements: between one and `batch_size` samples of equal size.
      batch_size: rows of the batch.

    Returns:
      A batch of numpy arrays.
    """
    num_padding = batch_size - len(elements)
    filled = [*elements, *[elements[0]] * num_padding]
    return Batch(
        image=np.stack([element.sample.image for element in filled]),  # pyright: ignore[reportArgumentType]
        mask=np.stack([element.sample.mask for element in filled])[..., None],  # pyright: ignore[reportArgumentType]
        valid=np.repeat(np.float32([1, 0]), [len(elements), num_padding]),  # pyright: ignore[reportArgumentType]
        image_id=np.int32([element.image_id for element in filled]),  # pyright: ignore[reportArgumentType]
    )
