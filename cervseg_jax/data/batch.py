"""The batch: what crosses from the input pipeline to the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from cervseg_jax.data.augment import Sample
from cervseg_jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Images and targets of one step; rows with `valid == 0` are padding and never count."""

    image: ArrayLike
    """uint8 [b, h, w, 3], RGB."""
    mask: ArrayLike
    """uint8 [b, h, w, 1], 0 or 1."""
    valid: ArrayLike
    """float32 [b], 1 for real images."""
    image_id: ArrayLike
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
        image=np.stack([element.sample.image for element in filled]),
        mask=np.stack([element.sample.mask for element in filled])[..., None],
        valid=np.repeat(np.array([1, 0], np.float32), [len(elements), num_padding]),
        image_id=np.array([element.image_id for element in filled], np.int32),
    )


def abstract_batch(num_rows: int, image_size: tuple[int, int], num_channels: int = 3) -> Batch:
    """Returns the shapes and types of a batch, for compiling without data."""
    return Batch(
        image=jax.ShapeDtypeStruct((num_rows, *image_size, num_channels), np.uint8),
        mask=jax.ShapeDtypeStruct((num_rows, *image_size, 1), np.uint8),
        valid=jax.ShapeDtypeStruct((num_rows,), np.float32),
        image_id=jax.ShapeDtypeStruct((num_rows,), np.int32),
    )
