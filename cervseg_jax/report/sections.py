"""The sections of the report page."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cervseg_jax.metrics.catalog import shown
from cervseg_jax.pages import table
from cervseg_jax.report.charts import reliability_chart
from cervseg_jax.report.review import HELP
from cervseg_jax.report.run_data import Evaluation, InferenceData, RunData, split_counts
from cervseg_jax.report.verdict import RESEARCH_ONLY, format_score, inference_verdict, verdict

SHOWN_EVENTS = ("resumed", "interrupted", "diverged")
INTERVAL = "[95 % interval]"


def summary_section(run: RunData) -> str:
    """Tiles with the main scores, and the verdict."""
    first = run.evaluations[0].summary if run.evaluations else None
    tiles = []
    if first is not None and first["num_images"]:
        low, high = first["intervals"]["dice_mean"]
        tiles.append(("mean Dice", format_score(first["dice_mean"]), _bracket(low, high)))
        if "nuclei" in first:
            pq = first["nuclei"]["pq"]
            tiles.append(("mean PQ of nuclei", format_score(pq["mean"]), _bracket(pq["low"], pq["high"])))
        tiles.append(("images", str(first["num_images"]), f"{first['num_sources']} sources"))
        tiles.append(("calibration error", format_score(first.get("calibration_error")), "0 is perfect"))
    epochs = run.history.get("epoch", [])
    if epochs:
        best = f"best: {run.best_epoch}" if run.best_epoch else ""
        tiles.append(("epochs", f"{epochs[-1]} of {run.config.train.epochs}", best))
    return _tiles(tiles) + _paragraphs(verdict(run))


def inference_summary(inference: InferenceData) -> str:
    """The verdict, and a table of the images that failed."""
    text = _paragraphs(inference_verdict(inference))
    if inference.failed:
        text += table(["file", "reason"], [[row["file"], row["reason"]] for row in inference.failed])
    return text


def review_section() -> str:
    """Keys and rules of the reviewing section, whose script fills the container."""
    keys = "".join(f"<li><kbd>{html.escape(key)}</kbd> {html.escape(text)}</li>" for key, text in HELP)
    return (
        "<p>Decisions stay in this browser as a draft until they are saved as <code>decisions.json</code>, which "
        "<code>suggest</code>, <code>prepare</code> and <code>eval</code> read with <code>--decisions</code>: rejected "
        "images and nuclei are left out, flagged images are suggested first, and accepted pre-annotations count as "
        "looked at.</p>"
        f'<ul id="review-keys" aria-label="keys, while the picture has the focus">{keys}</ul><div id="review"></div>'
    )


def scores_section(evaluations: Sequence[Evaluation]) -> str:
    """Tables of all scores with their commands; only those of the first evaluation are expanded."""
    first, *others = evaluations
    folded = "".join(
        f"<details><summary>{html.escape(evaluation.name)}</summary>{_scores(evaluation)}</details>"
        for evaluation in others
    )
    return _scores(first) + folded


def _scores(evaluation: Evaluation) -> str:
    summary, name = evaluation.summary, html.escape(evaluation.name)
    blocks = [f"<h3>{name}: masks</h3>"]
    header = ["score", f"mean over images {INTERVAL}", f"all images pooled {INTERVAL}"]
    blocks.append(table(header, pixel_rows(summary)))
    for score, count in summary.get("undefined", {}).items():
        blocks.append(f"<p>{html.escape(score)} is undefined for {count} images, which its mean leaves out.</p>")
    if "loss" in summary:
        blocks.append(
            f"<p>Computed as in the reference implementation: loss {format_score(summary['loss'], digits=4)}, "
            f"dice_coef {format_score(summary['dice_coef'], digits=4)} (soft Dice pooled over each batch).</p>"
        )
    if "nuclei" in summary:
        header = ["score", f"mean over images {INTERVAL}", "all images pooled", "images"]
        blocks += [f"<h3>{name}: single nuclei</h3>", table(header, nucleus_rows(summary))]
    if summary.get("subsets"):
        blocks += [f"<h3>{name}: subsets of the images</h3>", _subsets(summary["subsets"])]
    return "".join([*blocks, f"<p>Command: <code>{html.escape(summary['command'])}</code></p>"])


def pixel_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Returns heading, mean and pooled value of each pixel score that a summary has, as text."""
    intervals = summary["intervals"]
    return [
        [
            score.heading,
            *(
                format_score(summary[f"{name}_{how}"], *intervals.get(f"{name}_{how}", ()))
                for how in ("mean", "pooled")
            ),
        ]
        for name, score in shown("tables", "pixels").items()
        if f"{name}_mean" in summary
    ]


def nucleus_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Returns heading, mean, pooled value and number of images of each nucleus score that a summary has, as text."""
    rows = []
    for name, score in shown("tables", "nuclei").items():
        values = summary["nuclei"].get(name)
        if values is not None:
            pooled = format_score(values["pooled"]) if "pooled" in values else ""
            mean = format_score(values["mean"], values["low"], values["high"])
            rows.append([score.heading, mean, pooled, str(values["num_images"])])
    return rows


def calibration_section(evaluation: Evaluation) -> str:
    """The reliability curve."""
    curve, error = evaluation.summary.get("calibration"), evaluation.summary.get("calibration_error")
    if not curve:
        return "<p>This evaluation has no calibration curve.</p>"
    chart = reliability_chart(
        curve,
        caption="Share of the pixels that are nucleus by predicted probability; on the dashed line, both are equal. "
        f"Bars: number of pixels, logarithmic. Expected calibration error: {format_score(error)}",
    )
    return chart + _confidence(evaluation.summary.get("confidence"))


def _confidence(found: Mapping[str, Any] | None) -> str:
    """The reliability curve of single nuclei, and how many true outlines lie within the margin."""
    if found is None:
        return ""
    chart = reliability_chart(
        found,
        caption="Share of the nuclei that match a true one with an IoU above 0.5, by their predicted probability. "
        f"Bars: number of nuclei, logarithmic. Expected calibration error: {format_score(found['error'])}",
        observed="right nuclei",
        counted="nuclei",
    )
    return chart + (
        f"<p>The true outline of {format_score(found['margin_coverage'])} of the {found['num_matched']} nuclei that "
        f"match lies within the margin of {found['margin']:.2f} of the nucleus' diameter; the aim is "
        f"{found['margin_aim']:g}.</p>"
    )


def training_section(run: RunData) -> str:
    """The curves' container, a table for readers without scripts, and notable events."""
    history = run.history
    epochs = history.get("epoch", [])
    if not epochs:
        return "<p>No epoch is finished yet.</p>"
    names = [name for name in history if name not in ("epoch", "step", "images_per_second", "input_wait")]
    chosen = [row for row in sorted({0, run.best_epoch - 1, len(epochs) - 1}) if 0 <= row < len(epochs)]
    rows = [[epochs[row], *(_plain(history[name][row]) for name in names)] for row in chosen]
    text = '<div id="curves"></div>' + table(["epoch", *names], rows)
    text += f"<p>First, {'best ' if run.best_epoch else ''}and last epoch; metrics.csv has all epochs.</p>"
    events = [event for event in run.events if event.get("event") in SHOWN_EVENTS]
    if events:
        details = [
            [
                event["event"],
                ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event")),
            ]
            for event in events[-20:]
        ]
        text += "<h3>Events</h3>" + table(["event", "details"], details)
    return text


def data_section(run: RunData) -> str:
    """The training data, and the findings of an audit."""
    rows = [list(row) for row in split_counts(run.files)]
    text = table(["split", "images", "sources"], rows) if rows else "<p>Unknown: the run has no data.csv.</p>"
    text += f"<p>{html.escape(leak_sentence(run))}</p>"
    root = html.escape(str(run.config.data.root))
    text += f"<p>Folder: <code>{root}</code></p>"
    audit = run.dataset.get("audit")
    if audit is None:
        text += f"<p>Not audited. To audit it: <code>cervseg-jax audit {root}</code></p>"
    elif audit.get("findings"):
        text += table(["finding", "details"], [[found["name"], found["message"]] for found in audit["findings"]])
    else:
        text += "<p>Audited without findings.</p>"
    settings = run.dataset.get("dataset")
    if settings is not None:
        text += "<h3>How the dataset was made</h3>"
        text += table(["setting", "value"], [[name, _plain(value)] for name, value in flat_settings(settings)])
    return text


def leak_sentence(run: RunData) -> str:
    """Returns a sentence on whether splits share sources, or image files if the sources are unknown."""
    if not run.files:
        return "It is unknown which files the network was trained on."
    is_prepared = "dataset" in run.dataset
    splits_by_source: dict[str, set[str]] = {}
    for row in run.files:
        splits_by_source.setdefault(row["group" if is_prepared else "image_sha256"], set()).add(row["split"])
    num_shared = sum(len(splits) > 1 for splits in splits_by_source.values())
    noun = "source" if is_prepared else "image file"
    if num_shared:
        plural = f"{noun}s are" if num_shared > 1 else f"{noun} is"
        return f"Caution: {num_shared} {plural} in more than one split, which makes the scores optimistic."
    unknown = "" if is_prepared else " Patients and slides are unknown: every image counts as a source of its own."
    return f"No {noun} is in more than one split.{unknown}"


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested settings by dotted name, leaving out those that are not set.

    Example:
      >>> list(flat_settings({"recipe": {"valid": 0.2, "labels": [], "size": None}, "seed": 0}))
      [('recipe.valid', 0.2), ('seed', 0)]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        elif value not in (None, [], ""):
            yield prefix + name, value


def config_section(run: RunData) -> str:
    """The config with all defaults."""
    return (
        "<details><summary>config.yaml, with all defaults</summary>"
        f'<pre tabindex="0">{html.escape(run.config_text)}</pre></details>'
    )


def environment_section(run: RunData) -> str:
    """Software and hardware of the training, and the commands that reproduce it."""
    environment = run.environment
    rows = [
        ["command", " ".join(environment.get("command", []))],
        ["started", environment.get("started", "")],
        ["Python", environment.get("python", "")],
        ["platform", environment.get("platform", "")],
        ["devices", ", ".join(environment.get("devices", []))],
        ["commit", environment.get("git_commit") or "unknown"],
        ["packages", ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())],
    ]
    commands = [f"cervseg-jax train {run.address or run.folder}/config.yaml --run-dir NEW"]
    commands += [evaluation.summary["command"] for evaluation in run.evaluations]
    listed = "".join(f"<li><code>{html.escape(command)}</code></li>" for command in commands)
    return table(["what", "value"], rows) + f"<p>To reproduce this run:</p><ol>{listed}</ol>"


def limits_section() -> str:
    """The statement of intended use."""
    return f"<p>{RESEARCH_ONLY}</p>"


def _subsets(subsets: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in subsets:
        cells = [row["kind"], row["value"], row["num_images"]]
        for score in (row["dice"], row.get("pq")):
            cells.append("" if score is None else format_score(score["mean"], score["low"], score["high"]))
        rows.append(cells)
    return table(["subset by", "value", "images", f"Dice {INTERVAL}", f"PQ {INTERVAL}"], rows)


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if tiles else ""


def _paragraphs(sentences: Sequence[str]) -> str:
    return "".join(
        f"<p{' class=caution' if text.startswith('Caution') else ''}>{html.escape(text)}</p>" for text in sentences
    )


def _bracket(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _plain(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
