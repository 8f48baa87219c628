"""The commands that score, compare and report."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.console import Reporter
from cervseg_jax.metrics.catalog import shown
from cervseg_jax.runs.bucket import local_copies, local_copy


def run_eval(
    run: Path,
    split: str,
    data: Path | None,
    overrides: Sequence[str],
    *,
    others: Sequence[Path],
    allow_trained: bool,
    quiet: bool,
) -> None:
    """Scores a run."""
    from cervseg_jax.evaluation.score import score_run
    from cervseg_jax.runs.folder import load_run_config, member_runs

    reporter = Reporter(quiet=quiet)
    summaries = []
    with local_copies([run, *others]) as (own, *local_others):
        for member in member_runs(own.folder):
            config = load_run_config(member, overrides)
            summary, folder = score_run(
                member,
                config,
                split=split,
                data=data,
                others=[other.folder for other in local_others],
                allow_trained=allow_trained,
                reporter=reporter,
            )
            for line in _lines(summary):
                reporter.info(line)
            reporter.info(f"written to {own.display_path(folder)}")
            summaries.append(summary)
    for line in _seed_lines(summaries) if len(summaries) > 1 else ():
        reporter.info(line)


def run_compare(
    runs: Sequence[Path],
    split: str,
    data: Path | None,
    out: Path | None,
    overrides: Sequence[str],
    *,
    allow_trained: bool,
    quiet: bool,
) -> None:
    """Compares runs."""
    from cervseg_jax.errors import ConfigError
    from cervseg_jax.evaluation.compare import compare_recipes, headline_columns, load_recipe
    from cervseg_jax.files import make_folder, write_json
    from cervseg_jax.plots import draw_scatter

    if len(runs) < 2:
        raise ConfigError("compare: needs two runs or more")
    reporter = Reporter(quiet=quiet)
    with local_copies(runs) as local_runs:
        recipes = [
            load_recipe(run.folder, overrides, split=split, data=data, allow_trained=allow_trained, reporter=reporter)
            for run in local_runs
        ]
        comparison = compare_recipes(recipes)
        names = [recipe.name for recipe in recipes]
        folder = make_folder((out or local_runs[0].folder / "compare" / "-".join(names[1:])).absolute())
        write_json(folder / "comparison.json", comparison)
        draw_scatter(folder / "comparison.png", headline_columns(recipes), names=names)
        for line in _comparison_lines(comparison):
            reporter.info(line)
        reporter.info(f"written to {local_runs[0].display_path(folder)}")


def run_report(folder: Path, out: Path | None, *, num_layered: int, quiet: bool) -> None:
    """Writes the page."""
    from cervseg_jax.report.page import write_report

    reporter = Reporter(quiet=quiet)
    with local_copy(folder) as run:
        path = write_report(run.folder, out, address=run.address, num_layered=num_layered, reporter=reporter)
        reporter.info(f"{run.display_path(path)}: {path.stat().st_size / 2**20:.1f} MiB")


def _comparison_lines(comparison: dict[str, Any]) -> list[str]:
    left_out = comparison["num_left_out"]
    lines = [
        f"{comparison['num_images']} images of {comparison['num_sources']} sources in common"
        + (f"; {left_out} others are left out" if left_out else "")
    ]
    for recipe in comparison["recipes"]:
        figures = [
            f"{name} {score['mean']:.4f}" + (f" ± {score['sd_over_seeds']:.4f}" if recipe["num_seeds"] > 1 else "")
            for name, score in recipe["scores"].items()
        ]
        seeds = f" ({recipe['num_seeds']} seeds, mean ± sd)" if recipe["num_seeds"] > 1 else ""
        lines.append(f"{recipe['run']}{seeds}: {', '.join(figures)}")
    for pair in comparison["comparisons"]:
        lines.append(f"\n{pair['run']} - {pair['base']}:")
        for name, score in pair["scores"].items():
            gain = score["difference"]
            interval = f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
            lines.append(
                f"{name:<14}{gain['mean']:+.4f}  {interval}  p = {score['p_value']:.2g}  "
                f"larger on {score['num_better']}, smaller on {score['num_worse']} images"
            )
        lines.append(pair["verdict"])
    if len(comparison["comparisons"]) > 1:
        lines.append("p-values are not corrected for the number of runs")
    return lines


def _seed_lines(summaries: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"\n{len(summaries)} seeds, mean and standard deviation:"]
    for name in shown("tables", "pixels"):
        lines.append(_over_seeds(name, [summary[f"{name}_mean"] for summary in summaries]))
    if all("nuclei" in summary for summary in summaries):
        for name in shown("tables", "nuclei"):
            lines.append(_over_seeds(name, [summary["nuclei"][name]["mean"] for summary in summaries]))
    return lines


def _over_seeds(name: str, values: Sequence[float]) -> str:
    return f"{name:<22}{statistics.mean(values):8.4f} ± {statistics.stdev(values):.4f}"


def _lines(summary: dict[str, Any]) -> list[str]:
    """Returns what is worth a look at once."""
    intervals = summary["intervals"]
    lines = [
        f"{summary['split']}: {summary['num_images']} images of {summary['num_sources']} sources; weights of epoch "
        f"{summary['epoch']}, threshold {summary['threshold']}"
    ]
    if "loss" in summary:
        lines.append(f"loss {summary['loss']:.4f}, dice_coef {summary['dice_coef']:.4f} (pooled over batches)")
    lines.append(f"{'':<24}over images, 95 % interval       pooled, 95 % interval")
    for name in shown("tables", "pixels"):
        mean, pooled = f"{name}_mean", f"{name}_pooled"
        lines.append(
            f"{name:<22}{_scored(summary[mean], intervals[mean])}   {_scored(summary[pooled], intervals[pooled])}"
        )
    for name, count in summary["undefined"].items():
        lines.append(f"{name}: {count} of {summary['num_images']} images are without a value, and left out")
    lines.append(f"{'calibration_error':<47}{_scored(summary['calibration_error'], intervals['calibration_error'])}")
    tuned = summary["tuned"]
    if tuned is not None:
        lines.append(
            f"threshold {tuned['threshold']:.2f}, the best of {tuned['num_images']} validation images: Dice"
            f"{_scored(tuned['dice_mean'], [tuned['low'], tuned['high']])}"
        )
    for row in summary["subsets"]:
        dice, pq = row["dice"], row.get("pq")
        lines.append(
            f"{row['kind']} {row['value']}: {row['num_images']} images, Dice"
            f"{_scored(dice['mean'], [dice['low'], dice['high']])}"
            + ("" if pq is None else f", PQ{_scored(pq['mean'], [pq['low'], pq['high']])}")
        )
    if "nuclei" in summary:
        lines += _nucleus_lines(summary["nuclei"])
    names = {"uncertainty_against_dice": "Dice", "uncertainty_against_pq": "PQ"}
    known = {score: summary[name] for name, score in names.items() if not math.isnan(summary.get(name, math.nan))}
    correlations = ", ".join(f"{value:.2f} with {score}" for score, value in known.items())
    if known:
        lines.append(f"rank correlation of uncertainty: {correlations} (negative: uncertain images have lower scores)")
    return lines


def _nucleus_lines(nuclei: dict[str, Any]) -> list[str]:
    lines = [
        f"\n{nuclei['num_true']} true nuclei, {nuclei['num_predicted']} predicted; "
        "means over images with 95 % intervals, and pooled:"
    ]
    for name in shown("tables", "nuclei"):
        score = nuclei[name]
        pooled = f"{score['pooled']:10.4f}" if "pooled" in score else ""
        lines.append(f"{name:<22}{_scored(score['mean'], [score['low'], score['high']])}{pooled}")
    return lines


def _scored(value: float, interval: Sequence[float]) -> str:
    return f"{value:8.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"
