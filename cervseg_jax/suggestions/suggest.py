"""Suggests which images of a pool to annotate next, and writes them with pre-annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.decisions import Decisions, covers, read_decisions
from cervseg_jax.annotations.labelme import NUCLEUS
from cervseg_jax.annotations.preannotation import Suggestion
from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_bytes
from cervseg_jax.files import png_bytes
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runtime.mesh import require_devices
from cervseg_jax.segmentation.jobs import Job, plan_jobs, require_safe_output, stated_pixel_sizes
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.suggestions.embed import make_embed
from cervseg_jax.suggestions.filters import LeftOut, without_members, without_near_copies, without_rejected
from cervseg_jax.suggestions.folder import Prepared, Written, open_folder, preannotation, write_folder
from cervseg_jax.suggestions.known import annotated_features, dataset_recipe, known_images
from cervseg_jax.suggestions.pool import Candidate, Failure, is_shown_by_labelme, open_images, scan_pool
from cervseg_jax.suggestions.selection import Pick, select


@dataclass(frozen=True)
class SuggestRequest:
    """Which run suggests how many images of what, and where they are written."""

    run: Path
    """Run folder with best weights."""
    images: tuple[Path, ...]
    """The pool: image files and folders."""
    out: Path
    """Folder in which the images are corrected."""
    count: int = 10
    """Number of images or crops."""
    crop_px: int = 512
    """Side of the crops of large images, see `windows_for`."""
    decisions: Path | None = None
    """File of a reviewing page."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` items on the run's config."""


class Suggested(NamedTuple):
    """Outcome of `suggest_images`."""

    suggestions: list[Suggestion]
    written: Written
    left_out: dict[str, list[str]]
    """Names of images by the reason why they are no candidates."""
    failures: list[Failure]


def suggest_images(request: SuggestRequest, *, reporter: Reporter) -> Suggested:
    """Predicts a pool, chooses images and writes them. The same call on the same files gives the same result.

    Args:
      request: run, pool and folder.
      reporter: for progress and warnings.

    Returns:
      What was chosen, in order, and what was left out.

    Raises:
      ConfigError: if an input is missing, or the folder holds other files.
      CheckpointError: if the run has no usable weights.
      DataError: if the run's dataset or the decisions are damaged.
    """
    config = load_run_config(request.run, request.overrides)
    decisions = Decisions(Path(), []) if request.decisions is None else read_decisions(request.decisions)
    require_devices(config.runtime)
    segmenter = load_segmenter((request.run,), config)
    jobs = plan_jobs(request.images, with_slides=segmenter.is_tiled, on_left_out=reporter.warn)
    require_safe_output(request.out, (), jobs, overwrite=True)
    earlier = open_folder(request.out)
    recipe = dataset_recipe(config.data.root)
    members = known_images(request.run, config, reporter)
    left_out: LeftOut = {}
    jobs = without_rejected(jobs, decisions, left_out)
    pixel_sizes = stated_pixel_sizes(jobs, reporter)
    embed = make_embed(segmenter.networks[0])
    with reporter.progress("images", len(jobs)) as advance:
        candidates, failures = scan_pool(
            segmenter,
            embed,
            jobs,
            crop_px=request.crop_px,
            geometry=recipe.geometry,
            pixel_sizes=pixel_sizes,
            on_progress=advance,
        )
    candidates = without_near_copies(without_members(candidates, members, recipe, left_out), left_out)
    known = annotated_features(segmenter, embed, config, reporter)
    choices = _choose(candidates, known, decisions, request.count)
    writer = _Writer(segmenter, decisions, recipe.labels[0] if recipe.labels else NUCLEUS, pixel_sizes)
    prepared = writer.prepare(choices)
    written = write_folder(request.out, prepared, earlier)
    return Suggested([image.suggestion for image in prepared], written, left_out, failures)


class _Choice(NamedTuple):
    """A chosen candidate."""

    order: int
    candidate: Candidate
    pick: Pick
    reason: str


def _choose(candidates: Sequence[Candidate], known: np.ndarray, decisions: Decisions, count: int) -> list[_Choice]:
    """Chooses flagged images first, then uncertain ones that are new."""
    if not candidates:
        return []
    decided = [decisions.about(candidate.job.path) for candidate in candidates]
    is_flagged = np.array([entry is not None and entry.is_flagged for entry in decided])
    bits = np.array([candidate.uncertainty for candidate in candidates])
    embeddings = np.stack([candidate.embedding for candidate in candidates])
    known = known if len(known) else np.zeros((0, embeddings.shape[1]), np.float32)
    ranks = np.empty(len(bits), int)
    ranks[np.argsort(-bits, kind="stable")] = np.arange(1, len(bits) + 1)
    choices = []
    for order, pick in enumerate(select(bits, embeddings, known, count=count, come_first=is_flagged), start=1):
        index = pick.candidate
        reason = (
            f"uncertain: {bits[index]:.2f} bits per pixel near nuclei, rank {ranks[index]} of {len(bits)}; "
            f"distance {pick.distance:.2f} from the nearest image that is annotated or stands above"
        )
        if is_flagged[index]:
            reason = f"flagged in review; {reason}"
        choices.append(_Choice(order, candidates[index], pick, reason))
    return choices


class _Writer(NamedTuple):
    """Makes pictures and pre-annotations of chosen candidates."""

    segmenter: Segmenter
    decisions: Decisions
    label: str
    pixel_sizes: dict[Job, float]

    def prepare(self, choices: Sequence[_Choice]) -> list[Prepared]:
        """Predicts the files again, one after the other, and returns what is to be written, in order."""
        jobs = list(dict.fromkeys(choice.candidate.job for choice in choices))

        def fail(job: Job, error: Exception) -> None:
            raise error  # it could be read a moment ago

        prepared = []
        opened = open_images(self.segmenter, jobs, fail)
        for job, result in self.segmenter.predict(opened, mpp_of=self.pixel_sizes.get):
            prepared += [self._prepare_one(choice, result) for choice in choices if choice.candidate.job == job]
            result.close()
        return sorted(prepared, key=lambda image: image.suggestion.order)

    def _prepare_one(self, choice: _Choice, result: Result) -> Prepared:
        candidate, window = choice.candidate, choice.candidate.window
        pixels = np.ascontiguousarray(result.image[window.slices])
        own = Result(pixels, result.maps[window.slices], heads=result.heads, postprocessing=result.postprocessing)
        decided = self.decisions.about(candidate.job.path)
        rejected = [] if decided is None else decided.rejected(top=window.top, left=window.left)
        polygons = [
            parts
            for parts in own.nuclei.polygons
            if not covers([ring for part in parts for ring in (part.outer, *part.holes)], rejected)
        ]
        is_copied = candidate.is_whole and is_shown_by_labelme(candidate.job.path)
        image = f"{candidate.stem}{candidate.job.path.suffix}" if is_copied else f"{candidate.stem}.png"
        shape = (window.height, window.width)
        text, digest = preannotation(polygons, label=self.label, image_path=image, shape=shape)
        suggestion = Suggestion(
            choice.order,
            image,
            str(candidate.job.path),
            candidate.source_sha256,
            *window,
            *candidate.size,
            len(polygons),
            round(candidate.uncertainty, 6),
            round(choice.pick.distance, 6),
            round(choice.pick.score, 6),
            choice.reason,
            digest,
        )
        return Prepared(suggestion, read_bytes(candidate.job.path) if is_copied else png_bytes(pixels), text)
