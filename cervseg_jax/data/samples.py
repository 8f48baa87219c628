"""Reading samples, once or as often as they are asked for."""

import functools
import threading
from collections.abc import Callable

from cervseg_jax.data.augment import Sample
from cervseg_jax.data.source import Pair, load_sample
from cervseg_jax.heads import needs_instances
from cervseg_jax.schema import Config


def sample_loader(config: Config) -> Callable[[Pair], Sample]:
    """Returns the function that reads a pair as the recipe wants it; see `load_sample`."""
    return functools.partial(
        load_sample,
        image_size=config.model.image_size,
        mask_rule=config.data.mask_rule,
        with_instances=needs_instances(config.model.heads),
    )


class SampleCache:
    """Keeps what was loaded until a limit is reached; what comes later is loaded anew each time.

    It may be used by several threads at once. Samples from it cannot be written to.
    """

    def __init__(self, load: Callable[[Pair], Sample], *, max_bytes: float) -> None:
        """Starts empty.

        Args:
          load: reads a pair.
          max_bytes: of all arrays that are kept.
        """
        self._load = load
        self._free = max_bytes
        self._kept: dict[Pair, Sample] = {}
        self._lock = threading.Lock()

    def __call__(self, pair: Pair) -> Sample:
        """Returns the pair's sample, from memory where it is there."""
        kept = self._kept.get(pair)
        if kept is not None:
            return kept
        sample = self._load(pair)
        arrays = [array for array in sample if array is not None]
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            if size <= self._free and pair not in self._kept:
                for array in arrays:
                    array.flags.writeable = False
                self._kept[pair] = sample
                self._free -= size
        return sample


def sample_cache(config: Config) -> SampleCache:
    """Returns `sample_loader` with a memory, for those who come back to the same pairs."""
    return SampleCache(sample_loader(config), max_bytes=config.data.cache_gib * 2**30)
