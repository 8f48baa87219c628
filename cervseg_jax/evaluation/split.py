"""The images to score, and the check that a run was not trained on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.annotations.decisions import Decisions
from cervseg_jax.console import Reporter
from cervseg_jax.data.checks import CheckedPairs, PairStats, read_stats, require_usable
from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.data.pairs import SPLITS, Pair, find_pairs
from cervseg_jax.errors import CheckpointError, ConfigError, DataError, first_few
from cervseg_jax.runtime.distributed import allgather_json, require_equal, share_of, sync_errors
from cervseg_jax.schema import Config, DataConfig
from cervseg_jax.storage.address import as_path
from cervseg_jax.tables import read_csv


class EvalSplit(NamedTuple):
    """Images to score: a split of the run's dataset, or another dataset."""

    name: str
    """Name of the folder for the results."""
    dataset_split: str
    """train, valid or test."""
    stats: list[PairStats]
    """Files and statistics of each image."""
    metadata: list[dict[str, str]]
    """Row of the dataset's manifest for each image; empty dictionaries without a manifest."""

    @property
    def pairs(self) -> list[Pair]:
        """The files of each image."""
        return [item.pair for item in self.stats]

    @property
    def groups(self) -> list[str]:
        """The source of each image."""
        return [item.pair.group for item in self.stats]


def choose_split(config: Config, split: str, data: Path | None, reporter: Reporter) -> EvalSplit:
    """Finds and reads the images to score. Collective: each process reads its share.

    Args:
      config: config of the run.
      split: train, valid or test.
      data: another dataset than the config's; one with `images` and `masks` at its top is scored whole.
      reporter: for warnings.

    Returns:
      The images, and what is known about them.

    Raises:
      ConfigError: if the split or a folder is missing.
      DataError: if files are bad.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")
    section, name = config.data, split
    data = None if data is None else as_path(data)
    if data is not None:
        section = section.model_copy(update={"root": data.absolute(), "synthetic": None, "split": None})
        name = f"{data.absolute().name}-{split}"
    with sync_errors():
        if data is not None:
            _require_dataset(data)
        if data is not None and (data / "images").is_dir():
            found, problems = find_pairs(section, whole=True)
            name, split = data.absolute().name, "test"
        else:
            found, problems = find_pairs(section, needed=(split,) if section.split is None else ())
        if split not in found:
            raise ConfigError(f"--split: {section.root} has no {split}; it has {', '.join(found)}")
    require_equal("the list of images", " ".join(map(str, found[split])))
    checked = check_shares(found[split], section)
    for problem in problems + checked.problems:
        reporter.warn(problem)
    return EvalSplit(name, split, checked.stats, _metadata_rows(section, split, checked.stats))


def _require_dataset(folder: Path) -> None:
    """Checks that a folder has images and masks, or splits with images.

    Raises:
      ConfigError: if not.
    """
    if folder.is_dir() and not any((folder / name).is_dir() for name in ("masks", *SPLITS)):
        raise ConfigError(
            f"--data: {folder} has neither images and masks nor train, valid or test; `cervseg-jax prepare {folder} "
            "--out DATASET --test 1` makes a dataset of annotations in other forms"
        )


def without_rejected(split: EvalSplit, decisions: Decisions, reporter: Reporter) -> EvalSplit:
    """Returns the images that were not rejected on a reviewing page, and says which were.

    Raises:
      DataError: if none is left.
    """
    kept, rejected = [], []
    for index, item in enumerate(split.stats):
        decided = decisions.about(item.pair.image_path)
        if decided is not None and decided.verdict == "rejected":
            rejected.append(item.pair.stem)
        else:
            kept.append(index)
    if rejected:
        reporter.info(f"rejected in review and not scored: {len(rejected)} images ({first_few(rejected, limit=5)})")
    if not kept:
        raise DataError(f"{decisions.path}: rejects all images of {split.name}")
    return split._replace(
        stats=[split.stats[index] for index in kept], metadata=[split.metadata[index] for index in kept]
    )


def check_shares(pairs: Sequence[Pair], section: DataConfig) -> CheckedPairs:
    """Reads every file once, as `check_pairs`, each process its share. Collective: call it on every process.

    Args:
      pairs: pairs to read, the same on all processes.
      section: the config's data section.

    Raises:
      DataError: as `check_pairs`.
    """
    places = {pair: index for index, pair in enumerate(pairs)}
    with sync_errors():
        own = read_stats([pairs[index] for index in share_of(len(pairs))], section)
    gathered = allgather_json([[[places[item.pair], *item[1:]] for item in own.stats], own.problems])
    rows = sorted((row for stats, _ in gathered for row in stats), key=lambda row: row[0])
    stats = [PairStats(pairs[index], *values) for index, *values in rows]
    checked = CheckedPairs(stats, [problem for _, problems in gathered for problem in problems])
    require_usable(checked, section)
    return checked


def refuse_seen_images(run: Path, split: EvalSplit, *, allow: bool, reporter: Reporter) -> int | None:
    """Refuses images that a run was trained on, by the hashes in its `data.csv`.

    Args:
      run: run folder.
      split: the images.
      allow: warn instead of refusing.
      reporter: for warnings.

    Returns:
      Number of images that the run was trained on; None where that is unknown, as for imported weights.

    Raises:
      DataError: if there are such images; the message names some.
    """
    path = run / "data.csv"
    if not path.is_file():
        reporter.warn(f"{run}: the images that these weights were trained on are unknown (no data.csv)")
        return None
    rows = read_csv(path, columns=("split", "image_sha256"), error=CheckpointError)
    trained = {row["image_sha256"] for row in rows if row["split"] == "train"}
    seen = [item.pair.image_path for item in split.stats if item.image_sha256 in trained]
    if seen and not allow:
        raise DataError(
            f"{len(seen)} of {len(split.stats)} images are among those that the run was trained on; their scores say "
            f"nothing about new images: {first_few(path.name for path in seen)}\n"
            "Score other images, or accept these with --allow-trained"
        )
    if seen:
        reporter.warn(f"{len(seen)} of {len(split.stats)} images are among those that the run was trained on")
    return len(seen)


def _metadata_rows(section: DataConfig, split: str, stats: Sequence[PairStats]) -> list[dict[str, str]]:
    """Returns the row of the dataset's manifest for each image; empty where there is none."""
    path = section.root / "manifest.csv"
    rows = read_manifest(path) if path.is_file() else []
    known = {row["stem"]: row for row in rows if row["split"] == split}
    return [known.get(item.pair.stem, {}) for item in stats]
