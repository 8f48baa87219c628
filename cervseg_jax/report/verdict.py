"""What the figures mean, in sentences."""

import math
from typing import Any

from cervseg_jax.report.facts import InferenceFacts, PartFacts, RunFacts

FEW_SOURCES = 20
"""Intervals from fewer sources are wide, and hardly test anything."""
RESEARCH_ONLY = "For research only: not a medical device, and no basis for a diagnosis."


def scored(value: float | None, low: float | None = None, high: float | None = None, *, digits: int = 3) -> str:
    """Returns a score as text, with its interval where there is one.

    Example:
      >>> scored(0.91234, 0.9, 0.92)
      '0.912 [0.900, 0.920]'
    """
    if value is None or math.isnan(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def verdict(facts: RunFacts) -> list[str]:
    """Says how good the network is, how sure that is, and where it fails."""
    if not facts.parts:
        state = "The training is finished, but not scored yet" if facts.is_finished else "The training is under way"
        best = "" if facts.contract is None else f"; the best epoch so far is {facts.contract['epoch']}"
        return [f"{state}{best}. Scores follow after: cervseg-jax eval {facts.folder}"]
    part = facts.parts[0]
    summary, intervals = part.summary, part.summary["intervals"]
    low, high = intervals["dice_mean"]
    sentences = [
        f"On {summary['num_images']} {part.name} images of {summary['num_sources']} sources, masks agree with the "
        f"truth with a mean Dice of {scored(summary['dice_mean'], low, high)} (1 is perfect; brackets hold 95 % "
        "confidence intervals)."
    ]
    nuclei = summary.get("nuclei")
    if nuclei is not None:
        pq, split, merge = nuclei["pq"], nuclei["split_rate"], nuclei["merge_rate"]
        sentences.append(
            f"Of single nuclei, {nuclei['num_predicted']} were found where {nuclei['num_true']} are; their panoptic "
            f"quality is {scored(pq['mean'], pq['low'], pq['high'])}. {_share(split['mean'])} of the true nuclei came "
            f"out in several pieces, {_share(merge['mean'])} together with a neighbor."
        )
    weakest = _weakest(summary)
    if weakest is not None:
        sentences.append(weakest)
    return sentences + cautions(facts, part)


def cautions(facts: RunFacts, part: PartFacts) -> list[str]:
    """Names what a reader should know before believing the figures."""
    summary = part.summary
    found = []
    if summary.get("num_trained_on"):
        found.append(
            f"Caution: the network was trained on {summary['num_trained_on']} of these images, so the scores say "
            "little about others."
        )
    if summary.get("num_trained_on", 0) is None:
        found.append("Caution: nobody knows which images these weights were trained on.")
    if part.name == "valid":
        found.append("Caution: the best epoch was chosen on these images, which flatters the scores.")
    if summary["num_sources"] < FEW_SOURCES:
        found.append(f"Caution: {summary['num_sources']} sources are few; the intervals are rough themselves.")
    if facts.contract is not None and facts.contract["weights_sha256"] not in summary["weights_sha256"]:
        found.append("Caution: the best weights have changed since this evaluation; evaluate again.")
    tuned = summary.get("tuned")
    if tuned is not None and tuned["dice_mean"] - summary["dice_mean"] > 0.005:
        found.append(
            f"A threshold of {tuned['threshold']:.2f}, chosen on validation images, gives Dice "
            f"{scored(tuned['dice_mean'], tuned['low'], tuned['high'])} here: --set infer.threshold="
            f"{tuned['threshold']:.2f}"
        )
    uncertainty = summary.get("doubt_against_dice")
    if uncertainty is not None and not math.isnan(uncertainty):
        useful = (
            "images of high doubt are the ones to look at first"
            if uncertainty < -0.3
            else "doubt is no guide to errors"
        )
        found.append(f"The network's doubt goes with Dice by a rank correlation of {uncertainty:.2f}: {useful}.")
    if facts.history.get("epoch") and facts.contract and facts.is_finished:
        last = facts.history["epoch"][-1]
        if facts.contract["epoch"] == last >= facts.config.train.epochs:
            found.append("The last epoch was the best one; longer training may help.")
    return found


def inference_verdict(facts: InferenceFacts) -> list[str]:
    """Says what was inferred and where to look first."""
    total = sum(int(row["num_nuclei"] or 0) for row in facts.rows)
    sentences = [f"{len(facts.rows)} images, {total} nuclei."]
    if facts.failed:
        sentences.append(f"{len(facts.failed)} files could not be read; they are listed below.")
    sentences.append(
        "Images are sorted by the network's doubt: look at the first ones first. No truth is known here, so nothing "
        "on this page says how good the masks are."
    )
    return sentences


def _weakest(summary: dict[str, Any]) -> str | None:
    rows = [row for row in summary.get("subsets", []) if row["dice"]["mean"] is not None]
    if not rows:
        return None
    worst = min(rows, key=lambda row: row["dice"]["mean"])
    dice = worst["dice"]
    return (
        f"The weakest kind of images is {worst['kind']} {worst['value']}: Dice "
        f"{scored(dice['mean'], dice['low'], dice['high'])} on {worst['num_images']} images."
    )


def _share(value: float | None) -> str:
    return "an undefined share" if value is None else f"{value:.1%}"
