"""One eye: surfaces of layers with a fovea, vessels, drusen and other lesions, choroid, as maps over the retina."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from SpatialDiffusionCore.errors import InputError

#: Maps of the eye: mm between their points, and mm from the middle to the rim.
STEP, REACH = 0.02, 5.6


#: Layers from the inside out: name, mm of thickness away from the fovea, share left in the foveal pit, 8-bit intensity.
LAYERS = (
    ("nerve fibers", 0.035, 0.10, 146),
    ("ganglion cells", 0.045, 0.15, 141),
    ("inner plexiform", 0.035, 0.30, 121),
    ("inner nuclear", 0.035, 0.35, 110),
    ("outer plexiform", 0.025, 0.70, 125),
    ("outer nuclear", 0.075, 1.20, 75),
    ("ellipsoid zone", 0.018, 1.0, 205),
    ("outer segments", 0.014, 1.1, 165),
    ("pigment epithelium", 0.025, 1.0, 220),
)


@dataclass
class Eye:
    """One anatomy as maps over (x, y), each N×N with STEP mm between points.

    bruch: z of Bruch's membrane, mm; tops: L+1 surfaces, mm above Bruch's membrane, from the inner limiting membrane to
    the membrane itself; reflectance: L factors of the layers' intensities; vessels: radius (mm) of the vessel at each
    point, 0 between them; deep: flow of deep capillaries, 0…1; choroid: texture at points 0.04 mm apart laterally and
    0.016 mm in depth; foci: bright or dark bodies (x, y, mm above Bruch's membrane, radius, radius along depth,
    intensity).
    """

    bruch: np.ndarray
    tops: np.ndarray
    reflectance: np.ndarray
    vessels: np.ndarray
    deep: np.ndarray
    choroid: np.ndarray
    foci: np.ndarray

    def at(self, maps: np.ndarray, x: np.ndarray, y: np.ndarray, order: int = 1) -> np.ndarray:
        """Values of one N×N map, or several, at points (mm)."""
        places = np.stack([(x + REACH) / STEP, (y + REACH) / STEP])
        stack = [maps] if maps.ndim == 2 else maps
        values = [ndimage.map_coordinates(m, places, order=order, mode="nearest") for m in stack]
        return values[0] if maps.ndim == 2 else np.stack(values)


def smooth_noise(random: np.random.Generator, shape: Sequence[int], sigma: float | Sequence[float]) -> np.ndarray:
    """Gaussian noise of deviation 1 with a correlation length of sigma points, made on a coarse grid where possible."""
    coarse = max(1, int(np.min(sigma) / 3))
    small = tuple(n // coarse + 2 for n in shape)
    noise = random.standard_normal(small).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, np.array(sigma) / coarse, mode="wrap")
    if coarse > 1:
        places = np.meshgrid(*(np.arange(n) / coarse for n in shape), indexing="ij")
        noise = ndimage.map_coordinates(noise, places, order=1)
    return noise / noise.std()


def _lattice() -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(-REACH, REACH + STEP / 2, STEP, dtype=np.float32)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def make_eye(seed: int, graphs: Sequence[str | Path] = ()) -> Eye:
    """A random anatomy. graphs: vessel graph files, of which one is put around the fovea."""
    random = np.random.default_rng([seed, 1])
    x, y = _lattice()
    r = np.hypot(x * random.uniform(0.9, 1.1), y)
    # The pit and the rim around it; nerve fibers thicken toward the disc (here at x > 0) and along the arcades.
    pit = np.exp(-((r / random.uniform(0.35, 0.6)) ** 2))
    rim = 1 + random.uniform(0.1, 0.25) * np.exp(-(((r - 1.1) / 0.6) ** 2)) - random.uniform(0, 0.1) * (r / 3)
    fibers = random.uniform(0.3, 1.3) / (1 + np.exp(-(x - 1.5) / 0.8)) + random.uniform(0.2, 0.9) * (
        np.exp(-(((np.abs(y) - 0.4 * np.maximum(x, 0) - 1.6) / 0.8) ** 2))
    )
    total = random.uniform(0.9, 1.12)
    thickness, reflectance = [], []
    for name, mm, left, _ in LAYERS:
        share = 1 + (left - 1) * pit
        wave = 1 + 0.05 * smooth_noise(random, x.shape, 40)
        layer = mm * total * share * wave
        if name == "nerve fibers":
            layer = layer * (0.4 + fibers) * (1 - 0.9 * pit)
        elif name in ("ganglion cells", "inner plexiform", "inner nuclear"):
            layer = layer * rim
        thickness.append(layer)
        reflectance.append(random.uniform(0.95, 1.05) + 0.04 * smooth_noise(random, x.shape, random.uniform(8, 50)))
    # Drusen lift the pigment epithelium and what lies on it.
    lifted = np.zeros_like(x)
    for _ in range(int(random.choice([0, 3, 12, 30]))):
        cx, cy = random.normal(0, 1.6, 2)
        width = random.uniform(0.03, 0.16)
        bump = random.uniform(0.012, 0.07) * np.exp(-0.5 * (((x - cx) ** 2 + (y - cy) ** 2) / width**2) ** 1.5)
        lifted = np.maximum(lifted, bump)
    tops = np.concatenate([np.cumsum(np.array(thickness)[::-1], 0)[::-1], np.zeros((1, *x.shape))]) + lifted
    tops[-1] = 0.0
    curve = random.uniform(0.0, 1 / 25)
    bruch = -0.5 * curve * (x**2 + random.uniform(0.7, 1.3) * y**2) + 0.012 * smooth_noise(random, x.shape, 70)
    vessels = _vessels(random, x, y, graphs)
    choroid = smooth_noise(random, (281, 281, 24), (1.6, 1.6, 1.2))
    foci = []
    for _ in range(int(random.choice([0, 0, 4, 12]))):
        bright = random.random() < 0.6
        size = random.uniform(0.015, 0.04) if bright else random.uniform(0.04, 0.2)
        foci.append(
            [
                *random.normal(0, 1.5, 2),
                random.uniform(0.06, 0.22),
                size,
                size * random.uniform(0.4, 1.0),
                random.uniform(190, 250) if bright else random.uniform(10, 40),
            ]
        )
    return Eye(
        bruch.astype(np.float32),
        tops.astype(np.float32),
        np.array(reflectance, np.float32),
        vessels,
        _capillaries(random, x, y, 0.055, random.uniform(0.2, 0.35)),
        choroid,
        np.array(foci).reshape(-1, 6),
    )


def _vessels(random: np.random.Generator, x: np.ndarray, y: np.ndarray, graphs: Sequence[str | Path]) -> np.ndarray:
    """Radius (mm) of the superficial vessel at each point, 0 between vessels."""
    segments = _grow(random)
    if len(graphs):
        graph = read_graph(graphs[int(random.integers(len(graphs)))])
        angle = random.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        graph[:, :2], graph[:, 2:4] = graph[:, :2] @ turn.T, graph[:, 2:4] @ turn.T
        middle = (segments[:, :2] + segments[:, 2:4]) / 2
        inside = np.abs(middle @ turn).max(1) < 1.5
        graph[:, 4] *= random.uniform(1.0, 1.5)
        segments = np.concatenate([segments[~inside | (segments[:, 4] > 0.03)], graph])
    out = np.zeros_like(x)
    steps = np.linspace(0, 1, 5)
    for low, high in ((0.0, 0.005), (0.005, 0.01), (0.01, 0.02), (0.02, 0.035), (0.035, 0.05), (0.05, 0.2)):
        chosen = segments[(segments[:, 4] > low) & (segments[:, 4] <= high)]
        if not len(chosen):
            continue
        points = (chosen[:, None, :2] * (1 - steps[:, None]) + chosen[:, None, 2:4] * steps[:, None]).reshape(-1, 2)
        index = np.round((points + REACH) / STEP).astype(int)
        keep = ((index >= 0) & (index < len(x))).all(1)
        free = np.ones(x.shape, bool)
        free[tuple(index[keep].T)] = False
        radius = float(chosen[:, 4].mean())
        # A vessel's edge is soft over one point of the map.
        cover = np.clip((radius + STEP / 2 - ndimage.distance_transform_edt(free) * STEP) / STEP, 0, 1)
        out = np.maximum(out, radius * cover)
    return out.astype(np.float32)


def _capillaries(random: np.random.Generator, x: np.ndarray, y: np.ndarray, distance: float, free: float) -> np.ndarray:
    """0…1 map of a capillary mesh: edges between the cells of random points, none within ``free`` mm of the fovea."""
    count = int((2 * REACH) ** 2 / (2.2 * distance) ** 2)
    points = random.uniform(-REACH, REACH, (count, 2))
    near, _ = cKDTree(points).query(np.column_stack([x.ravel(), y.ravel()]), k=2)
    edge = np.clip(1.3 - (near[:, 1] - near[:, 0]) / 0.022, 0, 1).reshape(x.shape)
    rim = free * (1 + 0.15 * np.sin(3 * np.arctan2(y, x) + random.uniform(0, 6)))
    return (edge * np.clip((np.hypot(x, y) - rim) / 0.05, 0, 1)).astype(np.float32)


def read_graph(path: str | Path) -> np.ndarray:
    """Segments of a vessel graph: S×5 (x1, y1, x2, y2, radius), mm, centered."""
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    if not rows or len(rows[0]) != 3:
        raise InputError(f"{path} is not a vessel graph with the columns node1, node2, radius.")
    nodes = [[[float(v) for v in text.strip("[] ").split()][:2] for text in row[:2]] for row in rows]
    ends = (np.array(nodes).reshape(-1, 4) - 0.5) * 3.0
    return np.column_stack([ends, [3.0 * float(row[2]) for row in rows]])


def _grow(random: np.random.Generator) -> np.ndarray:
    """Segments (x1, y1, x2, y2, radius; mm) of arteries and veins: arcades that come from the disc (at x > 0) and go
    round the fovea, and branches of them that run toward the fovea and end before it, or outward."""
    segments, twigs = [], []
    step = 0.06
    disc = np.array([random.uniform(4.0, 4.8), random.uniform(-0.3, 0.6)])
    for side in (-1, 1):
        for _ in range(int(random.integers(2, 4))):
            # Half an ellipse from the disc to beyond the fovea, wavy.
            along = np.linspace(0, 1, 180)
            height, end = random.uniform(1.4, 3.4), random.uniform(-7, -3)
            x = disc[0] + (end - disc[0]) * along + 0.12 * smooth_noise(random, along.shape, 12)
            y = disc[1] + side * height * np.sin(np.pi * along ** random.uniform(0.55, 0.9)) ** 0.8
            y = y + 0.12 * smooth_noise(random, along.shape, 10)
            radius = random.uniform(0.04, 0.075) * (1 - 0.6 * along)
            path = np.column_stack([x, y])
            segments += [[*p, *q, r] for p, q, r in zip(path[:-1], path[1:], radius)]
            for index in random.integers(5, 175, 22):
                twigs.append(
                    (path[index], radius[index] * random.uniform(0.25, 0.7), 0, 1.0 if random.random() < 0.6 else -1.0)
                )
    for _ in range(int(random.integers(2, 6))):  # from the disc straight to the fovea
        twigs.append((disc + random.normal(0, 0.3, 2), random.uniform(0.012, 0.025), 0, 1.0))
    while twigs and len(segments) < 9000:
        place, radius, order, inward = twigs.pop(int(random.integers(len(twigs))))
        bias, direction = random.normal(0, 0.6), None
        end = random.uniform(0.25, 0.7)
        for _ in range(int(random.uniform(10, 70))):
            distance = np.hypot(*place)
            if radius < 0.004 or np.abs(place).max() > REACH + 0.3 or (inward > 0 and distance < end):
                break
            angle = np.arctan2(-inward * place[1], -inward * place[0]) + bias
            wanted = np.array([np.cos(angle), np.sin(angle)]) + random.normal(0, 0.9, 2)
            direction = wanted if direction is None else 0.85 * direction + 0.15 * wanted
            direction = direction / np.hypot(*direction)
            after = place + step * direction
            segments.append([*place, *after, radius])
            place, radius = after, radius * 0.992
            if order < 3 and random.random() < 0.07:
                share = random.uniform(0.5, 0.85)
                twigs.append((place, radius * share, order + 1, inward))
                radius *= 1 - 0.3 * share**2
                bias = random.normal(0, 0.6)
    return np.array(segments)
