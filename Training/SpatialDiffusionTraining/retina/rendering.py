"""The volume of an acquisition of an eye: OCT or OCTA intensities, speckle and artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import brentq

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial.volume import Volume

from .acquisition import Acquisition
from .anatomy import LAYERS, REACH, Eye, smooth_noise

VITREOUS, NOISE = 1.0, 5.0


#: mm below Bruch's membrane → intensity of the choroid's decay.
CHOROID = ((0.0, 180), (0.02, 138), (0.06, 110), (0.116, 64), (0.232, 30), (0.35, 22), (0.6, 12), (1.0, 6), (2.0, 3))


#: Speckle: coefficient of variation in a layer, and correlation of neighbors along (A-scans, B-scans, depth).
SPECKLE = 0.12, (0.70, 0.16, 0.83)


@dataclass(frozen=True)
class _Seen:
    """What an acquisition sees of an eye; A-scans A, B-scans B, depth K."""

    eye: Eye
    acquisition: Acquisition
    #: A×B: eye coordinates of the A-scans, mm; depth of each layer's top in them, L×A×B mm; radius of vessels, mm.
    x: np.ndarray
    y: np.ndarray
    tops: np.ndarray
    radius: np.ndarray
    #: K: depth of the pixels of an A-scan, mm; A×B×K: mm below Bruch's membrane.
    pixel: np.ndarray
    below: np.ndarray

    def choroid(self, where: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The choroid's grain, of deviation 1, at N voxels. where: A×B×K bool; depth: N, mm below Bruch's membrane."""
        a, b, _ = np.nonzero(where)
        places = np.stack([(self.x[a, b] + REACH) / 0.04, (self.y[a, b] + REACH) / 0.04, depth / 0.016])
        return ndimage.map_coordinates(self.eye.choroid, places, order=1, mode="reflect")


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
    volume = render(_Seen(eye, q, x, y, tops, radius, pixel, below), random)
    return Volume(_spoil(volume, q, random), q.header, f"{kind} phantom")


def _positions(q: Acquisition, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eye coordinates x, y (A×B) of the A-scans, and mm by which the axial position is off (A×B)."""
    fast, slow, _ = q.shape
    lines = np.arange(slow, dtype=float)
    for _ in range(q.stretch):
        these = _some_lines(slow, 12, random)
        lines[these] = lines[these.start]
    drift = ndimage.gaussian_filter1d(random.standard_normal((3, slow)), slow / 8, axis=1)
    drift /= drift.std(axis=1, keepdims=True) + 1e-9
    aside = 0.015 * drift[:2] * min(q.motion, 2)
    for _ in range(q.saccades):
        aside[:, _some_lines(slow, 6, random)] += random.normal(0, 0.12, (2, 1))
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


def _some_lines(slow: int, share: int, random: np.random.Generator) -> slice:
    """B-scans in a row: 3 to about a ``share``-th of all of them."""
    length = int(random.integers(3, max(4, slow // share)))
    start = int(random.integers(0, slow - length))
    return slice(start, start + length)


def _structure(seen: _Seen, random: np.random.Generator) -> np.ndarray:
    """OCT intensities, 0…255."""
    eye, q, x, y = seen.eye, seen.acquisition, seen.x, seen.y
    below, tops, radius, pixel = seen.below, seen.tops, seen.radius, seen.pixel
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
    texture = seen.choroid(deeper, below[deeper])
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


def _flow(seen: _Seen, random: np.random.Generator) -> np.ndarray:
    """OCTA intensities, 0…255: vessels, their tails, and the noise of still tissue."""
    eye, x, y, below = seen.eye, seen.x, seen.y, seen.below
    tops, radius, pixel = seen.tops, seen.radius, seen.pixel
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
    grain = seen.choroid(near, np.abs(below[near]))
    volume[near] += np.clip(85 + 45 * grain, 0, 200) * np.clip(1 - np.abs(below[near] - 0.02) / 0.06, 0, 1)
    return volume.astype(np.float32)


def _spoil(volume: np.ndarray, q: Acquisition, random: np.random.Generator) -> np.ndarray:
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
        dark = smooth_noise(random, (24, 24), 3.0)
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


def speckle(random: np.random.Generator, shape: Sequence[int], strength: float = 1.0) -> np.ndarray:
    """Factors of mean 1 with the measured coefficient of variation (times ``strength``) and neighbor correlations."""
    variation, correlations = SPECKLE
    noise = random.standard_normal(shape, dtype=np.float32)
    for axis, wanted in enumerate(correlations):
        noise = ndimage.correlate1d(noise, _taps(wanted), axis=axis, mode="wrap")
    return np.maximum(1 + variation * strength * noise, 0)


def _taps(correlation: float) -> np.ndarray:
    """A symmetric Gaussian filter after which neighbors of white noise (deviation 1, kept) correlate by so much."""

    def taps(sigma: float) -> np.ndarray:
        weights = np.exp(-0.5 * (np.arange(-6, 7) / sigma) ** 2)
        return weights / np.sqrt((weights**2).sum())

    return taps(brentq(lambda s: (taps(s)[1:] * taps(s)[:-1]).sum() - correlation, 0.05, 4.0)).astype(np.float32)
