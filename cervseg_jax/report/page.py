"""Writes the report page and the cards of a run, or the page of an inference folder."""

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import sha256_of, write_text
from cervseg_jax.pages import page
from cervseg_jax.report import gallery, sections
from cervseg_jax.report.cards import data_card, model_card
from cervseg_jax.report.run_data import InferenceData, RunData, load_inference, load_run
from cervseg_jax.runs.folder import member_runs
from cervseg_jax.runs.history import rate_drops


def write_report(
    folder: Path, out: Path | None, *, num_layered: int, reporter: Reporter, address: Path | None = None
) -> Path:
    """Writes `report.html`; for a run also `MODEL_CARD.md` and `DATA_CARD.md` beside it.

    Args:
      folder: a run folder, finished or not, or an inference folder.
      out: the HTML file; None writes `report.html` into the folder.
      num_layered: number of images that open in layers; the others are thumbnails.
      reporter: shows progress.
      address: address of the run, if `folder` is its local copy.

    Returns:
      The HTML file.

    Raises:
      ConfigError: if the folder is neither a run nor an inference folder.
      CheckpointError: if a file in it is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    path = (out or folder / "report.html").absolute()
    if not (folder / "config.yaml").is_file() and member_runs(folder) == [folder]:
        write_text(path, _inference_page(load_inference(folder), num_layered, reporter))
        return path
    run = load_run(folder)._replace(address=address)
    write_text(path, _run_page(run, num_layered, reporter))
    write_text(path.with_name("MODEL_CARD.md"), model_card(run))
    write_text(path.with_name("DATA_CARD.md"), data_card(run))
    return path


def _run_page(run: RunData, num_layered: int, reporter: Reporter) -> str:
    parts = [("Summary", sections.summary_section(run))]
    images: list[dict[str, Any]] = []
    scored = [evaluation for evaluation in run.evaluations if evaluation.summary["num_images"]]
    if scored:
        first = scored[0]
        with reporter.progress("pictures", len(first.rows)) as advance:
            images = gallery.evaluated_images(first, run.config.data, num_layered=num_layered, on_progress=advance)
        parts += [
            (f"Images: {first.name}", _gallery(images, len(first.rows), outlines="truth green, prediction pink")),
            ("Scores", sections.scores_section(scored)),
            ("Calibration", sections.calibration_section(first)),
        ]
    epochs = gallery.preview_epochs(run)
    parts += [("Training", sections.training_section(run))]
    if epochs is not None:
        kind = "The network is trained on these" if run.config.data.train_on_valid else "Validation"
        parts += [("Previews by epoch", f'<p>{kind} images; predicted masks are pink.</p><div id="epochs"></div>')]
    parts += [("Data", sections.data_section(run)), ("Config", sections.config_section(run))]
    parts += [("Environment", sections.environment_section(run)), ("Limits", sections.limits_section())]
    drops = rate_drops(run.history.get("learning_rate", []))
    values = {"history": run.history, "best": run.best_epoch, "drops": drops, "epochs": epochs, "images": images}
    values["scores"] = gallery.score_texts("gallery")
    lead = f"{run.config.model.name}, {run.config.model.image_size[0]}x{run.config.model.image_size[1]}"
    return _page(f"Run {run.folder.name}", lead, parts, values)


def _inference_page(inference: InferenceData, num_layered: int, reporter: Reporter) -> str:
    with reporter.progress("pictures", len(inference.rows)) as advance:
        images = gallery.inferred_images(inference, num_layered=num_layered, on_progress=advance)
    parts = [("Summary", sections.inference_summary(inference))]
    if any("review" in image for image in images):
        parts.append(("Review", sections.review_section()))
    if images:
        parts.append(("Images", _gallery(images, len(inference.rows), outlines="prediction pink")))
    parts.append(("Limits", sections.limits_section()))
    values = {"history": {}, "best": 0, "drops": [], "epochs": None, "images": images}
    values["scores"] = gallery.score_texts("inference")
    files = json.dumps([[row["image"], row["file"]] for row in inference.rows])
    values["review"] = {"id": sha256_of(files.encode())[:16], "folder": str(inference.folder)}
    return _page(f"Inference: {inference.folder.name}", "", parts, values, assets=("report", "review"))


def _page(
    title: str, lead: str, parts: list[tuple[str, str]], values: dict[str, Any], *, assets: Sequence[str] = ("report",)
) -> str:
    code = "".join(f"<script>\n{_asset(f'{name}.js')}</script>" for name in assets)
    style = "".join(_asset(f"{name}.css") for name in assets)
    return page(title, lead, parts, style=style, script=gallery.embedded("page-data", values) + code)


def _gallery(images: list[dict[str, Any]], total: int, *, outlines: str) -> str:
    layered = sum(image["layers"] is not None for image in images)
    missing = sum(image["thumbnail"] is None for image in images)
    count = f"All {total} images" if len(images) == total else f"{len(images)} of {total} images"
    note = f"{count}; "
    note += (
        "each opens in layers." if layered == len(images) else f"{layered} open in layers, the others as thumbnails."
    )
    if missing:
        note += f" The files of {missing} images were moved or deleted."
    return f'<p>{note} Outlines: {outlines}.</p><div id="gallery"></div>'


def _asset(name: str) -> str:
    return (importlib.resources.files("cervseg_jax.report") / name).read_text(encoding="utf-8")
