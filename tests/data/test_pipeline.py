import itertools

import jax
import numpy as np
import pytest

from cervseg_jax.config import load_config
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from cervseg_jax.data.samples import SampleCache, sample_cache, sample_loader


def first(batches, count):
    return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, count)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_batches_are_a_function_of_seed_and_step(tiny_config):
    config = load_config(tiny_config)
    pairs = find_pairs(config.data)[0]["train"]
    straight = first(train_batches(config, pairs, start_step=0, load=sample_loader(config)), 7)
    threaded = load_config(tiny_config, ["data.threads=5"])
    resumed = first(train_batches(threaded, pairs, start_step=4, load=sample_loader(config)), 3)
    assert all(equal(a, b) for a, b in zip(straight[4:], resumed, strict=True))
    seeded = load_config(tiny_config, ["train.seed=4"])
    other = first(train_batches(seeded, pairs, start_step=0, load=sample_loader(config)), 2)
    assert not equal(straight[:2], other)


def test_a_pass_sees_every_image_once_in_another_order(tiny_config):
    config = load_config(tiny_config)
    pairs = find_pairs(config.data)[0]["train"]
    assert steps_per_epoch(config, len(pairs)) == 2
    batches = first(train_batches(config, pairs, start_step=0, load=sample_loader(config)), 8)
    passes = []
    for start in range(0, 8, 2):
        ids = np.concatenate([batch.image_id[batch.valid > 0] for batch in batches[start : start + 2]])
        assert sorted(ids) == list(range(6))
        assert sum(batch.valid.sum() for batch in batches[start : start + 2]) == 6
        passes.append(tuple(ids))
    assert len(set(passes)) > 1


def test_augmentation_differs_between_passes(tiny_config):
    config = load_config(tiny_config, ["train.batch_size=6"])
    pairs = find_pairs(config.data)[0]["train"]
    one, two = first(train_batches(config, pairs, start_step=0, load=sample_loader(config)), 2)
    by_id = {int(i): image for i, image in zip(two.image_id, two.image, strict=True)}
    same = sum(np.array_equal(image, by_id[int(i)]) for i, image in zip(one.image_id, one.image, strict=True))
    assert same < 6


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_what_is_kept_in_memory_changes_no_batch(tiny_config, share):
    """Files are read once where all fit, never twice where they were kept, and every time where nothing may be kept."""
    augmented = "augment.operations=[{name: flip}, {name: affine}, {name: color}, {name: stain}, {name: noise}]"
    config = load_config(tiny_config, [augmented])
    pairs = find_pairs(config.data)[0]["train"]
    height, width = config.model.image_size
    reads = []

    def load(pair):
        reads.append(pair.stem)
        return sample_loader(config)(pair)

    cache = SampleCache(load, max_bytes=share * len(pairs) * height * width * 4)
    got = first(train_batches(config, pairs, start_step=0, load=cache), 8)
    want = first(train_batches(config, pairs, start_step=0, load=sample_loader(config)), 8)
    assert all(equal(a, b) for a, b in zip(got, want, strict=True))
    reads.clear()
    for pair in pairs:
        cache(pair)
    assert len(reads) == round((1 - share) * len(pairs))


def test_what_is_kept_cannot_be_written_to(tiny_config):
    config = load_config(tiny_config)
    cache = sample_cache(config)
    (pair, *_) = find_pairs(config.data)[0]["train"]
    cache(pair)
    with pytest.raises(ValueError, match="read-only"):
        cache(pair).mask[0, 0] = 1


def test_evaluation_is_in_order_padded_and_not_augmented(tiny_config):
    config = load_config(tiny_config)
    pairs = find_pairs(config.data)[0]["test"]
    batches = first(eval_batches(config, pairs, batch_size=4, load=sample_loader(config)), 10)
    assert len(batches) == 2
    assert batches[0].image.shape == batches[1].image.shape == (4, 32, 48, 3)
    assert batches[0].mask.shape == (4, 32, 48, 1)
    assert batches[1].valid.tolist() == [1, 0, 0, 0]
    ids = np.concatenate([batch.image_id[batch.valid > 0] for batch in batches])
    assert ids.tolist() == [0, 1, 2, 3, 4]
    assert equal(batches, first(eval_batches(config, pairs, batch_size=4, load=sample_loader(config)), 10))
    np.testing.assert_array_equal(batches[1].image[1], batches[1].image[0])  # padding copies a real image
