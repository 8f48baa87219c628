"""A first full read of a dataset's files, so that unusable ones are known before the work starts."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cervseg_jax.choices import MaskRule
from cervseg_jax.data.decode import decode_image, decode_mask, read_bytes
from cervseg_jax.data.pairs import Pair
from cervseg_jax.errors import DataError, first_few
from cervseg_jax.files import sha256_of
from cervseg_jax.runtime.threads import num_threads
from cervseg_jax.schema import DataConfig


class PairStats(NamedTuple):
    """Properties of one pair, known once both files are decoded."""

    pair: Pair
    height: int
    width: int
    mask_levels: int
    foreground: float
    """Share of the pixels that are nucleus."""
    image_sha256: str
    """Hash of the image file's bytes."""


class CheckedPairs(NamedTuple):
    """Pairs that can be used, and what was left out."""

    stats: list[PairStats]
    problems: list[str]

    @property
    def pairs(self) -> list[Pair]:
        """The usable pairs."""
        return [item.pair for item in self.stats]

    @property
    def num_noisy_masks(self) -> int:
        """Masks with more than two levels."""
        return sum(item.mask_levels > 2 for item in self.stats)


def check_pairs(
    pairs: Sequence[Pair],
    data: DataConfig,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> CheckedPairs:
    """Reads every file once, so that bad ones are known before the work starts.

    Args:
      pairs: what to read.
      data: the config's data section.
      on_progress: called after each pair, for a progress bar.

    Returns:
      Statistics of the good pairs in the same order, and one message for each bad one.

    Raises:
      DataError: naming the bad files, if `data.on_bad_file` is "fail" or none is good.
    """

    def check(pair: Pair) -> PairStats | str:
        try:
            return _read_stats(pair, data.mask_rule)
        except DataError as error:
            return str(error)
        finally:
            on_progress()

    with ThreadPoolExecutor(num_threads(data)) as pool:
        results = list(pool.map(check, pairs))
    stats = [result for result in results if isinstance(result, PairStats)]
    problems = [result for result in results if isinstance(result, str)]
    if problems and (data.on_bad_file == "fail" or not stats):
        raise DataError(_bad_files_message(problems, len(pairs)))
    return CheckedPairs(stats, problems)


def _read_stats(pair: Pair, mask_rule: MaskRule) -> PairStats:
    data = read_bytes(pair.image_path)
    image = decode_image(data, source=pair.image_path)
    mask, num_levels = decode_mask(read_bytes(pair.mask_path), source=pair.mask_path, rule=mask_rule)
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{pair.image_path}: is {image.shape[1]}x{image.shape[0]}, "
            f"its mask {pair.mask_path} is {mask.shape[1]}x{mask.shape[0]}"
        )
    height, width = mask.shape
    return PairStats(pair, height, width, num_levels, float(mask.mean()), sha256_of(data))


def _bad_files_message(problems: Sequence[str], num_pairs: int) -> str:
    advice = "repair or remove them, or leave them out with --set data.on_bad_file=skip"
    return f"{len(problems)} of {num_pairs} pairs cannot be used; {advice}:\n  " + first_few(problems, "\n  ")
