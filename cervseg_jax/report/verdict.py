"""Sentences that interpret the scores and state their limits."""

import math
from typing import Any

from cervseg_jax.report.run_data import Evaluation, InferenceData, RunData, number
from cervseg_jax.runs.folder import next_command

FEW_SOURCES = 20
"""With fewer sources, bootstrap intervals are wide and themselves imprecise."""
USEFUL_CORRELATION = -0.3
"""Rank correlation of uncertainty and Dice below which the report recommends review by uncertainty."""
RESEARCH_ONLY = "For research use only. Not a medical device; not for diagnosis."


def format_score(value: float | None, low: float | None = None, high: float | None = None, *, digits: int = 3) -> str:
    """Returns a score as text, with its interval where there is one.

    Example:
      >>> format_score(0.91234, 0.9, 0.92)
      '0.912 [0.900, 0.920]'
      >>> format_score(None)
      'undefined'
    """
    if is_undefined(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    return text if is_undefined(low) or is_undefined(high) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def is_undefined(value: float | None) -> bool:
    """Whether a score has no value: JSON files hold null for NaN."""
    return value is None or math.isnan(value)


def verdict(run: RunData) -> list[str]:
    """Returns sentences about quality, uncertainty and weakest subset of an evaluation."""
    if not run.evaluations:
        state = "Training is finished; there is no evaluation yet" if run.is_finished else "Training is in progress"
        best = f". Best epoch so far: {run.best_epoch}" if run.best_epoch else ""
        command = next_command(str(run.folder), {row["split"] for row in run.files})
        return [f"{state}{best}. To see what the weights do: cervseg-jax {command}"]
    evaluation = run.evaluations[0]
    summary = evaluation.summary
    if not summary["num_images"]:
        return [f"The {evaluation.name} split has no images, so there are no scores."]
    low, high = summary["intervals"]["dice_mean"]
    sentences = [
        f"Mean Dice is {format_score(summary['dice_mean'], low, high)} on {summary['num_images']} {evaluation.name} "
        f"images from {summary['num_sources']} sources. A perfect mask has a Dice of 1; brackets give 95 % confidence "
        "intervals."
    ]
    nuclei = summary.get("nuclei")
    if nuclei is not None:
        pq, split, merge = nuclei["pq"], nuclei["split_rate"], nuclei["merge_rate"]
        sentences.append(
            f"{nuclei['num_predicted']} nuclei were predicted; the truth has {nuclei['num_true']}. Mean panoptic "
            f"quality (PQ) is {format_score(pq['mean'], pq['low'], pq['high'])}. {_share(split['mean'])} of the true "
            f"nuclei were split into several, {_share(merge['mean'])} were merged with a neighbor."
        )
    weakest = _weakest(summary)
    if weakest is not None:
        sentences.append(weakest)
    return sentences + cautions(run, evaluation)


def cautions(run: RunData, evaluation: Evaluation) -> list[str]:
    """Returns sentences about limits of the scores and possible improvements."""
    summary = evaluation.summary
    found = []
    num_trained_on = summary.get("num_trained_on", 0)
    if num_trained_on is None:
        found.append("Caution: it is unknown which images these weights were trained on.")
    elif num_trained_on:
        found.append(
            f"Caution: the network was trained on {num_trained_on} of these images; the scores do not show how it does "
            "on new ones."
        )
    if evaluation.name == "valid" and not run.config.data.train_on_valid:
        found.append("Caution: the best epoch was selected on these images, so the scores are optimistic.")
    if summary["num_sources"] < FEW_SOURCES:
        found.append(
            f"Caution: the images come from only {summary['num_sources']} sources; the intervals are imprecise."
        )
    if run.contract is not None and run.contract["weights_sha256"] not in summary["weights_sha256"]:
        found.append("Caution: the best weights have changed since this evaluation. Run `cervseg-jax eval` again.")
    return found + _threshold_advice(summary) + _uncertainty_note(summary) + _training_advice(run)


def _threshold_advice(summary: dict[str, Any]) -> list[str]:
    tuned, dice = summary.get("tuned"), summary["dice_mean"]
    if tuned is None or is_undefined(dice) or is_undefined(tuned["dice_mean"]) or tuned["dice_mean"] - dice <= 0.005:
        return []
    score = format_score(tuned["dice_mean"], tuned["low"], tuned["high"])
    threshold = f"{tuned['threshold']:.2f}"
    return [
        f"A threshold of {threshold}, selected on the validation split, gives a Dice of {score} here: "
        f"--set infer.threshold={threshold}"
    ]


def _uncertainty_note(summary: dict[str, Any]) -> list[str]:
    correlation = summary.get("uncertainty_against_dice")
    if correlation is None or math.isnan(correlation):
        return []
    advice = (
        "review the images of highest uncertainty first"
        if correlation < USEFUL_CORRELATION
        else "uncertainty does not point to errors on these images"
    )
    return [f"Rank correlation of uncertainty and Dice: {correlation:.2f}; {advice}."]


def _training_advice(run: RunData) -> list[str]:
    epochs = run.history.get("epoch")
    if not epochs or run.contract is None or not run.is_finished or run.config.data.train_on_valid:
        return []
    if run.contract["epoch"] == epochs[-1] >= run.config.train.epochs:
        return ["The last epoch was the best one; training for longer may help."]
    return []


def inference_verdict(inference: InferenceData) -> list[str]:
    """Returns sentences about the number of nuclei and the images to review first."""
    counts = [number(row.get("num_nuclei")) for row in inference.rows]
    known = [round(count) for count in counts if count is not None]
    nuclei = f", {sum(known)} nuclei" if known else "; nuclei were not counted, as no chosen output needs them"
    sentences = [f"{len(inference.rows)} images{nuclei}."]
    if inference.failed:
        sentences.append(f"{len(inference.failed)} images failed; they are listed below.")
    if inference.rows:
        sentences.append(
            "Images are sorted by uncertainty, highest first: review those first. There is no ground truth for these "
            "images, so this page does not say how good the masks are."
        )
    return sentences


def _weakest(summary: dict[str, Any]) -> str | None:
    rows = [row for row in summary.get("subsets", []) if not is_undefined(row["dice"]["mean"])]
    if not rows:
        return None
    worst = min(rows, key=lambda row: row["dice"]["mean"])
    dice = format_score(worst["dice"]["mean"], worst["dice"]["low"], worst["dice"]["high"])
    return f"Lowest Dice by subset: {dice} on the {worst['num_images']} images with {worst['kind']} {worst['value']}."


def _share(value: float | None) -> str:
    return "an undefined share" if value is None or math.isnan(value) else f"{value:.1%}"
