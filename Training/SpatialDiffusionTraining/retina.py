"""Phantom eyes: OCT and OCTA scans with known transforms between them, for training and tests.

    python -m SpatialDiffusionTraining.retina --kind oct --out DIR --count 100 --seed 0

An *eye* is one anatomy: surfaces of layers with a fovea, vessels, drusen and other lesions, choroid. A *scan* of it is
an acquisition: field of view, raster (any turn about the depth axis, so orthogonal rasters too), tilt, offset, scale,
small shear, speckle, and what goes wrong: motion from B-scan to B-scan, doubling, stretched and blinked lines, banding,
shadow, defocus. Two scans of one eye are two acquisitions, not one image warped twice, and the transform between them
is known.

Eye coordinates: (x, y) mm from the fovea, z mm deeper than Bruch's membrane there. Scan arrays have the axes (A-scan,
B-scan, depth) and a header of spacings only. Intensities, layers and correlations follow real scans (8 bit; LAYERS,
SPECKLE); what is random is drawn within ranges from the literature on retinal imaging. Vessel graphs (CSV files of
node1, node2, radius in units of 3 mm) are used around the fovea where given; all other vessels are grown.
"""
from __future__ import annotations

import argparse
import csv
import gzip
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial.volume import Volume
from SpatialDiffusionCore.spatial.volume_file import save

from . import command, datasets

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
VITREOUS, NOISE = 1.0, 5.0

#: mm below Bruch's membrane → intensity of the choroid's decay.
CHOROID = ((0.0, 180), (0.02, 138), (0.06, 110), (0.116, 64), (0.232, 30), (0.35, 22), (0.6, 12), (1.0, 6),
           (2.0, 3))

#: Speckle: coefficient of variation in a layer, and correlation of neighbors along (A-scans, B-scans, depth).
SPECKLE = 0.12, (0.70, 0.16, 0.83)


# ------------------------------------------------------------------------------------------------ the eye
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

    def at(self, maps, x, y, order=1):
        """Values of one N×N map, or several, at points (mm)."""
        places = np.stack([(x + REACH) / STEP, (y + REACH) / STEP])
        stack = [maps] if maps.ndim == 2 else maps
        values = [ndimage.map_coordinates(m, places, order=order, mode="nearest") for m in stack]
        return values[0] if maps.ndim == 2 else np.stack(values)


def _smooth_noise(random, shape, sigma):
    """Gaussian noise of deviation 1 with a correlation length of sigma points, made on a coarse grid where possible."""
    coarse = max(1, int(np.min(sigma) / 3))
    small = tuple(n // coarse + 2 for n in shape)
    noise = random.standard_normal(small).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, np.array(sigma) / coarse, mode="wrap")
    if coarse > 1:
        places = np.meshgrid(*(np.arange(n) / coarse for n in shape), indexing="ij")
        noise = ndimage.map_coordinates(noise, places, order=1)
    return noise / noise.std()


def _lattice():
    axis = np.arange(-REACH, REACH + STEP / 2, STEP, dtype=np.float32)
    return np.meshgrid(axis, axis, indexing="ij")


def make_eye(seed: int, graphs=()) -> Eye:
    """A random anatomy. graphs: vessel graph files, of which one is put around the fovea."""
    random = np.random.default_rng([seed, 1])
    x, y = _lattice()
    r = np.hypot(x * random.uniform(0.9, 1.1), y)
    # The pit and the rim around it; nerve fibers thicken toward the disc (here at x > 0) and along the arcades.
    pit = np.exp(-((r / random.uniform(0.35, 0.6)) ** 2))
    rim = 1 + random.uniform(0.1, 0.25) * np.exp(-(((r - 1.1) / 0.6) ** 2)) - random.uniform(0, 0.1) * (r / 3)
    fibers = random.uniform(0.3, 1.3) / (1 + np.exp(-(x - 1.5) / 0.8)) + random.uniform(0.2, 0.9) * (
        np.exp(-(((np.abs(y) - 0.4 * np.maximum(x, 0) - 1.6) / 0.8) ** 2)))
    total = random.uniform(0.9, 1.12)
    thickness, reflectance = [], []
    for name, mm, left, _ in LAYERS:
        share = 1 + (left - 1) * pit
        wave = 1 + 0.05 * _smooth_noise(random, x.shape, 40)
        layer = mm * total * share * wave
        if name == "nerve fibers":
            layer = layer * (0.4 + fibers) * (1 - 0.9 * pit)
        elif name in ("ganglion cells", "inner plexiform", "inner nuclear"):
            layer = layer * rim
        thickness.append(layer)
        reflectance.append(random.uniform(0.95, 1.05) + 0.04 * _smooth_noise(random, x.shape, random.uniform(8, 50)))
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
    bruch = -0.5 * curve * (x**2 + random.uniform(0.7, 1.3) * y**2) + 0.012 * _smooth_noise(random, x.shape, 70)
    vessels = _vessels(random, x, y, graphs)
    choroid = _smooth_noise(random, (281, 281, 24), (1.6, 1.6, 1.2))
    foci = []
    for _ in range(int(random.choice([0, 0, 4, 12]))):
        bright = random.random() < 0.6
        size = random.uniform(0.015, 0.04) if bright else random.uniform(0.04, 0.2)
        foci.append([*random.normal(0, 1.5, 2), random.uniform(0.06, 0.22), size, size * random.uniform(0.4, 1.0),
                     random.uniform(190, 250) if bright else random.uniform(10, 40)])
    return Eye(bruch.astype(np.float32), tops.astype(np.float32), np.array(reflectance, np.float32), vessels,
               _capillaries(random, x, y, 0.055, random.uniform(0.2, 0.35)), choroid,
               np.array(foci).reshape(-1, 6))


def read_graph(path) -> np.ndarray:
    """Segments of a vessel graph: S×5 (x1, y1, x2, y2, radius), mm, centered."""
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    if not rows or len(rows[0]) != 3:
        raise InputError(f"{path} is not a vessel graph with the columns node1, node2, radius.")
    nodes = [[[float(v) for v in text.strip("[] ").split()][:2] for text in row[:2]] for row in rows]
    ends = (np.array(nodes).reshape(-1, 4) - 0.5) * 3.0
    return np.column_stack([ends, [3.0 * float(row[2]) for row in rows]])


def _grow(random) -> np.ndarray:
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
            x = disc[0] + (end - disc[0]) * along + 0.12 * _smooth_noise(random, along.shape, 12)
            y = disc[1] + side * height * np.sin(np.pi * along ** random.uniform(0.55, 0.9)) ** 0.8
            y = y + 0.12 * _smooth_noise(random, along.shape, 10)
            radius = random.uniform(0.04, 0.075) * (1 - 0.6 * along)
            path = np.column_stack([x, y])
            segments += [[*p, *q, r] for p, q, r in zip(path[:-1], path[1:], radius)]
            for index in random.integers(5, 175, 22):
                twigs.append((path[index], radius[index] * random.uniform(0.25, 0.7), 0,
                              1.0 if random.random() < 0.6 else -1.0))
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


def _vessels(random, x, y, graphs):
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


def _capillaries(random, x, y, distance, free):
    """0…1 map of a capillary mesh: edges between the cells of random points, none within ``free`` mm of the fovea."""
    count = int((2 * REACH) ** 2 / (2.2 * distance) ** 2)
    points = random.uniform(-REACH, REACH, (count, 2))
    near, _ = cKDTree(points).query(np.column_stack([x.ravel(), y.ravel()]), k=2)
    edge = np.clip(1.3 - (near[:, 1] - near[:, 0]) / 0.022, 0, 1).reshape(x.shape)
    rim = free * (1 + 0.15 * np.sin(3 * np.arctan2(y, x) + random.uniform(0, 6)))
    return (edge * np.clip((np.hypot(x, y) - rim) / 0.05, 0, 1)).astype(np.float32)


# ----------------------------------------------------------------------------------------------- the scan
@dataclass
class Acquisition:
    """How an eye is scanned. Lengths in mm, angles in degrees.

    extent: lateral field of view along A-scans and B-scans; shape: (A-scans, B-scans, depth pixels); axial: mm per
    pixel. turn, shift, scale (2), shear: of the raster on the retina; tilt (2): along its axes; offset: mm from the
    array's start to Bruch's membrane below the fovea. speckle: factor of the measured one.

    Artifacts, 0 for none. motion: axial jumps between neighboring B-scans, pixels; saccades: number of slabs of B-scans
    that are shifted laterally; doubling: weight of a shifted copy; stretch: number of slabs that repeat a B-scan;
    banding: deviation of the B-scans' brightness; blink: share of the B-scans that are black; shadow: largest share of
    the light that is lost; defocus: pixels of blur; crop: share of the lateral field that is black.
    """

    extent: tuple = (5.7, 5.7)
    shape: tuple = (160, 96, 192)
    axial: float = 0.01
    turn: float = 0.0
    shift: tuple = (0.0, 0.0)
    scale: tuple = (1.0, 1.0)
    shear: float = 0.0
    tilt: tuple = (0.0, 0.0)
    offset: float = 1.0
    speckle: float = 1.0
    motion: float = 0.6
    saccades: int = 0
    doubling: float = 0.0
    stretch: int = 0
    banding: float = 0.05
    blink: float = 0.0
    shadow: float = 0.0
    defocus: float = 0.0
    crop: float = 0.0
    seed: int = field(default=0, repr=False)

    @property
    def spacing(self) -> np.ndarray:
        """mm between A-scans, B-scans and depth pixels."""
        return np.array([self.extent[0] / self.shape[0], self.extent[1] / self.shape[1], self.axial])

    @property
    def header(self) -> np.ndarray:
        """Voxel → world of the file: spacings only."""
        return np.diag([*self.spacing, 1.0])

    def to_eye(self) -> np.ndarray:
        """World of the file (mm) → eye coordinates, 4×4."""
        angle = np.radians(self.turn)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        lateral = turn @ np.array([[self.scale[0], self.shear], [0, self.scale[1]]])
        matrix = np.eye(4)
        matrix[:2, :2] = lateral
        matrix[2, :2] = -np.tan(np.radians(self.tilt))
        middle = (np.array(self.shape[:2]) - 1) / 2 * self.spacing[:2]
        matrix[:2, 3] = np.array(self.shift) - lateral @ middle
        matrix[2, 3] = -self.offset - matrix[2, :2] @ middle
        return matrix


#: What a healthy session looks like, and what may go wrong, each with its probability: name → (probability, low, high).
TROUBLES = {
    "motion": (0.3, 1.0, 4.0), "saccades": (0.3, 1, 4), "doubling": (0.12, 0.15, 0.4), "stretch": (0.12, 1, 4),
    "banding": (0.5, 0.05, 0.23), "blink": (0.1, 0.02, 0.1), "shadow": (0.25, 0.3, 0.8), "defocus": (0.25, 0.5, 1.5),
    "crop": (0.2, 0.1, 0.35),
}


def draw_acquisition(random, kind: str = "oct", turn: float = 180.0, troubles: bool = True, near=None) -> Acquisition:
    """A random acquisition; ``turn``: largest angle of the raster in degrees. ``near``: an acquisition of the same eye,
    whose field of view is then shifted by at most 1.2 mm against it."""
    spread = random.uniform(3.0, 6.4) if kind == "octa" else random.uniform(4.3, 6.8)
    fov = (spread, spread * random.uniform(0.75, 1.0))
    shape = (int(random.integers(112, 192)), int(random.integers(56, 128)), int(random.integers(144, 208)))
    axial = random.uniform(1.7, 2.4) / shape[2]
    angle = random.uniform(-turn, turn)
    if random.random() < 0.25 and turn >= 90:
        angle = 90.0 * random.choice([-1, 1]) + random.uniform(-5, 5)  # the orthogonal raster
    middle = np.zeros(2) if near is None else np.array(near.shift)
    acquisition = Acquisition(
        extent=fov, shape=shape, axial=axial, turn=float(angle), tilt=tuple(random.normal(0, 2.5, 2).clip(-6, 6)),
        shift=tuple(np.clip(middle + random.uniform(-0.85, 0.85, 2), -1.8, 1.8)),
        scale=tuple(random.uniform(0.94, 1.06) * random.uniform(0.98, 1.02, 2)), shear=random.uniform(-0.03, 0.03),
        offset=axial * shape[2] * random.uniform(0.4, 0.65), speckle=random.uniform(0.8, 2.5),
        motion=random.uniform(0.2, 1.0), banding=random.uniform(0.0, 0.05), seed=int(random.integers(2**31)),
    )
    if troubles:
        for name, (probability, low, high) in TROUBLES.items():
            if random.random() < probability:
                value = random.uniform(low, high)
                value = int(round(value)) if isinstance(low, int) else float(value)
                acquisition = replace(acquisition, **{name: value})
    return acquisition


def scan(eye: Eye, acquisition: Acquisition, kind: str = "oct") -> Volume:
    """The volume (uint8, axes A-scan, B-scan, depth) of an acquisition. kind: "oct" or "octa"."""
    if kind not in ("oct", "octa"):
        raise InputError(f"Unknown kind {kind!r}; choose oct or octa.")
    q = acquisition
    random = np.random.default_rng([q.seed, 2])
    fast, slow, depth = q.shape
    x, y, down = _positions(q, random)
    bruch = eye.at(eye.bruch, x, y) + down
    tops = bruch - eye.at(eye.tops, x, y)
    pixel = np.arange(depth, dtype=np.float32) * np.float32(q.axial)
    below = pixel - bruch[..., None].astype(np.float32)  # mm below Bruch's membrane, A×B×K
    radius = eye.at(eye.vessels, x, y)
    render = _structure if kind == "oct" else _flow
    volume = render(eye, q, x, y, below, tops, radius, pixel, random)
    return Volume(_spoil(volume, q, random), q.header, f"{kind} phantom")


def _positions(q: Acquisition, random):
    """Eye coordinates x, y (A×B) of the A-scans, and mm by which the axial position is off (A×B)."""
    fast, slow, _ = q.shape
    lines = np.arange(slow, dtype=float)
    for _ in range(q.stretch):
        length = int(random.integers(3, max(4, slow // 12)))
        start = int(random.integers(0, slow - length))
        lines[start : start + length] = lines[start]
    drift = ndimage.gaussian_filter1d(random.standard_normal((3, slow)), slow / 8, axis=1)
    drift /= drift.std(axis=1, keepdims=True) + 1e-9
    aside = 0.015 * drift[:2] * min(q.motion, 2)
    for _ in range(q.saccades):
        length = int(random.integers(3, max(4, slow // 6)))
        start = int(random.integers(0, slow - length))
        aside[:, start : start + length] += random.normal(0, 0.12, (2, 1))
    jumps = random.standard_normal(slow) * q.motion / 1.13  # |difference of two| is 1.13 deviations on average
    axial = (jumps / np.sqrt(2) + 2.0 * q.motion * drift[2]) * q.axial
    # An affine part of the motion would be a part of the transform: it is taken out.
    place = np.stack([np.ones(slow), np.arange(slow) - (slow - 1) / 2])
    fit = np.linalg.lstsq(place.T, np.vstack([aside, axial]).T, rcond=None)[0]
    aside, axial = aside - (place.T @ fit[:, :2]).T, axial - place.T @ fit[:, 2]
    first, second = np.meshgrid(np.arange(fast), lines, indexing="ij")
    where = np.stack([first * q.spacing[0], second * q.spacing[1]])
    matrix = q.to_eye()
    x, y = np.tensordot(matrix[:2, :2], where, 1) + matrix[:2, 3, None, None]
    # Depth of the eye's z = 0 in the array: z = matrix[2]·(a, b, d, 1), so d = −(tilt·(a, b) + offset) there.
    down = -(np.tensordot(matrix[2, :2], where, 1) + matrix[2, 3]) + axial
    return x + aside[0], y + aside[1], down


def _structure(eye, q, x, y, below, tops, radius, pixel, random):
    """OCT intensities, 0…255."""
    surfaces = tops.astype(np.float32)[..., None]
    soft = np.float32(1 / max(0.006, q.axial))
    reflectance = eye.at(eye.reflectance, x, y)
    values = [np.full(x.shape, VITREOUS)] + [r * layer[3] for r, layer in zip(reflectance, LAYERS)]
    values += [np.full(x.shape, CHOROID[0][1])]
    volume = np.full(below.shape, VITREOUS, np.float32)
    for surface, inner, outer in zip(surfaces, values[:-1], values[1:]):
        edge = np.clip((pixel - surface) * soft + 0.5, 0, 1)
        volume += edge * (outer - inner)[..., None].astype(np.float32)
    depths, curve = np.array(CHOROID).T
    deeper = below > 0
    profile = np.interp(below[deeper], depths, curve)
    a, b, _ = np.nonzero(deeper)
    texture = ndimage.map_coordinates(eye.choroid, np.stack([
        (x[a, b] + REACH) / 0.04, (y[a, b] + REACH) / 0.04, below[deeper] / 0.016]), order=1, mode="reflect")
    volume[deeper] = profile * np.maximum(1 + 0.25 * texture * np.clip(below[deeper] / 0.03, 0, 1), 0.2)
    for fx, fy, above, size, height, value in eye.foci:
        far = ((x - fx) ** 2 + (y - fy) ** 2) / size**2
        for i, j in np.argwhere(far < 1):
            inside = (below[i, j] + above) ** 2 / height**2 + far[i, j] < 1
            volume[i, j, inside] = value
    # Vessels lie under the nerve fibers; light that they absorb is missing below them.
    body = np.clip(radius / 0.045, 0, 1)[..., None].astype(np.float32)
    middle = (tops[0] + 0.025 + radius)[..., None].astype(np.float32)
    lumen = np.clip(1.3 - np.abs(pixel - middle) / (radius[..., None].astype(np.float32) + 0.008), 0, 1)
    volume += lumen * body * (165 - volume) * (volume > 20)
    shade = np.clip((pixel - middle) / 0.03, 0, 1) * np.float32(random.uniform(0.45, 0.75)) * body
    volume = VITREOUS + (volume - VITREOUS) * (1 - shade)
    return volume


def _flow(eye, q, x, y, below, tops, radius, pixel, random):
    """OCTA intensities, 0…255: vessels, their tails, and the noise of still tissue."""
    still = np.float32(random.uniform(10, 28))
    inner, outer = tops[0][..., None].astype(np.float32), tops[3][..., None].astype(np.float32)
    inside = np.clip((pixel - inner) / 0.01, 0, 1)
    volume = VITREOUS + inside * still * np.exp(-np.maximum(below, 0) / 0.25)
    large = np.clip(radius / 0.01, 0, 1) ** 0.5
    superficial = eye.at(eye.deep[::-1, ::-1], x, y) * 0.45 * np.clip((np.hypot(x, y) - 0.25) / 0.1, 0, 1)
    flow = np.maximum(large, superficial)[..., None].astype(np.float32)
    middle = (tops[1] + 0.01)[..., None].astype(np.float32)
    thick = np.maximum(radius, 0.014)[..., None].astype(np.float32)
    band = np.clip(1.5 - np.abs(pixel - middle) / thick, 0, 1)
    tail = np.clip((pixel - middle) / 0.02, 0, 1) * np.exp(-np.maximum(pixel - middle, 0) / 0.18)
    volume += flow * (200 * band + np.float32(random.uniform(30, 80)) * large[..., None] * tail)
    deep = eye.at(eye.deep, x, y)[..., None].astype(np.float32)
    volume += 130 * deep * np.clip(1.5 - np.abs(pixel - outer - 0.02) / 0.016, 0, 1)
    # Below the pigment epithelium: the choriocapillaris, grainy, and projections of the vessels on it.
    near = (below > -0.035) & (below < 0.08)
    a, b, _ = np.nonzero(near)
    grain = ndimage.map_coordinates(eye.choroid, np.stack([
        (x[a, b] + REACH) / 0.04, (y[a, b] + REACH) / 0.04, np.abs(below[near]) / 0.016]), order=1, mode="reflect")
    volume[near] += np.clip(85 + 45 * grain, 0, 200) * np.clip(1 - np.abs(below[near] - 0.02) / 0.06, 0, 1)
    return volume.astype(np.float32)


def _spoil(volume, q: Acquisition, random) -> np.ndarray:
    """Speckle and what goes wrong in an acquisition; 8 bit."""
    fast, slow, _ = volume.shape
    if q.doubling:
        move = np.round(random.uniform(0.03, 0.1, 2) * [fast, slow] * random.choice([-1, 1], 2)).astype(int)
        copy = np.roll(volume, move, axis=(0, 1))
        volume = (1 - q.doubling) * volume + q.doubling * copy
    if q.defocus:
        volume = ndimage.gaussian_filter(volume, (q.defocus, 0.3 * q.defocus, 0.3 * q.defocus))
        volume *= 1 - 0.15 * q.defocus
    if q.shadow:
        dark = _smooth_noise(random, (24, 24), 3.0)
        dark = ndimage.zoom(dark, (fast / 24, slow / 24), order=1)[:fast, :slow]
        volume *= (1 - q.shadow * np.clip(0.7 * dark - 0.2, 0, 1))[..., None].astype(np.float32)
    volume = volume * speckle(random, volume.shape, q.speckle)
    volume += NOISE * (random.standard_exponential(volume.shape, dtype=np.float32) - np.minimum(volume / 50, 1))
    gain = np.exp(q.banding * random.standard_normal(slow)).astype(np.float32)
    if q.blink:
        length = max(1, int(round(q.blink * slow)))
        start = int(random.integers(0, slow - length + 1))
        gain[start : start + length] = 0.04
    volume *= gain[None, :, None]
    if q.crop:
        axis = int(random.integers(2))
        length = int(q.crop * volume.shape[axis])
        part = [slice(None)] * 3
        part[axis] = slice(0, length) if random.random() < 0.5 else slice(volume.shape[axis] - length, None)
        volume[tuple(part)] = 0
    return np.clip(np.round(volume), 0, 255).astype(np.uint8)


def speckle(random, shape, strength: float = 1.0) -> np.ndarray:
    """Factors of mean 1 with the measured coefficient of variation (times ``strength``) and neighbor correlations."""
    variation, correlations = SPECKLE
    noise = random.standard_normal(shape, dtype=np.float32)
    for axis, wanted in enumerate(correlations):
        noise = ndimage.correlate1d(noise, _taps(wanted), axis=axis, mode="wrap")
    return np.maximum(1 + variation * strength * noise, 0)


def _taps(correlation: float) -> np.ndarray:
    """A symmetric Gaussian filter after which neighbors of white noise (deviation 1, kept) correlate by so much."""
    from scipy.optimize import brentq

    def taps(sigma):
        weights = np.exp(-0.5 * (np.arange(-6, 7) / sigma) ** 2)
        return weights / np.sqrt((weights**2).sum())

    return taps(brentq(lambda s: (taps(s)[1:] * taps(s)[:-1]).sum() - correlation, 0.05, 4.0)).astype(np.float32)


# ---------------------------------------------------------------------------------------------- the files
def true_transform(source: Acquisition, target: Acquisition) -> np.ndarray:
    """World of one scan's file → world of another one of the same eye, 4×4 mm."""
    return np.linalg.inv(target.to_eye()) @ source.to_eye()


def make_pair(seed: int, kind: str, graphs=(), turn: float = 180.0, troubles: bool = True):
    """(fixed, moving, fixed → moving 4×4) of two acquisitions of the eye of that seed."""
    random = np.random.default_rng([seed, 3])
    eye = make_eye(seed, graphs)
    first = draw_acquisition(random, kind, turn, troubles)
    second = draw_acquisition(random, kind, turn, troubles, near=first)
    return scan(eye, first, kind), scan(eye, second, kind), true_transform(first, second)


def find_graphs(folder) -> list:
    """Vessel graph files of a folder ("" for none)."""
    if not folder:
        return []
    found = sorted(p for p in Path(folder).iterdir() if p.name.endswith((".csv", ".csv.gz")))
    if not found:
        raise InputError(f"{folder} holds no vessel graphs (*.csv, *.csv.gz).")
    return found


def write(folder, kind: str, count: int, seed: int = 0, graphs=(), turn: float = 180.0, report=print,
          troubles: bool = True) -> Path:
    """Write ``count`` pairs (see make_pair) into ``folder``, and partners.tsv, which names pairs and transforms
    (datasets.py); its path.

    Pairs whose scans are there already are not made again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(seed, seed + count):
        names = [f"{kind}{index:05d}_ses{n}.nii.gz" for n in (1, 2)]
        if not all((folder / name).exists() for name in names):
            *volumes, matrix = make_pair(index, kind, graphs, turn, troubles)
            for name, volume in zip(names, volumes):
                save(volume, folder / name)
        else:
            random = np.random.default_rng([index, 3])
            first = draw_acquisition(random, kind, turn, troubles)
            matrix = true_transform(first, draw_acquisition(random, kind, turn, troubles, near=first))
        lines.append(datasets.partners_line(*names, matrix))
        if (index - seed + 1) % 20 == 0:
            report(f"made {index - seed + 1} of {count} pairs")
    path = folder / datasets.PARTNERS
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main(argv=None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m SpatialDiffusionTraining.retina", description=(
        "Phantom eyes, each scanned twice: NIfTI files and partners.tsv (fixed, moving, 3×4 fixed → moving mm)."))
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=10, metavar="N", help="pairs (default: 10)")
    parser.add_argument("--kind", choices=("oct", "octa"), default="oct")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first eye")
    parser.add_argument("--turn", type=float, default=180.0, metavar="DEG", help="largest turn of a raster")
    parser.add_argument("--no-troubles", dest="troubles", action="store_false", help="only speckle and a little motion")
    parser.add_argument("--graphs", default="", metavar="DIR", help="folder of vessel graphs (default: grown vessels)")
    chosen = parser.parse_args(argv)
    return command.run("retina", lambda: write(
        chosen.out, chosen.kind, chosen.count, chosen.seed, find_graphs(chosen.graphs), chosen.turn,
        troubles=chosen.troubles))


if __name__ == "__main__":
    raise SystemExit(main())
