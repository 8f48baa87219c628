"""Makes a dataset and reports what it contains."""

from pathlib import Path

from cervseg_jax.console import Reporter, short_path
from cervseg_jax.curation.prepare import count_nuclei, group_problems, prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.statistics import write_statistics

MAX_NOTES = 20
"""Further notes are counted."""


def make_dataset(source: Path, out: Path, recipe: Recipe, *, reporter: Reporter) -> None:
    """Makes a dataset and reports what it contains."""
    made = prepare(
        source,
        out,
        recipe,
        progress=reporter.progress,
        is_resumed=lambda: reporter.info(f"{out}: continuing an interrupted call"),
        summarize=lambda: write_statistics(out.absolute(), out.absolute(), progress=reporter.progress),
    )
    for remark in made.remarks:
        reporter.info(remark)
    for problem in group_problems(made.problems):
        reporter.warn(problem)
    if made.problems:
        reporter.warn(f"{len(made.problems)} files or entries are left out")
    for note in made.notes[:MAX_NOTES]:
        reporter.warn(note)
    if len(made.notes) > MAX_NOTES:
        reporter.warn(f"{len(made.notes) - MAX_NOTES} more notes like these")
    for split in ("train", "valid", "test"):
        records = [record for record in made.records if record.split == split]
        if records:
            groups = len({record.group for record in records})
            reporter.info(f"{split}: {len(records)} images of {groups} sources, {count_nuclei(records)}")
    has_instances = any(record.num_nuclei >= 0 for record in made.records)
    if made.records and not has_instances:
        reporter.warn("masks do not separate touching nuclei; the dataset has no instance labels")
    reporter.info(f"written to {short_path(out)}; overview: {short_path(out / 'overview.html')}")
