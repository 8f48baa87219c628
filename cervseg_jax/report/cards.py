"""Model card and data card in Markdown, with the page's scores and cautions.

Reference: Mitchell et al. 2019, arXiv:1810.03993 (model cards); Gebru et al. 2021, arXiv:1803.09010 (data sheets).
"""

from cervseg_jax.report.run_data import RunData, split_counts
from cervseg_jax.report.sections import INTERVAL, flat_settings, leak_sentence, nucleus_rows, pixel_rows
from cervseg_jax.report.verdict import RESEARCH_ONLY, verdict


def model_card(run: RunData) -> str:
    """Returns the card of a run's network."""
    config, contract = run.config, run.contract
    height, width = config.model.image_size
    lines = [
        f"# Model card: {run.folder.name}",
        "",
        *verdict(run),
        "",
        "## Model",
        "",
        f"- Network: {config.model.name}, input {height}x{width}, heads {', '.join(config.model.heads)}",
        f"- Training: {len(run.history.get('epoch', []))} of at most {config.train.epochs} epochs, batch size "
        f"{config.train.batch_size}, loss {config.train.loss}, seed {config.train.seed}, {config.runtime.precision}",
        *([] if contract is None else [f"- Weights: epoch {contract['epoch']}, SHA-256 {contract['weights_sha256']}"]),
        *([] if contract is None else [f"- Preprocessing: {contract['preprocessing']}"]),
        "",
        "## Intended use",
        "",
        f"Masks and single nuclei in Pap-smear images like the training images. {RESEARCH_ONLY}",
        "Evaluate it again before using it with another stain, scanner or magnification.",
        "",
        "## Scores",
        "",
    ]
    for evaluation in run.evaluations:
        summary = evaluation.summary
        lines += [
            f"On {evaluation.name} ({summary['num_images']} images from {summary['num_sources']} sources), "
            f"`{summary['command']}`:",
            "",
            f"| score | mean over images {INTERVAL} |",
            "|---|---|",
        ]
        rows = pixel_rows(summary) + (nucleus_rows(summary) if "nuclei" in summary else [])
        lines += [f"| {heading} | {mean} |" for heading, mean, *_ in rows]
        lines.append("")
    if not run.evaluations:
        lines += ["Not evaluated yet.", ""]
    return "\n".join(lines)


def data_card(run: RunData) -> str:
    """Returns the card of the dataset that a run was trained on."""
    lines = [
        f"# Data card: {run.config.data.root.name}",
        "",
        "| split | images | sources |",
        "|---|---|---|",
        *(f"| {name} | {images} | {sources} |" for name, images, sources in split_counts(run.files)),
        "",
        leak_sentence(run),
        "",
    ]
    audit = run.dataset.get("audit")
    if audit is None:
        lines.append("Not audited.")
    elif not audit.get("findings"):
        lines.append("Audited without findings.")
    else:
        lines += [
            "Findings of the audit:",
            "",
            *(f"- {found['name']}: {found['message']}" for found in audit["findings"]),
        ]
    settings = run.dataset.get("dataset")
    if settings is not None:
        lines += ["", "How it was made:", "", *(f"- {name}: {value}" for name, value in flat_settings(settings))]
    if run.config.data.origin:
        lines += ["", f"Origin of the images: {run.config.data.origin}"]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])
