"""The scores that users see: titles, units, which direction is better, and where each one is shown."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Level = Literal["pixels", "nuclei", "image"]
View = Literal["tables", "comparison", "headline", "gallery", "inference"]
"""Tables of `eval`, report and model card; `compare`; its figure; galleries of scored and of inferred images."""


class Score(NamedTuple):
    """How a score is presented."""

    title: str
    level: Level
    """What is counted: pixels of masks, single nuclei, or a property of the image and its prediction."""
    better: Literal["higher", "lower"] | None
    """Which direction is better; None: neither."""
    views: tuple[View, ...]
    unit: str = ""

    @property
    def heading(self) -> str:
        """The title with its unit, and a note where lower values are better."""
        unit = f", {self.unit}" if self.unit else ""
        return f"{self.title}{unit}{' (lower is better)' if self.better == 'lower' else ''}"


SCORES: Mapping[str, Score] = {
    "dice": Score("Dice", "pixels", "higher", ("tables", "comparison", "headline", "gallery")),
    "soft_dice": Score("soft Dice", "pixels", "higher", ("tables", "comparison")),
    "iou": Score("IoU", "pixels", "higher", ("tables", "comparison", "gallery")),
    "precision": Score("precision", "pixels", "higher", ("tables", "gallery")),
    "recall": Score("recall", "pixels", "higher", ("tables", "gallery")),
    "specificity": Score("specificity", "pixels", "higher", ("tables",)),
    "brier": Score("Brier score", "pixels", "lower", ("tables", "comparison", "gallery")),
    "uncertainty": Score("uncertainty", "image", "lower", ("gallery", "inference")),
    "pq": Score("panoptic quality (PQ)", "nuclei", "higher", ("tables", "comparison", "headline", "gallery")),
    "sq": Score("segmentation quality (SQ)", "nuclei", "higher", ("tables",)),
    "rq": Score("recognition quality (RQ)", "nuclei", "higher", ("tables",)),
    "aji": Score("AJI", "nuclei", "higher", ("tables", "comparison", "gallery")),
    "aji_plus": Score("AJI+", "nuclei", "higher", ("tables",)),
    "f1_50": Score("F1 at IoU 0.5", "nuclei", "higher", ("tables", "comparison")),
    "f1_70": Score("F1 at IoU 0.7", "nuclei", "higher", ("tables",)),
    "detection_f1": Score("detection F1 (centroids)", "nuclei", "higher", ("tables",)),
    "split_rate": Score("split rate", "nuclei", "lower", ("tables",)),
    "merge_rate": Score("merge rate", "nuclei", "lower", ("tables",)),
    "pq_touching": Score("PQ of touching nuclei", "nuclei", "higher", ("tables", "comparison", "gallery")),
    "f1_50_touching": Score("F1 at IoU 0.5 of touching nuclei", "nuclei", "higher", ("tables",)),
    "merge_rate_touching": Score("merge rate of touching nuclei", "nuclei", "lower", ("tables",)),
    "pq_whole": Score("PQ of whole nuclei", "nuclei", "higher", ("tables", "comparison", "gallery")),
    "aji_whole": Score("AJI of whole nuclei", "nuclei", "higher", ("tables", "comparison")),
    "f1_50_whole": Score("F1 at IoU 0.5 of whole nuclei", "nuclei", "higher", ("tables", "comparison")),
    "f1_50_overlap_0": Score("the same of nuclei that overlap none", "nuclei", "higher", ("tables",)),
    "f1_50_overlap_0_10": Score("the same, overlap up to 10 %", "nuclei", "higher", ("tables",)),
    "f1_50_overlap_10_25": Score("the same, overlap 10 to 25 %", "nuclei", "higher", ("tables",)),
    "f1_50_overlap_25_50": Score("the same, overlap 25 to 50 %", "nuclei", "higher", ("tables",)),
    "f1_50_overlap_over_50": Score("the same, overlap above 50 %", "nuclei", "higher", ("tables",)),
    "hd95_px": Score("HD95 of matched pairs", "nuclei", "lower", ("tables",), unit="px"),
    "assd_px": Score("ASSD of matched pairs", "nuclei", "lower", ("tables",), unit="px"),
    "num_true": Score("true nuclei", "image", None, ("gallery",)),
    "num_predicted": Score("predicted nuclei", "image", None, ("gallery",)),
    "num_nuclei": Score("nuclei", "image", None, ("inference",)),
    "foreground": Score("nucleus share of the area", "image", None, ("inference",)),
}
"""Scores by the name of their column in per_image.csv, nuclei_per_image.csv or images.csv, in the order shown.

Their formulas are in `pixel`, `probability` and `instance`."""


def shown(view: View, *levels: Level) -> dict[str, Score]:
    """Returns the scores of a view, of some levels if any are given, in the order of `SCORES`.

    Example:
      >>> list(shown("headline"))
      ['dice', 'pq']
      >>> shown("tables", "nuclei")["hd95_px"].heading
      'HD95 of matched pairs, px (lower is better)'
    """
    return {
        name: score for name, score in SCORES.items() if view in score.views and (not levels or score.level in levels)
    }
