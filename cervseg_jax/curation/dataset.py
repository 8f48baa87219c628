"""Makes or extends a dataset and reports what it contains."""

from collections.abc import Sequence
from pathlib import Path

from cervseg_jax.console import Reporter, short_path
from cervseg_jax.curation.extend import add_to_dataset
from cervseg_jax.curation.prepare import count_nuclei, group_problems, prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.reviewed import NO_REVIEW, Review
from cervseg_jax.curation.statistics import write_statistics
from cervseg_jax.errors import FindingsError, first_few

MAX_NOTES = 20
"""Further notes are counted."""


def make_dataset(source: Path, out: Path, recipe: Recipe, review: Review = NO_REVIEW, *, reporter: Reporter) -> None:
    """Makes a dataset and reports what it contains."""
    made = prepare(
        source,
        out,
        recipe,
        progress=reporter.progress,
        is_resumed=lambda: reporter.info(f"{out}: continuing an interrupted call"),
        summarize=lambda: write_statistics(out.absolute(), out.absolute(), progress=reporter.progress),
        review=review,
    )
    for remark in made.remarks:
        reporter.info(remark)
    _warn(made.problems, made.notes, reporter)
    for split in ("train", "valid", "test"):
        records = [record for record in made.records if record.split == split]
        if records:
            groups = len({record.group for record in records})
            reporter.info(f"{split}: {len(records)} images of {groups} sources, {count_nuclei(records)}")
    has_instances = any(record.num_nuclei >= 0 for record in made.records)
    if made.records and not has_instances:
        reporter.warn("masks do not separate touching nuclei; the dataset has no instance labels")
    reporter.info(f"written to {short_path(out)}; overview: {short_path(out / 'overview.html')}")


def extend_dataset(
    source: Path, dataset: Path, recipe: Recipe, review: Review = NO_REVIEW, *, reporter: Reporter
) -> None:
    """Adds images to the training split of a dataset and reports what was added, and what was not.

    Raises:
      FindingsError: if images were refused because the dataset holds out their source or a near-duplicate of them.
    """
    added = add_to_dataset(
        source,
        dataset,
        recipe,
        review=review,
        progress=reporter.progress,
        is_resumed=lambda: reporter.info(f"{dataset}: finished an interrupted call"),
    )
    _warn(added.problems, added.notes, reporter)
    if added.known:
        reporter.info(
            f"in train already, and unchanged there: {len(added.known)} images ({first_few(added.known, limit=5)})"
        )
    if added.records:
        write_statistics(dataset.absolute(), dataset.absolute(), progress=reporter.progress)
    counts = f", {count_nuclei(added.records)}" if added.records else ""
    reporter.info(f"added to train: {len(added.records)} images{counts}")
    if added.records:
        reporter.info("next: cervseg-jax train RUN/config.yaml --set train.init_from=RUN --run-dir NEW_RUN")
    for refusal in added.refused:
        reporter.warn(refusal)
    if added.refused:
        raise FindingsError(
            f"{len(added.refused)} images were refused, as the dataset holds out their source or a near-duplicate; "
            "everything else is done"
        )


def _warn(problems: Sequence[str], notes: Sequence[str], reporter: Reporter) -> None:
    for problem in group_problems(problems):
        reporter.warn(problem)
    if problems:
        reporter.warn(f"{len(problems)} files or entries are left out")
    for note in notes[:MAX_NOTES]:
        reporter.warn(note)
    if len(notes) > MAX_NOTES:
        reporter.warn(f"{len(notes) - MAX_NOTES} more notes like these")
