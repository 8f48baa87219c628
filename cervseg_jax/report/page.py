"""The page and the cards, from a folder."""

import importlib.resources
from pathlib import Path
from typing import Any

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import write_text
from cervseg_jax.pages import page
from cervseg_jax.report import gallery, sections
from cervseg_jax.report.cards import data_card, model_card
from cervseg_jax.report.facts import InferenceFacts, RunFacts, read_inference, read_run
from cervseg_jax.runs.folder import member_runs
from cervseg_jax.runs.history import rate_drops


def write_report(
    folder: Path, out: Path | None, *, num_layered: int, reporter: Reporter, address: str | None = None
) -> Path:
    """Writes `report.html`, and for a run `MODEL_CARD.md` and `DATA_CARD.md` beside it.

    Args:
      folder: a run, finished or not, or what `infer` wrote.
      out: the HTML file; None: `report.html` in the folder.
      num_layered: how many images can be looked at closely, in layers; all others are thumbnails.
      reporter: for progress.
      address: address of a run in a bucket, whose local copy `folder` is.

    Returns:
      The HTML file.

    Raises:
      ConfigError: if there is nothing to report.
      CheckpointError: if a file of the run is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    path = (out or folder / "report.html").absolute()
    if not (folder / "config.yaml").is_file() and member_runs(folder) == [folder]:
        write_text(path, _inference_page(read_inference(folder), num_layered, reporter))
        return path
    facts = read_run(folder)._replace(address=address)
    write_text(path, _run_page(facts, num_layered, reporter))
    write_text(path.with_name("MODEL_CARD.md"), model_card(facts))
    write_text(path.with_name("DATA_CARD.md"), data_card(facts))
    return path


def _run_page(facts: RunFacts, num_layered: int, reporter: Reporter) -> str:
    parts = [("In short", sections.summary_section(facts))]
    images: list[dict[str, Any]] = []
    if facts.parts:
        first = facts.parts[0]
        with reporter.progress("pictures", len(first.rows)) as advance:
            rule = facts.config.data.mask_rule
            images = gallery.evaluated_images(first, rule, num_layered=num_layered, on_progress=advance)
        parts += [(f"Images: {first.name}", _gallery(images, len(first.rows), outlines="truth green, prediction pink"))]
        parts += [("Scores", sections.scores_section(facts.parts))]
        parts += [("Calibration", sections.calibration_section(first))]
    epochs = gallery.preview_epochs(facts)
    parts += [("Training", sections.training_section(facts))]
    if epochs is not None:
        parts += [("Epoch by epoch", '<div id="epochs"></div>')]
    parts += [("Data", sections.data_section(facts)), ("Recipe", sections.config_section(facts))]
    parts += [("Environment and commands", sections.environment_section(facts)), ("Limits", sections.footer())]
    best = 0 if facts.contract is None else facts.contract["epoch"]
    drops = rate_drops(facts.history.get("learning_rate", []))
    values = {"history": facts.history, "best": best, "drops": drops, "epochs": epochs, "images": images}
    title = f"Run {facts.folder.name}"
    lead = f"{facts.config.model.name}, {facts.config.model.image_size[0]}x{facts.config.model.image_size[1]}"
    return page(title, lead, parts, style=_asset("report.css"), script=gallery.embedded("facts", values) + _script())


def _inference_page(facts: InferenceFacts, num_layered: int, reporter: Reporter) -> str:
    with reporter.progress("pictures", len(facts.rows)) as advance:
        images = gallery.inferred_images(facts, num_layered=num_layered, on_progress=advance)
    parts = [
        ("In short", sections.inference_summary(facts)),
        ("Images", _gallery(images, len(facts.rows), outlines="prediction pink")),
        ("Limits", sections.footer()),
    ]
    values = {"history": {}, "best": 0, "drops": [], "epochs": None, "images": images}
    script = gallery.embedded("facts", values) + _script()
    return page(f"Inferred: {facts.folder.name}", "", parts, style=_asset("report.css"), script=script)


def _gallery(images: list[dict[str, Any]], total: int, *, outlines: str) -> str:
    layered = sum(image["layers"] is not None for image in images)
    missing = sum(image["thumbnail"] is None for image in images)
    shown = f"all {total} images" if len(images) == total else f"{len(images)} of {total} images"
    note = f"{shown.capitalize()}; "
    note += "each opens in layers." if layered == len(images) else f"{layered} open in layers, the others are small."
    if missing:
        note += f" {missing} files are no longer where they were."
    return f'<p>{note} Outlines: {outlines}.</p><div id="gallery"></div>'


def _asset(name: str) -> str:
    return (importlib.resources.files("cervseg_jax.report") / name).read_text(encoding="utf-8")


def _script() -> str:
    return f"<script>\n{_asset('report.js')}</script>"
