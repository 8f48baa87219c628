"""The data of a training: generated where that is asked for, read once, checked, and brought to one scale."""

from collections.abc import Mapping, Sequence

import numpy as np

from cervseg_jax.choices import MaskRule
from cervseg_jax.console import Reporter
from cervseg_jax.data.checks import CheckedPairs, ReadFiles, check_pairs, join_splits, stats_of_manifest
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.data.scale import DEFAULT_NUCLEUS_PX, scale_pairs, window_pairs
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import refuse_address
from cervseg_jax.heads import needs_instances
from cervseg_jax.runs.bucket import local_copy
from cervseg_jax.schema import Config, Scale
from cervseg_jax.storage.address import Address


def generate_data(config: Config, reporter: Reporter) -> None:
    """Generates the synthetic dataset if the config has one."""
    synthetic = config.data.synthetic
    if synthetic is not None:
        refuse_address(config.data.root)
        from cervseg_jax.curation.dataset_folder import ensure_synthetic_dataset

        count = synthetic.train + synthetic.valid + synthetic.test
        with reporter.progress("generating synthetic images", count) as advance:
            ensure_synthetic_dataset(config.data.root, synthetic, on_progress=advance)


_RULE_TEXTS: Mapping[MaskRule, str] = {
    "half_range": ", which is typical of lossy compression; values from half of the range count as nucleus",
    "any_nonzero": ", which is typical of lossy compression; every non-zero value counts as nucleus and enlarges it",
    "value_1": "; the value 1 alone counts as nucleus",
}
"""What becomes of masks with several levels, by mask rule."""


def read_data(config: Config, reporter: Reporter, *, known: ReadFiles | None = None) -> dict[str, CheckedPairs]:
    """Finds all files and reads each of them once; the manifest alone where a dataset in a bucket has one.

    Args:
      config: the recipe.
      reporter: for messages.
      known: files that were read before, and are not read again.

    Returns:
      Usable pairs by split; with measured nuclei if the recipe scales images by them. With `data.train_on_valid` the
      validation images are in "train".
    """
    found, problems = find_pairs(config.data, needed=("train",) if config.data.train_on_valid else ("train", "valid"))
    # Of many files in a bucket, each is read when its turn comes. Those that may have to be left out are read first.
    is_lazy = isinstance(config.data.root, Address) and config.data.on_bad_file == "fail"
    stated = (stats_of_manifest(config.data.root, found) if is_lazy else None) or {}
    checked = {}
    for split, pairs in found.items():
        read = known.of_split(split, pairs, config.data) if known is not None else None
        checked[split] = read or stated.get(split) or _read_split(split, pairs, config, reporter)
        problems += checked[split].problems
    reporter.info(f"data: {config.data.root}")
    for split, result in checked.items():
        reporter.info("  " + _describe(split, result))
    for problem in problems:
        reporter.warn(problem)
    if problems:
        reporter.warn(f"{len(problems)} files are left out")
    num_masks = sum(len(result.stats) for result in checked.values())
    num_inverted = sum(result.num_inverted_masks for result in checked.values())
    if num_inverted:
        reporter.warn(
            f"{num_inverted} of {num_masks} masks seem inverted: they mark the background; nuclei must not be zero"
        )
    num_noisy = sum(result.num_noisy_masks for result in checked.values())
    if num_noisy:
        reporter.warn(
            f"{num_noisy} of {num_masks} masks have more than two levels{_RULE_TEXTS[config.data.mask_rule]} "
            f"(data.mask_rule: {config.data.mask_rule})"
        )
    if config.data.train_on_valid and "valid" in checked:
        reporter.info("  the validation images are trained on (data.train_on_valid)")
        checked["train"] = CheckedPairs(join_splits(checked["train"].stats, checked.pop("valid").stats), [])
    return checked


def _read_split(split: str, pairs: Sequence[Pair], config: Config, reporter: Reporter) -> CheckedPairs:
    with reporter.progress(f"reading {split}", len(pairs)) as advance:
        return check_pairs(pairs, config.data, measure=config.data.nucleus_px is not None, on_progress=advance)


def resolve_nucleus_px(config: Config) -> Config:
    """Replaces `data.nucleus_px: auto` by the size that the initial weights were trained at, or else the default."""
    if config.data.nucleus_px != "auto":
        return config
    nucleus_px = DEFAULT_NUCLEUS_PX
    if config.train.init_from is not None:
        from cervseg_jax.runs.weights import read_contract

        with local_copy(config.train.init_from) as run:
            scale = read_contract(run.folder / "best").scale
        nucleus_px = nucleus_px if scale is None else scale.nucleus_px
    return config.model_copy(update={"data": config.data.model_copy(update={"nucleus_px": nucleus_px})})


def scale_data(
    config: Config, checked: Mapping[str, CheckedPairs], reporter: Reporter
) -> tuple[dict[str, list[Pair]], Scale | None]:
    """Prepares the pairs as the network sees them: scaled, and validation images divided into windows.

    Args:
      config: a recipe with a number or None for `data.nucleus_px`.
      checked: pairs by split; "train" and "valid" are used.
      reporter: for messages.

    Returns:
      Pairs by split, and the scale of the network's input; unchanged pairs and None without `data.nucleus_px`.
    """
    nucleus_px = config.data.nucleus_px
    if nucleus_px is None or nucleus_px == "auto":
        return {split: result.pairs for split, result in checked.items()}, None
    pairs: dict[str, list[Pair]] = {}
    for split in ("train", "valid"):
        if split not in checked:
            continue
        files = checked[split].pairs
        known = [item.diameters_px for item in checked[split].stats if item.diameters_px is not None]
        measured = known if len(known) == len(files) else None
        with reporter.progress(f"measuring nuclei, {split}", len(files) if measured is None else 0) as advance:
            pairs[split], sizes = scale_pairs(
                files, config.data, nucleus_px=nucleus_px, measured=measured, on_progress=advance
            )
        least, median, most = np.percentile(sizes, (0, 50, 100))
        reporter.info(
            f"  {split}: nuclei are {median:.0f} px across ({least:.0f} to {most:.0f} by image), scaled to "
            f"{nucleus_px:g} px"
        )
    if "valid" in checked:
        sizes_px = [(item.height, item.width) for item in checked["valid"].stats]
        pairs["valid"] = window_pairs(pairs["valid"], sizes_px, config.model.image_size)
    mpp = None
    if config.data.mpp is not None:
        mpp = config.data.mpp / float(np.median([pair.scale for pair in pairs["train"] if pair.scale is not None]))
    return pairs, Scale(nucleus_px=nucleus_px, mpp=mpp)


def check_instances(config: Config, pairs: Sequence[Pair], reporter: Reporter) -> None:
    """Checks that heads other than the mask have instance labels to learn from."""
    if not needs_instances(config.model.heads):
        return
    num_known = sum(pair.instances_path is not None for pair in pairs)
    if not num_known and config.train.init_from is None:
        raise ConfigError(
            f"model.heads: {', '.join(config.model.heads[1:])} need instance labels, but {config.data.root} has no "
            "train/instances; `cervseg-jax prepare` makes them from outlines or label images, or use "
            "model.heads=[mask]"
        )
    if num_known < len(pairs):
        reporter.warn(
            f"{len(pairs) - num_known} of {len(pairs)} training images have no instance labels and train the mask only"
        )


def _describe(split: str, checked: CheckedPairs) -> str:
    stats = checked.stats
    groups = len({item.pair.group for item in stats})
    sizes = sorted({(item.height, item.width) for item in stats})
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:3]) + (" ..." if len(sizes) > 3 else "")
    foreground = sum(item.foreground for item in stats) / len(stats)
    return f"{split}: {len(stats)} images of {groups} sources, {shown}, {foreground:.1%} nucleus"
