"""The motion of a series drawn as SVG: translations, rotations, framewise displacement; doubtful frames are marked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from .motion import SeriesRegistration

WIDTH, PANEL, LEFT, RIGHT, GAP = 960, 150, 64, 16, 44
#: Okabe and Ito's colors, which color-blind readers tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73")


def plot(result: SeriesRegistration) -> str:
    """An SVG document."""
    six, displacement = result.parameters, result.framewise_displacement
    axes = ("x (right)", "y (front)", "z (up)")
    panels = (
        ("Translation (mm)", six[:, :3].T, axes),
        ("Rotation (°)", np.degrees(six[:, 3:]).T, axes),
        ("Framewise displacement (mm)", displacement[None], ("",)),
    )
    height = 56 + len(panels) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(_title(result))}</text>',
    ]
    for number, (title, lines, labels) in enumerate(panels):
        parts += _panel(54 + number * (PANEL + GAP), title, np.asarray(lines), labels, sorted(result.doubts))
    last = height - 8
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{last}" text-anchor="middle">frame</text></svg>')
    return "\n".join(parts) + "\n"


def _title(result: SeriesRegistration) -> str:
    doubtful = f", {len(result.doubts)} doubtful (red)" if result.doubts else ""
    return f"Motion of {result.series.name}: {len(result.matrices)} frames, reference {result.reference}{doubtful}"


def _panel(top: float, title: str, lines: np.ndarray, labels: Sequence[str], doubtful: Sequence[int]) -> list[str]:
    count = lines.shape[1]
    known = lines[np.isfinite(lines)]
    # Zero is always shown: it is where nothing moved.
    low, high = (min(0.0, float(known.min())), max(0.0, float(known.max()))) if known.size else (0.0, 0.0)
    step = _tick((high - low) or 1e-3)
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step + (step if high == low else 0)

    def place(index, value):
        x = LEFT + (WIDTH - LEFT - RIGHT) * index / max(count - 1, 1)
        return x, top + PANEL * (1 - (value - low) / (high - low))

    parts = [f'<text x="{LEFT}" y="{top - 6}">{escape(title)}</text>']
    for index in doubtful:
        x = place(index, low)[0]
        parts.append(
            f'<line class="doubtful" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + PANEL}" stroke="#d00" '
            'stroke-width="3" opacity="0.35"/>'
        )
    for tick in np.arange(low, high + step / 2, step):
        y = place(0, tick)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">'
            f"{round(tick / step) * step + 0.0:.3g}</text>"
        )
    for index in range(0, count, max(1, int(_tick(count)))):
        x = place(index, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{top + PANEL + 14}" text-anchor="middle" fill="#555">{index}</text>')
    for number, (line, label) in enumerate(zip(lines, labels)):
        points = " ".join("{:.1f},{:.1f}".format(*place(i, v)) for i, v in enumerate(line) if np.isfinite(v))
        color = COLORS[number]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{LEFT + 240 + 90 * number}" y="{top - 6}" fill="{color}">{escape(label)}</text>')
    return parts


def _tick(reach: float) -> float:
    """A round step that cuts ``reach`` into four to ten parts."""
    power = 10.0 ** np.floor(np.log10(reach / 4))
    return float(max(step * power for step in (1, 2, 5) if step * power <= reach / 4))
