"""The parts of the page."""

import html
import json
from collections.abc import Sequence
from typing import Any

from cervseg_jax.pages import figure, table
from cervseg_jax.report.facts import InferenceFacts, PartFacts, RunFacts, split_counts
from cervseg_jax.report.verdict import RESEARCH_ONLY, inference_verdict, scored, verdict

PIXEL_SCORES = {
    "dice": "Dice",
    "soft_dice": "soft Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "brier": "Brier score (lower is better)",
}
NUCLEUS_SCORES = {
    "pq": "panoptic quality (PQ)",
    "sq": "segmentation quality (SQ)",
    "rq": "recognition quality (RQ)",
    "aji": "AJI",
    "aji_plus": "AJI+",
    "f1_50": "F1 at IoU 0.5",
    "f1_70": "F1 at IoU 0.7",
    "detection_f1": "detection F1 (centroids)",
    "split_rate": "split rate (lower is better)",
    "merge_rate": "merge rate (lower is better)",
    "pq_touching": "PQ of touching nuclei",
    "merge_rate_touching": "merge rate of touching nuclei",
    "hd95_px": "HD95 of matched pairs, px",
    "assd_px": "ASSD of matched pairs, px",
}
SHOWN_EVENTS = ("resumed", "interrupted", "diverged")


def summary_section(facts: RunFacts) -> str:
    """The verdict, and the figures that matter most."""
    first = facts.parts[0].summary if facts.parts else None
    tiles = []
    if first is not None:
        low, high = first["intervals"]["dice_mean"]
        tiles.append(("mean Dice", scored(first["dice_mean"]), _bracket(low, high)))
        if "nuclei" in first:
            pq = first["nuclei"]["pq"]
            tiles.append(("mean PQ of nuclei", scored(pq["mean"]), _bracket(pq["low"], pq["high"])))
        tiles.append(("images", str(first["num_images"]), f"{first['num_sources']} sources"))
        tiles.append(("calibration error", scored(first["calibration_error"]), "0 is perfect"))
    epochs = facts.history.get("epoch", [])
    if epochs:
        best = "" if facts.contract is None else f"best: {facts.contract['epoch']}"
        tiles.append(("epochs", f"{epochs[-1]} of {facts.config.train.epochs}", best))
    return _tiles(tiles) + _paragraphs(verdict(facts))


def inference_summary(facts: InferenceFacts) -> str:
    """What was inferred."""
    text = _paragraphs(inference_verdict(facts))
    if facts.failed:
        text += table(["file", "reason"], [[row["file"], row["reason"]] for row in facts.failed])
    return text


def scores_section(parts: Sequence[PartFacts]) -> str:
    """Tables of all scores, and the commands that make them; those of the first part are open."""
    first, *others = parts
    folded = "".join(
        f"<details><summary>{html.escape(part.name)}</summary>{_scores(part)}</details>" for part in others
    )
    return _scores(first) + folded


def _scores(part: PartFacts) -> str:
    summary, intervals = part.summary, part.summary["intervals"]
    rows = [
        [
            title,
            scored(summary[f"{name}_mean"], *intervals[f"{name}_mean"]),
            scored(summary[f"{name}_pooled"], *intervals[f"{name}_pooled"]),
        ]
        for name, title in PIXEL_SCORES.items()
    ]
    blocks = [f"<h3>{html.escape(part.name)}: masks</h3>"]
    blocks.append(table(["score", "mean over images [95 % interval]", "all images as one [95 % interval]"], rows))
    for name, count in summary["undefined"].items():
        blocks.append(f"<p>{html.escape(name)} is undefined for {count} images and left out of the mean.</p>")
    if "loss" in summary:
        blocks.append(
            f"<p>As the reference implementation reports them: loss {scored(summary['loss'], digits=4)}, dice_coef "
            f"{scored(summary['dice_coef'], digits=4)} (soft, pooled over batches).</p>"
        )
    if "nuclei" in summary:
        blocks += [f"<h3>{html.escape(part.name)}: single nuclei</h3>", _nuclei(summary["nuclei"])]
    if summary["subsets"]:
        blocks += [f"<h3>{html.escape(part.name)}: kinds of images</h3>", _subsets(summary["subsets"])]
    return "".join([*blocks, f"<p>Made by <code>{html.escape(summary['command'])}</code></p>"])


def calibration_section(part: PartFacts) -> str:
    """The reliability curve."""
    path = part.folder / "calibration.png"
    error = part.summary["calibration_error"]
    caption = f"How often pixels of a probability are nucleus; expected calibration error {scored(error)}"
    return figure(path, caption=caption) if path.is_file() else ""


def training_section(facts: RunFacts) -> str:
    """Where the curves are drawn, a table for those without script, and what happened on the way."""
    history = facts.history
    epochs = history.get("epoch", [])
    if not epochs:
        return "<p>No epoch is finished yet.</p>"
    names = [name for name in history if name not in ("epoch", "step", "images_per_second", "input_wait")]
    shown = sorted({0, len(epochs) - 1} | ({facts.contract["epoch"] - 1} if facts.contract else set()))
    shown = [row for row in shown if 0 <= row < len(epochs)]
    rows = [[epochs[row], *(_plain(history[name][row]) for name in names)] for row in shown]
    text = '<div id="curves"></div>' + table(["epoch", *names], rows)
    text += "<p>First, best and last epoch; all are in metrics.csv.</p>"
    events = [event for event in facts.events if event.get("event") in SHOWN_EVENTS]
    if events:
        details = [
            [
                event["event"],
                ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event")),
            ]
            for event in events[-20:]
        ]
        text += "<h3>On the way</h3>" + table(["event", "details"], details)
    return text


def data_section(facts: RunFacts) -> str:
    """What the network learned from, and what an audit says of it."""
    rows = [list(row) for row in split_counts(facts.data)]
    text = table(["part", "images", "sources"], rows) if rows else "<p>Unknown: the run has no data.csv.</p>"
    text += f"<p>{html.escape(leak_sentence(facts))}</p>"
    text += f"<p>Folder: <code>{html.escape(str(facts.config.data.root))}</code></p>"
    audit = facts.dataset.get("audit")
    if audit is None:
        root = html.escape(str(facts.config.data.root))
        text += f"<p>Not audited: <code>cervseg-jax audit {root}</code></p>"
    elif audit["findings"]:
        text += table(["finding", "what"], [[found["name"], found["message"]] for found in audit["findings"]])
    else:
        text += "<p>Audited; nothing was found.</p>"
    made = facts.dataset.get("dataset")
    if made is not None:
        text += table(["how it was made", ""], [[name, _plain(value)] for name, value in made.items()])
    return text


def leak_sentence(facts: RunFacts) -> str:
    """Says whether parts share sources, or files where the sources are not known."""
    if not facts.data:
        return "Nothing is known about its files."
    is_prepared = "dataset" in facts.dataset
    parts: dict[str, set[str]] = {}
    for row in facts.data:
        parts.setdefault(row["group" if is_prepared else "image_sha256"], set()).add(row["split"])
    shared = [name for name, splits in parts.items() if len(splits) > 1]
    what = "source" if is_prepared else "image file"
    if shared:
        return f"Caution: {len(shared)} {what}s are in several parts, which flatters the scores."
    unknown = "" if is_prepared else " Patients and slides are not known: every image counts as a source of its own."
    return f"No {what} is in more than one part.{unknown}"


def config_section(facts: RunFacts) -> str:
    """The recipe with all defaults."""
    title = "config.yaml, with all defaults"
    return f"<details><summary>{title}</summary><pre>{html.escape(facts.config_text)}</pre></details>"


def environment_section(facts: RunFacts) -> str:
    """Where it was made, and how to make it again."""
    environment = facts.environment
    rows = [
        ["command", " ".join(environment.get("command", []))],
        ["started", environment.get("started", "")],
        ["Python", environment.get("python", "")],
        ["platform", environment.get("platform", "")],
        ["devices", ", ".join(environment.get("devices", []))],
        ["commit", environment.get("git_commit") or "unknown"],
        ["packages", ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())],
    ]
    commands = [f"cervseg-jax train {facts.address or facts.folder}/config.yaml --run-dir NEW"]
    commands += [part.summary["command"] for part in facts.parts]
    listed = "".join(f"<li><code>{html.escape(command)}</code></li>" for command in commands)
    return table(["what", "value"], rows) + f"<p>To make it again:</p><ol>{listed}</ol>"


def footer() -> str:
    """The limits of it all."""
    return f"<p>{RESEARCH_ONLY}</p>"


def _nuclei(nuclei: dict[str, Any]) -> str:
    rows = []
    for name, title in NUCLEUS_SCORES.items():
        score = nuclei[name]
        pooled = scored(score["pooled"]) if "pooled" in score else ""
        rows.append([title, scored(score["mean"], score["low"], score["high"]), pooled, score["num_images"]])
    return table(["score", "mean over images [95 % interval]", "all images as one", "images"], rows)


def _subsets(subsets: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in subsets:
        dice, pq = row["dice"], row.get("pq")
        cells = [row["kind"], row["value"], row["num_images"], scored(dice["mean"], dice["low"], dice["high"])]
        rows.append([*cells, "" if pq is None else scored(pq["mean"], pq["low"], pq["high"])])
    return table(["kind", "value", "images", "Dice [95 % interval]", "PQ [95 % interval]"], rows)


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
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
