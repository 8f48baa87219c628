"""Input pipelines on Grain: pure functions of (seed, step), so that a resume needs the step alone."""

import functools
import math
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from cervseg_jax.data.augment import AUGMENTATIONS, apply_operations
from cervseg_jax.data.batch import Batch, Element, collate
from cervseg_jax.data.source import Pair, load_sample
from cervseg_jax.heads import needs_instances
from cervseg_jax.sections import Config


def steps_per_epoch(config: Config, num_images: int) -> int:
    """Returns the updates between two evaluations; one pass has a last, padded batch where it must."""
    return config.train.steps_per_epoch or math.ceil(num_images / config.train.batch_size)


def train_batches(config: Config, pairs: Sequence[Pair], *, start_step: int) -> Iterator[Batch]:
    """Yields shuffled, augmented training batches without end.

    Each pass over the images has its own order and its own augmentation. Batch k is the same whatever the
    starting step, the number of threads or the number of hosts.

    Args:
      config: the recipe.
      pairs: the training pairs.
      start_step: number of batches to skip, at no cost.

    Returns:
      An iterator over numpy batches, read ahead in threads.

    Raises:
      DataError: from the iterator, if a file has become unreadable.
    """
    operations = [(AUGMENTATIONS[op.name], op.probability, op.args) for op in config.augment.operations]
    load = _loader(config, pairs)

    def augment(element: Element, rng: np.random.Generator) -> Element:
        return element._replace(sample=apply_operations(element.sample, rng, operations))

    dataset = grain.MapDataset.range(len(pairs)).seed(config.train.seed).shuffle().map(load).random_map(augment)
    batches = dataset.batch(config.train.batch_size, batch_fn=_collator(config, config.train.batch_size))
    return _read_ahead(batches.repeat()[start_step:], config)


def eval_batches(config: Config, pairs: Sequence[Pair], *, batch_size: int) -> Iterator[Batch]:
    """Yields the pairs once, in order, without augmentation; the last batch is padded.

    Args:
      config: the recipe.
      pairs: what to evaluate.
      batch_size: rows per batch.

    Returns:
      An iterator over numpy batches; `image_id` is the index into `pairs`.

    Raises:
      DataError: from the iterator, if a file has become unreadable.
    """
    dataset = grain.MapDataset.range(len(pairs)).map(_loader(config, pairs))
    batches = dataset.batch(batch_size, batch_fn=_collator(config, batch_size))
    return _read_ahead(batches, config)


def _collator(config: Config, batch_size: int):
    return functools.partial(collate, batch_size=batch_size, heads=config.model.heads)


def _loader(config: Config, pairs: Sequence[Pair]):
    def load(index: int) -> Element:
        sample = load_sample(
            pairs[index],
            image_size=config.model.image_size,
            mask_rule=config.data.mask_rule,
            with_instances=needs_instances(config.model.heads),
        )
        return Element(sample, int(index))

    return load


def _read_ahead(dataset: grain.MapDataset, config: Config) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch_batches)
    return iter(dataset.to_iter_dataset(options))
