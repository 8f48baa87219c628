"""What the commands about datasets do, one function each."""

from collections import Counter
from pathlib import Path

from cervseg_jax.console import Reporter
from cervseg_jax.data.prepare import Recipe, prepare
from cervseg_jax.errors import ConfigError

MAX_REMARKS = 10
"""Remarks on annotations that are printed one by one; the rest is counted."""


def run_prepare(source: Path, out: Path, recipe: Recipe, *, quiet: bool) -> None:
    """Makes a dataset."""
    if recipe.folds == 1 or (recipe.folds and recipe.fold >= recipe.folds):
        raise ConfigError(f"--fold: must be one of 0 .. {recipe.folds - 1} with at least 2 --folds, got {recipe.fold}")
    reporter = Reporter(quiet=quiet)
    made = prepare(
        source,
        out,
        recipe,
        progress=reporter.progress,
        is_resumed=lambda: reporter.info(f"{out}: going on with what an earlier call left"),
    )
    for problem in made.problems:
        reporter.warn(problem)
    for note in made.notes[:MAX_REMARKS]:
        reporter.warn(note)
    if len(made.notes) > MAX_REMARKS:
        reporter.warn(f"{len(made.notes) - MAX_REMARKS} more remarks like these")
    images = Counter(record.split for record in made.records)
    for split in ("train", "valid", "test"):
        records = [record for record in made.records if record.split == split]
        if records:
            nuclei = sum(max(record.num_nuclei, 0) for record in records)
            groups = len({record.group for record in records})
            reporter.info(f"{split}: {images[split]} images of {groups} sources, {nuclei} nuclei")
    if made.records and all(record.num_nuclei < 0 for record in made.records):
        reporter.warn("the masks do not tell touching nuclei apart; the dataset has no instance labels")
    reporter.info(f"written to {out}; next: cervseg-jax train CONFIG --set data.root={out}")
