"""Self-contained HTML pages: no network access, light and dark themes, layouts for desktop, mobile and print."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6875; --line: #d8dee5; --paper: #fff; --mark: #1b6ca8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #9aa7b5; --line: #35414e; --paper: #151b22; --mark: #6db3e8; }
  .figure { background: #fff; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.2rem; }
p, li { max-width: 46rem; }
.lead { color: var(--soft); margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
a { color: var(--mark); }
@media print { nav { display: none; } body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll { overflow: visible; } table { font-size: .78rem; } }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]], *, style: str = "", script: str = "") -> str:
    """Returns an HTML document.

    Args:
      title: heading, plain text.
      lead: a sentence below it, plain text.
      sections: heading (plain text) and content (HTML) of each section.
      style: additional CSS.
      script: HTML of script elements, placed at the end of the page.
    """
    body = "\n".join(
        f'<section id="section-{index}">\n<h2>{html.escape(name)}</h2>\n{content}\n</section>'
        for index, (name, content) in enumerate(sections)
    )
    links = "".join(f'<a href="#section-{index}">{html.escape(name)}</a>' for index, (name, _) in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f'<nav aria-label="sections of this page">{links}</nav>\n{body}\n</main>\n'
        f"{script}\n</body>\n</html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns an HTML table of plain values.

    A wide table scrolls horizontally; its container is focusable so that the arrow keys scroll it.

    Args:
      header: nonempty column names; screen readers announce them with each value.
      rows: values, one sequence per row.
    """
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    label = html.escape("table: " + ", ".join(header))
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">{content}</div>'


def figure(path: Path, *, caption: str) -> str:
    """Returns an HTML figure with an embedded PNG file; the caption also serves as alternative text."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return (
        f'<figure><img class="figure" alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
