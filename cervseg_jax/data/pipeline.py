"""Input pipelines on Grain: pure functions of (seed, step), so that a resume needs the step alone."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import grain
import numpy as np

from cervseg_jax.data.augment import AUGMENTATIONS, Operation, apply_operations
from cervseg_jax.data.batch import Batch, Element, collate
from cervseg_jax.data.geometric import random_window
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import Sample
from cervseg_jax.runtime.threads import num_threads
from cervseg_jax.schema import Config, DataConfig
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import fetch_all


def steps_per_epoch(config: Config, num_images: int) -> int:
    """Returns the updates between two evaluations; one pass has a last, padded batch where it must."""
    return config.train.steps_per_epoch or math.ceil(num_images / config.train.batch_size)


def train_batches(
    config: Config,
    pairs: Sequence[Pair],
    *,
    start_step: int,
    load: Callable[[Pair], Sample],
    images: range | None = None,
) -> Iterator[Batch]:
    """Yields shuffled, augmented training batches without end.

    Each pass over the images has its own order and its own augmentation. Batch k is the same whatever the
    starting step, the number of threads or the number of hosts.

    Args:
      config: the recipe.
      pairs: the training pairs.
      start_step: number of batches to skip, at no cost.
      load: reads a pair: `sample_loader` or `sample_cache`.
      images: which images of each batch to make, for a process that has a share of it; None: all.

    Returns:
      An iterator over numpy batches, read ahead in threads.

    Raises:
      DataError: from the iterator, if a file has become unreadable.
    """
    operations: list[tuple[Operation, float, Mapping[str, Any]]] = [
        (AUGMENTATIONS[op.name], op.probability, op.args) for op in config.augment.operations
    ]
    if config.data.nucleus_px is not None:
        window = config.augment.window.model_dump() | {"size": config.model.image_size}
        operations = [(random_window, 1.0, window), *operations]

    def augment(element: Element, rng: np.random.Generator) -> Element:
        return element._replace(sample=apply_operations(element.sample, rng, operations))

    order = grain.MapDataset.range(len(pairs)).seed(config.train.seed).shuffle()
    elements = order.map(_element_loader(pairs, load)).random_map(augment)
    batch = _batch_maker(
        config, elements, config.train.batch_size, images, lambda index: pairs[int(cast(int, order[index]))]
    )
    return _read_ahead(grain.MapDataset.range(start_step, sys.maxsize).map(batch), config)


def eval_batches(
    config: Config,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    load: Callable[[Pair], Sample],
    images: range | None = None,
) -> Iterator[Batch]:
    """Yields the pairs once, in order, without augmentation; the last batch is padded.

    Args:
      config: the recipe.
      pairs: what to evaluate.
      batch_size: images per batch.
      load: as for `train_batches`.
      images: as for `train_batches`.

    Returns:
      An iterator over numpy batches; `image_id` is the index into `pairs`.

    Raises:
      DataError: from the iterator, if a file has become unreadable.
    """
    elements = grain.MapDataset.range(len(pairs)).map(_element_loader(pairs, load))
    batch = _batch_maker(config, elements, batch_size, images, lambda index: pairs[index])
    return _read_ahead(grain.MapDataset.range(math.ceil(len(pairs) / batch_size)).map(batch), config)


def _batch_maker(
    config: Config,
    elements: grain.MapDataset,
    batch_size: int,
    images: range | None,
    pair_at: Callable[[int], Pair],
) -> Callable[[int], Batch]:
    """Returns batch k of an endless row of passes over the elements; the last one of a pass is padded.

    Grain's own batches hold all images. Here a process loads its share alone, and padding where it has no other. Files
    at addresses are fetched together, before they are decoded one by one; `pair_at` tells those of an element.
    """
    is_remote = isinstance(config.data.root, Address)
    num_elements = len(elements)
    per_pass = math.ceil(num_elements / batch_size)
    wanted = range(batch_size) if images is None else images

    def batch(number: int) -> Batch:
        epoch, place = divmod(int(number), per_pass)
        first = place * batch_size
        present = range(first + wanted.start, min(first + wanted.stop, num_elements))
        # An index beyond the end is one of the next pass, in another order.
        start = epoch * num_elements
        if is_remote:
            fetch_all(pair_at(start + index) for index in present)
        loaded: list[Any] = [elements[start + index] for index in present]
        padding: Any = elements[start + first] if len(loaded) < len(wanted) and first not in present else None
        return collate(loaded, batch_size=len(wanted), heads=config.model.heads, padding=padding)

    return batch


def _element_loader(pairs: Sequence[Pair], load: Callable[[Pair], Sample]) -> Callable[[int], Element]:
    return lambda index: Element(load(pairs[index]), int(index))


def batches_ahead(data: DataConfig) -> int:
    """Returns how many batches are read ahead."""
    # A thread makes a whole batch: with fewer batches than threads, threads would be idle.
    return max(num_threads(data), data.prefetch_batches)


def _read_ahead(dataset: grain.MapDataset, config: Config) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads(config.data), prefetch_buffer_size=batches_ahead(config.data))
    return iter(dataset.to_iter_dataset(options))
