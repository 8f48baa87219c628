"""Charts as inline SVG, in the colors of the page's light or dark theme."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, LEFT, RIGHT = 380, 52, 12
CURVE_TOP, CURVE_HEIGHT = 12, 220
BARS_TOP, BARS_HEIGHT = 250, 50
HEIGHT = 340


def reliability_chart(
    curve: Mapping[str, Sequence[float | None]],
    *,
    caption: str,
    observed: str = "nucleus share",
    counted: str = "pixels",
) -> str:
    """Draws a reliability curve above a histogram of the predicted probabilities.

    Args:
      curve: `predicted`, `observed` and `pixels` by bin; bins without pixels have None or NaN.
      caption: plain text below the chart, also its label for screen readers.
      observed: what the vertical axis shows.
      counted: what `pixels` counts.

    Returns:
      HTML of a figure.
    """
    text = html.escape(caption)
    body = _axes(observed, counted) + _curve(curve["predicted"], curve["observed"]) + _bars(curve["pixels"])
    return (
        f'<figure class="chart static"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text}">{body}</svg>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return CURVE_TOP + (1 - share) * CURVE_HEIGHT


def _axes(observed: str, counted: str) -> str:
    parts = [f'<line class="mark" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>']
    for tenth in range(0, 11, 2):
        share = tenth / 10
        parts.append(f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(share)}" y2="{_y(share)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{_y(share) + 4}" text-anchor="end">{share:.1f}</text>')
        parts.append(f'<text x="{_x(share)}" y="{BARS_TOP + BARS_HEIGHT + 16}" text-anchor="middle">{share:.1f}</text>')
    middle, bars = CURVE_TOP + CURVE_HEIGHT / 2, BARS_TOP + BARS_HEIGHT
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{observed}</text>')
    parts.append(f'<text x="{LEFT - 6}" y="{BARS_TOP + BARS_HEIGHT / 2 + 4}" text-anchor="end">{counted}</text>')
    parts.append(f'<text x="{_x(0.5)}" y="{HEIGHT - 6}" text-anchor="middle">predicted probability</text>')
    parts.append(f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{bars}" y2="{bars}"/>')
    return "".join(parts)


def _curve(predicted: Sequence[float | None], observed: Sequence[float | None]) -> str:
    points = [
        (_x(p), _y(o))
        for p, o in zip(predicted, observed, strict=True)
        if p is not None and o is not None and math.isfinite(p + o)
    ]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) if points else "M0,0"
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    return f'<path class="line" d="{path}"/>{dots}'


def _bars(pixels: Sequence[float | None]) -> str:
    """Draws one bar per bin, on a logarithmic scale."""
    logs = [math.log10(1 + (count or 0)) for count in pixels]
    highest = max(logs, default=0) or 1
    bars = []
    for index, (count, value) in enumerate(zip(pixels, logs, strict=True)):
        left, right = _x(index / len(logs)), _x((index + 1) / len(logs))
        height = BARS_HEIGHT * value / highest
        top = BARS_TOP + BARS_HEIGHT - height
        bars.append(
            f'<rect class="bar" x="{left:.1f}" width="{right - left - 1:.1f}" y="{top:.1f}" height="{height:.1f}">'
            f"<title>{count or 0:,.0f} pixels</title></rect>"
        )
    return "".join(bars)
