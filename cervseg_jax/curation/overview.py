"""HTML overview of a dataset: contents, recipe and audit."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.errors import DataError
from cervseg_jax.files import read_json_object, write_text
from cervseg_jax.pages import figure, page, table


def write_overview(path: Path, dataset: Path, summary: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, str]):
    """Writes the overview page.

    Args:
      path: the HTML file; the pictures are in its folder.
      dataset: the dataset's folder; its `manifest.csv`, `dataset.json` and `audit.json` are shown where they exist.
      summary: what `write_statistics` returns.
      pictures: caption by file name.
    """
    sections = [("What it holds", _counts(dataset, summary))]
    sections += [
        (caption.split(":")[0], figure(path.parent / name, caption=caption)) for name, caption in pictures.items()
    ]
    sections += [("Audit", _audit(dataset)), ("How it was made", _recipe(dataset))]
    total = sum(stats["images"] for stats in summary.values())
    lead = f"{total} images in {len(summary)} parts. For research; not for diagnosis."
    write_text(path, page(f"Dataset {dataset.name}", lead, sections))


def _counts(dataset: Path, summary: Mapping[str, Mapping[str, Any]]) -> str:
    manifest = dataset / "manifest.csv"
    groups: dict[str, set[str]] = {}
    for row in read_manifest(manifest) if manifest.is_file() else []:
        groups.setdefault(row["split"], set()).add(row["group"])
    rows = []
    for split, stats in summary.items():
        area = stats["area_px"]
        touching = stats["touching_share"]
        rows.append(
            [
                split,
                stats["images"],
                len(groups[split]) if split in groups else "unknown",
                f"{stats['nuclei']} nuclei" if "nuclei" in stats else f"{stats['regions']} connected regions",
                f"{stats['per_image']['mean']:.1f} ({stats['per_image']['min']}-{stats['per_image']['max']})",
                "unknown" if touching is None else f"{touching:.0%}",
                "none" if area is None else f"{area['p50']:.0f} ({area['p5']:.0f}-{area['p95']:.0f})",
                f"{stats['foreground_mean']:.1%}",
                stats["empty_masks"],
                ", ".join(f"{width}x{height}" for height, width in stats["sizes"][:3])
                + (" ..." if len(stats["sizes"]) > 3 else ""),
            ]
        )
    header = ["part", "images", "groups", "objects", "per image (range)", "touching", "area, px (5-95 %)", "foreground"]
    return table([*header, "empty", "sizes"], rows)


def _audit(dataset: Path) -> str:
    path = dataset / "audit.json"
    if not path.is_file():
        return f"<p>Not audited yet: <code>cervseg-jax audit {html.escape(str(dataset))}</code></p>"
    findings = read_json_object(path).get("findings")
    if not isinstance(findings, list):
        raise DataError(f"{path}: is damaged: it has no list of findings")
    if not findings:
        return "<p>Audited; nothing was found.</p>"
    return table(["finding", "what", "effect on a score"], [[f["name"], f["message"], f["effect"]] for f in findings])


def _recipe(dataset: Path) -> str:
    path = dataset / "dataset.json"
    if not path.is_file():
        return "<p>Unknown: the folder has no dataset.json.</p>"
    settings = read_json_object(path)
    rows = [[name, value if isinstance(value, str | int) else json.dumps(value)] for name, value in settings.items()]
    return table(["setting", "value"], rows)
