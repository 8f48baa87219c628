"""What a person's review means for a folder of annotated images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.annotations.decisions import Decisions, ImageDecisions
from cervseg_jax.annotations.preannotation import CHECKED, Suggestion, state_of
from cervseg_jax.curation.collect import SourceImage
from cervseg_jax.errors import first_few


class Review(NamedTuple):
    """What a person says about annotations."""

    accept_unchanged: bool = False
    """Whether pre-annotations that nobody has looked at are taken as they are."""
    decisions: Decisions | None = None
    """Decisions of a reviewing page."""


NO_REVIEW = Review()


def apply_review(
    images: Sequence[SourceImage], suggestions: Mapping[str, Suggestion], review: Review
) -> tuple[list[SourceImage], list[str]]:
    """Leaves out rejected images, and pre-annotations that nobody has looked at.

    An image that was accepted on the reviewing page counts as looked at.

    Args:
      images: images of a folder.
      suggestions: the folder's list, see `read_suggestions`.
      review: what a person says about them.

    Returns:
      The images to use, with the points of rejected nuclei; and a message for each reason to leave some out.

    Raises:
      DataError: if the decisions about an image are ambiguous.
    """
    kept, rejected, untouched = [], [], []
    for item in images:
        suggestion = suggestions.get(item.stem)
        decided = _decided(item, suggestion, review.decisions)
        verdict = None if decided is None else decided.verdict
        if verdict == "rejected":
            rejected.append(item.stem)
        elif verdict != "accepted" and not review.accept_unchanged and _is_untouched(item, suggestion):
            untouched.append(item.stem)
        else:
            top, left = (0, 0) if suggestion is None else (suggestion.top, suggestion.left)
            points = () if decided is None else tuple(decided.rejected(top=top, left=left))
            stem = "" if suggestion is None else suggestion.source_stem
            kept.append(item._replace(rejected=points, source_stem=stem))
    messages = []
    if rejected:
        messages.append(f"{len(rejected)} images rejected in review are left out: {first_few(rejected)}")
    if untouched:
        messages.append(
            f"nobody has looked at the pre-annotations of {len(untouched)} images, which are left out: "
            f"{first_few(untouched)}; correct them, tick the flag `{CHECKED}` in LabelMe, or add --accept-unchanged"
        )
    return kept, messages


def _decided(item: SourceImage, suggestion: Suggestion | None, decisions: Decisions | None) -> ImageDecisions | None:
    """Returns the decisions about an image, or about the image that it was cut from."""
    if decisions is None:
        return None
    return decisions.about(item.image_path if suggestion is None else Path(suggestion.source))


def _is_untouched(item: SourceImage, suggestion: Suggestion | None) -> bool:
    return item.kind == "labelme" and state_of(item.annotation_path, suggestion) == "untouched"
