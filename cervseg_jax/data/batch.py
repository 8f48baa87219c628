"""The batch that the input pipeline hands to the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cervseg_jax.data.samples import Sample
from cervseg_jax.data.targets import target_maps, touching_pixels
from cervseg_jax.heads import Head, needs_instances, num_maps
from cervseg_jax.runtime.mesh import ROWS
from cervseg_jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Targets of the heads besides the mask, computed from instance labels."""

    maps: ArrayLike
    """uint8 [b, h, w, maps], 255 for 1.0; see `data.targets`."""
    touching: ArrayLike
    """uint8 [b, h, w, 1], 1 between touching nuclei."""
    known: ArrayLike
    """float32 [b], 1 for images that have instance labels."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Images and targets of one step; elements with `valid == 0` are padding, which scores and losses ignore."""

    image: ArrayLike
    """uint8 [b, h, w, 3], RGB."""
    mask: ArrayLike
    """uint8 [b, h, w, 1], 0 or 1."""
    valid: ArrayLike
    """float32 [b], 1 for real images."""
    image_id: ArrayLike
    """int32 [b], position of the image in its split."""
    targets: Targets | None = None
    """For networks with heads besides the mask."""


class Element(NamedTuple):
    """One sample and its position in the split."""

    sample: Sample
    image_id: int


def collate(
    elements: Sequence[Element],
    *,
    batch_size: int,
    heads: Sequence[Head] = ("mask",),
    padding: Element | None = None,
) -> Batch:
    """Stacks samples; fills a short batch with copies of a sample, marked as padding.

    Copies keep BatchNorm statistics close to those of real images, which zeros would not.

    Args:
      elements: at most `batch_size` samples of equal size.
      batch_size: number of images of the batch.
      heads: heads of the network; the batch has targets for those besides the mask.
      padding: sample that fills a short batch; None: its first one.

    Returns:
      A batch of numpy arrays.
    """
    num_padding = batch_size - len(elements)
    filled = [*elements, *[elements[0] if padding is None else padding] * num_padding]
    return Batch(
        image=np.stack([element.sample.image for element in filled]),
        mask=np.stack([element.sample.mask for element in filled])[..., None],
        valid=np.repeat(np.array([1, 0], np.float32), [len(elements), num_padding]),
        image_id=np.array([element.image_id for element in filled], np.int32),
        targets=_targets([element.sample for element in filled], heads) if needs_instances(heads) else None,
    )


def _targets(samples: Sequence[Sample], heads: Sequence[Head]) -> Targets:
    """Returns the targets; zeros, marked as unknown, for samples without instance labels."""
    nothing = np.zeros(samples[0].mask.shape, np.int32)
    labels = [nothing if sample.instances is None else sample.instances for sample in samples]
    return Targets(
        maps=np.stack(
            [target_maps(known, heads, sample.covered) for known, sample in zip(labels, samples, strict=True)]
        ),
        touching=np.stack([touching_pixels(instances) for instances in labels])[..., None],
        known=np.array([sample.instances is not None for sample in samples], np.float32),
    )


def abstract_batch(
    num_rows: int, image_size: tuple[int, int], *, num_channels: int = 3, heads: Sequence[Head] = ("mask",)
) -> Batch:
    """Returns the shapes and dtypes of a batch, to compile without data."""
    targets = Targets(
        maps=jax.ShapeDtypeStruct((num_rows, *image_size, num_maps(heads) - 1), np.uint8),
        touching=jax.ShapeDtypeStruct((num_rows, *image_size, 1), np.uint8),
        known=jax.ShapeDtypeStruct((num_rows,), np.float32),
    )
    return Batch(
        image=jax.ShapeDtypeStruct((num_rows, *image_size, num_channels), np.uint8),
        mask=jax.ShapeDtypeStruct((num_rows, *image_size, 1), np.uint8),
        valid=jax.ShapeDtypeStruct((num_rows,), np.float32),
        image_id=jax.ShapeDtypeStruct((num_rows,), np.int32),
        targets=targets if needs_instances(heads) else None,
    )


def batch_sharding(mesh: Mesh, heads: Sequence[Head] = ("mask",)) -> Batch:
    """Returns the sharding of a batch: images over `data` and `fsdp`, rows of the images over `spatial`."""
    images = NamedSharding(mesh, PartitionSpec(ROWS, "spatial"))
    rows = NamedSharding(mesh, PartitionSpec(ROWS))
    targets = Targets(maps=images, touching=images, known=rows) if needs_instances(heads) else None
    return Batch(image=images, mask=images, valid=rows, image_id=rows, targets=targets)
