"""`cervseg-jax eval`."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cervseg_jax.cli.options import (
    Coordinator,
    DecisionsOption,
    Distributed,
    Ensemble,
    NumProcesses,
    OtherData,
    Overrides,
    ProcessId,
    Quiet,
    RunArgument,
    Split,
    Tiled,
    process_spec,
    tiled_setting,
)
from cervseg_jax.metrics.catalog import shown

EXAMPLE = "cervseg-jax eval runs/quickstart --split test"


def evaluate(
    run: RunArgument,
    split: Split = "test",
    data: OtherData = None,
    tiled: Tiled = None,
    ensemble: Ensemble = None,
    allow_trained: Annotated[
        bool, typer.Option("--allow-trained", help="Score images although the run was trained on them.")
    ] = False,
    decisions: DecisionsOption = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Score the best weights of a run.

    Predicts as `infer` does and writes RUN/eval/<split>.
    """
    from cervseg_jax.console import Reporter
    from cervseg_jax.evaluation.score import ScoreRequest, score_run
    from cervseg_jax.runs.bucket import local_copies
    from cervseg_jax.runs.folder import member_runs
    from cervseg_jax.runtime.distributed import initialize_distributed, is_primary

    reporter = Reporter(quiet=quiet)
    processes = process_spec(distributed, coordinator, num_processes, process_id)
    summaries = []
    with local_copies([run, *(ensemble or [])]) as (own, *others):
        initialize_distributed(processes)
        if not is_primary():
            reporter = Reporter(is_silent=True)
        for member in member_runs(own.folder):
            request = ScoreRequest(
                member,
                split,
                data,
                overrides=(*tiled_setting(tiled), *(overrides or [])),
                members=tuple(other.folder for other in others),
                allow_trained=allow_trained,
                decisions=decisions,
            )
            summary, folder = score_run(request, reporter=reporter)
            for line in _summary_lines(summary):
                reporter.info(line)
            reporter.info(f"written to {own.display_path(folder)}")
            summaries.append(summary)
    for line in _seed_lines(summaries) if len(summaries) > 1 else ():
        reporter.info(line)


def _seed_lines(summaries: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"\n{len(summaries)} seeds, mean and standard deviation:"]
    for name in shown("tables", "pixels"):
        lines.append(_seed_line(name, [summary[f"{name}_mean"] for summary in summaries]))
    if all("nuclei" in summary for summary in summaries):
        for name in shown("tables", "nuclei"):
            lines.append(_seed_line(name, [summary["nuclei"][name]["mean"] for summary in summaries]))
    return lines


def _seed_line(name: str, values: Sequence[float]) -> str:
    from cervseg_jax.evaluation.compare import over_seeds

    mean, deviation = over_seeds(values)
    num_undefined = sum(map(math.isnan, values))
    left_out = f"   ({num_undefined} of {len(values)} seeds have no value)" if num_undefined else ""
    return f"{name:<22}{mean:8.4f} ± {deviation:.4f}{left_out}"


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    """Formats the main scores of a split."""
    intervals = summary["intervals"]
    is_fixed = summary["threshold_rule"] == "fixed"
    lines = [
        f"{summary['split']}: {summary['num_images']} images of {summary['num_sources']} sources; weights of epoch "
        f"{summary['epoch']}, threshold {summary['threshold' if is_fixed else 'threshold_rule']}"
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
        lines.append(f"{name}: {count} of {summary['num_images']} images have no value and are left out")
    lines.append(f"{'calibration_error':<47}{_scored(summary['calibration_error'], intervals['calibration_error'])}")
    tuned = summary["tuned"]
    if tuned is not None:
        lines.append(
            f"threshold {tuned['threshold']:.2f}, the best of {tuned['num_images']} validation images: Dice"
            f"{_scored(tuned['dice_mean'], [tuned['low'], tuned['high']])}   "
            f"(--set infer.threshold={tuned['threshold']:.2f})"
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
        if name not in nuclei:
            continue  # of whole nuclei, where neither truth nor prediction knows more than a label map
        score = nuclei[name]
        pooled = f"{score['pooled']:10.4f}" if "pooled" in score else ""
        lines.append(f"{name:<22}{_scored(score['mean'], [score['low'], score['high']])}{pooled}")
    return lines


def _scored(value: float, interval: Sequence[float]) -> str:
    return f"{value:8.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"
