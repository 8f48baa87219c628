"""What the commands about datasets do, one function each."""

from collections import Counter
from pathlib import Path

from cervseg_jax.console import Reporter
from cervseg_jax.curation.collect import collect
from cervseg_jax.curation.prepare import count_nuclei, group_problems, prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.errors import ConfigError, FindingsError
from cervseg_jax.files import make_folder, write_json

MAX_NOTES = 20
"""Notes on annotations that are printed; the others are counted."""


def run_prepare_reference(source: Path, out: Path, *, seed: int, quiet: bool) -> None:
    """Repeats the reference implementation's dataset recipe."""
    from cervseg_jax.curation.reference_dataset import build_reference_dataset

    reporter = Reporter(quiet=quiet)
    with reporter.progress("20 variants each", len(collect(source)[0])) as advance:
        counts = build_reference_dataset(source, out.absolute(), seed=seed, on_progress=advance)
    reporter.info(", ".join(f"{split}: {count} images" for split, count in counts.items()))
    reporter.warn("made by the reference's recipe: sources are in several parts; see `cervseg-jax audit`")


def run_audit(dataset: Path, out: Path | None, *, quiet: bool) -> None:
    """Audits a dataset."""
    from cervseg_jax.curation.audit import audit

    reporter = Reporter(quiet=quiet)
    report = audit(dataset.absolute(), progress=reporter.progress)
    target = out or dataset / "audit.json"
    write_json(target, report.to_json())
    for line in report.lines():
        print(line)
    reporter.info(f"written to {target}")
    if report.findings:
        raise FindingsError(f"{len(report.findings)} findings in {dataset}")


def run_prepare(source: Path, out: Path, recipe: Recipe, *, quiet: bool) -> None:
    """Makes a dataset."""
    from cervseg_jax.curation.statistics import write_statistics

    if recipe.folds == 1 or (recipe.folds and recipe.fold >= recipe.folds):
        raise ConfigError(f"--fold: must be one of 0 .. {recipe.folds - 1} with at least 2 --folds, got {recipe.fold}")
    reporter = Reporter(quiet=quiet)
    made = prepare(
        source,
        out,
        recipe,
        progress=reporter.progress,
        is_resumed=lambda: reporter.info(f"{out}: going on with what an earlier call left"),
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
    images = Counter(record.split for record in made.records)
    for split in ("train", "valid", "test"):
        records = [record for record in made.records if record.split == split]
        if records:
            groups = len({record.group for record in records})
            reporter.info(f"{split}: {images[split]} images of {groups} sources, {count_nuclei(records)}")
    if made.records and all(record.num_nuclei < 0 for record in made.records):
        reporter.warn("the masks do not tell touching nuclei apart; the dataset has no instance labels")
    reporter.info(f"what it holds: {out / 'overview.html'}")
    reporter.info(f"written to {out}; next: cervseg-jax train CONFIG --set data.root={out}")


def run_stats(dataset: Path, out: Path | None, *, quiet: bool) -> None:
    """Counts what a dataset holds."""
    from cervseg_jax.curation.statistics import write_statistics

    reporter = Reporter(quiet=quiet)
    target = make_folder(out or dataset)
    summary = write_statistics(dataset.absolute(), target, progress=reporter.progress)
    for split, facts in summary.items():
        what = "nuclei" if "nuclei" in facts else "regions"
        touching = "" if facts["touching_share"] is None else f", {facts['touching_share']:.0%} touching another one"
        reporter.info(
            f"{split}: {facts['images']} images, {facts[what]} {what}{touching}, {facts['foreground_mean']:.1%} nucleus"
        )
    reporter.info(f"written to {target}: overview.html, stats.json and pictures")
