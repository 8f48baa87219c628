"""Model card and data card in Markdown, from the facts that the page shows.

Reference: Mitchell et al. 2019, arXiv:1810.03993 (model cards); Gebru et al. 2021, arXiv:1803.09010 (data sheets).
"""

from cervseg_jax.report.facts import RunFacts, split_counts
from cervseg_jax.report.sections import NUCLEUS_SCORES, PIXEL_SCORES, leak_sentence
from cervseg_jax.report.verdict import RESEARCH_ONLY, scored, verdict


def model_card(facts: RunFacts) -> str:
    """Returns the card of a run's network."""
    config, contract = facts.config, facts.contract
    height, width = config.model.image_size
    lines = [
        f"# Model card: {facts.folder.name}",
        "",
        *verdict(facts),
        "",
        "## What it is",
        "",
        f"- Network: {config.model.name}, input {height}x{width}, heads {', '.join(config.model.heads)}",
        f"- Trained: {len(facts.history.get('epoch', []))} epochs of at most {config.train.epochs}, batch "
        f"{config.train.batch_size}, loss {config.train.loss}, seed {config.train.seed}, {config.runtime.precision}",
        *([] if contract is None else [f"- Weights: epoch {contract['epoch']}, SHA-256 {contract['weights_sha256']}"]),
        *([] if contract is None else [f"- Images: {contract['preprocessing']}"]),
        "",
        "## What it is for",
        "",
        f"Masks and single nuclei in Pap-smear images like those that it was trained on. {RESEARCH_ONLY}",
        "Other stains, scanners and magnifications need an evaluation of their own.",
        "",
        "## How good it is",
        "",
    ]
    for part in facts.parts:
        summary, intervals = part.summary, part.summary["intervals"]
        lines += [
            f"On {part.name} ({summary['num_images']} images of {summary['num_sources']} sources), "
            f"`{summary['command']}`:",
            "",
            "| score | mean over images [95 % interval] |",
            "|---|---|",
        ]
        for name, title in PIXEL_SCORES.items():
            lines.append(f"| {title} | {scored(summary[f'{name}_mean'], *intervals[f'{name}_mean'])} |")
        for name, title in NUCLEUS_SCORES.items() if "nuclei" in summary else ():
            score = summary["nuclei"][name]
            lines.append(f"| {title} | {scored(score['mean'], score['low'], score['high'])} |")
        lines.append("")
    if not facts.parts:
        lines += ["Not scored yet.", ""]
    return "\n".join(lines)


def data_card(facts: RunFacts) -> str:
    """Returns the card of the data that a run learned from."""
    lines = [
        f"# Data card: {facts.config.data.root.name}",
        "",
        "| part | images | sources |",
        "|---|---|---|",
        *(f"| {name} | {images} | {sources} |" for name, images, sources in split_counts(facts.data)),
        "",
        leak_sentence(facts),
        "",
    ]
    audit = facts.dataset.get("audit")
    if audit is None:
        lines.append("Not audited.")
    elif not audit["findings"]:
        lines.append("Audited; nothing was found.")
    else:
        lines += ["An audit found:", "", *(f"- {found['name']}: {found['message']}" for found in audit["findings"])]
    made = facts.dataset.get("dataset")
    if made is not None:
        lines += ["", "How it was made:", "", *(f"- {name}: {value}" for name, value in made.items())]
    if facts.config.data.origin:
        lines += ["", f"Where the images come from: {facts.config.data.origin}"]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])
