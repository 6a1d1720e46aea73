"""What a run learns from, on one page: data.txt (counts, spacings, sizes, contrast, what was skipped) and data.png."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.files import written_whole

from .datasets import Cache, Report
from .sheets import captioned, save_png, stacked

#: Thumbnails in a row and in all, and pixels of each.
ACROSS, MOST, PIXELS = 12, 96, 96

#: A scan whose tissue is larger or smaller than the others' (median) by this factor is named: a body among heads, or a
#: header in the wrong unit.
UNLIKE = 2.0


def write(run: str | Path, caches: Sequence[Cache], report: Report = print) -> None:
    """Write data.txt and data.png into a run; what cannot be written is reported and left out."""
    run = Path(run)
    try:
        text = "\n".join(line for cache in caches for line in describe(cache))
        with written_whole(run / "data.txt") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        save_png(stacked([thumbnails(cache) for cache in caches]), run / "data.png")
    except Exception as error:
        report(f"data.txt and data.png cannot be written ({error})")
        return
    for cache in caches:
        for sentence in strange(cache):
            report(f"Warning: {sentence}")
    report(f"what it learns from: {run / 'data.txt'}, {run / 'data.png'}")


def _range(values: Sequence[float]) -> str:
    """Least, median and largest of some numbers."""
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} (median {middle:.3g})"


def describe(cache: Cache) -> list[str]:
    """Lines on the scans of a cache, by modality."""
    lines = []
    for modality in dict.fromkeys(entry["modality"] for entry in cache.entries):
        entries = [entry for entry in cache.entries if entry["modality"] == modality]
        parts = Counter(entry["part"] for entry in entries)
        lines += [
            f"{modality}: {parts['train']} scans to train with, {parts['validation']} held out",
            f"  voxels: {_shapes(entries)}",
            "  spacing, mm: " + "; ".join(_range([e["spacing"][axis] for e in entries]) for axis in range(3)),
            f"  size of the tissue (twice its RMS radius), mm: {_range([e['size'] for e in entries])}",
            f"  intensity that becomes white: {_range([e['window'][1] for e in entries])}",
            f"  median of the tissue, of black 0 and white 1: {_range([e['median'] for e in entries])}",
            f"  with a mask: {sum(bool(e.get('masked')) for e in entries)}; "
            f"with partners: {sum('partners' in e for e in entries)}",
        ]
    lines += [f"Look at: {sentence}" for sentence in strange(cache)]
    if cache.skipped:
        lines.append(f"skipped: {len(cache.skipped)}")
        lines += [f"  {skipped['file']}: {skipped['reason']}" for skipped in cache.skipped]
    return lines


def _shapes(entries: Sequence[dict[str, Any]]) -> str:
    counts = Counter("×".join(map(str, entry["shape"])) for entry in entries)
    named = [f"{shape} ({count})" for shape, count in counts.most_common(4)]
    return ", ".join(named) + (f" and {len(counts) - 4} other shapes" if len(counts) > 4 else "")


def strange(cache: Cache) -> list[str]:
    """Sentences on scans that are unlike the others of their modality."""
    out = []
    for modality in dict.fromkeys(entry["modality"] for entry in cache.entries):
        entries = [entry for entry in cache.entries if entry["modality"] == modality]
        if modality == "any":  # scans of any size, which are all shown at one
            continue
        usual = float(np.median([entry["size"] for entry in entries]))
        odd = [e for e in entries if not usual / UNLIKE <= e["size"] <= usual * UNLIKE]
        if odd:
            first = odd[0]
            out.append(
                f"{len(odd)} of {len(entries)} scans of {modality} show something of another size than "
                f"the others (about "
                f"{usual:.0f} mm), for example {first['file']} ({first['size']:.0f} mm)."
            )
        edges = np.array(cache.shape) * np.array(cache.spacing)
        if not any(entry["loader"] == "published" for entry in entries) and usual > 0.8 * float(edges.min()):
            grid = "×".join(f"{edge:.0f}" for edge in edges)
            out.append(
                f"The model's grid of {grid} mm is small for {modality} (about {usual:.0f} mm); try a larger --spacing."
            )
        elif usual < 0.15 * float(edges.min()):
            grid = "×".join(f"{edge:.0f}" for edge in edges)
            out.append(
                f"The model's grid of {grid} mm is large for {modality} (about {usual:.0f} mm); try a "
                f"smaller --spacing."
            )
    return out


def thumbnails(cache: Cache) -> np.ndarray:
    """Middle slices of up to MOST scans, evenly chosen, held-out ones with a bright line below, H×W×3 uint8."""
    count = min(MOST, len(cache.entries))
    chosen = [cache.entries[i] for i in np.linspace(0, len(cache.entries) - 1, count).round().astype(int)]
    cells = []
    for entry in chosen:
        cube = cache.cubes[entry["row"]]
        plane = cube[cube.shape[0] // 2].T[::-1]
        step = max(1, round(max(plane.shape) / PIXELS))
        plane = np.repeat(
            np.repeat(plane, max(1, PIXELS // max(plane.shape)), 0), max(1, PIXELS // max(plane.shape)), 1
        )
        small = plane[::step, ::step][: PIXELS + 8, : PIXELS + 8]
        cell = np.zeros((PIXELS + 12, PIXELS + 12, 3), np.uint8)
        cell[: small.shape[0], : small.shape[1]] = small[..., None]
        if entry["part"] == "validation":
            cell[-3:-1] = (255, 170, 0)
        cells.append(cell)
    cells += [np.zeros_like(cells[0])] * (-len(cells) % min(ACROSS, len(cells)))
    across = min(ACROSS, len(cells))
    rows = [np.concatenate(cells[i : i + across], 1) for i in range(0, len(cells), across)]
    words = f"{count} of {len(cache.entries)} scans on the model's grid; orange: held out"
    return captioned(np.concatenate(rows, 0), words)
