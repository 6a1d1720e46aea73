"""Affine geometry: frames, conversions, kinds of transform, and what to call a transform in words.

Every 4×4 matrix here is float64 and acts on column vectors. Frames:

- *voxel*: array indices (i, j, k); integers are voxel centers.
- *RAS*: world millimeters, x to the right, y to the front, z up (NIfTI, Slicer).
- *LPS*: the same with x and y reversed (ITK, DICOM).
- *normalized*: (x, y, z) of ``torch.nn.functional.affine_grid(align_corners=False)`` on a tensor of shape
  (D, H, W) = (I, J, K): x runs along W, y along H, z along D; −1 and 1 are the outer faces of the outer voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import InputError

#: Changes RAS coordinates to LPS and back.
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

#: The kinds of transform, from the fewest degrees of freedom to the most (6, 7 and 12).
TRANSFORM_KINDS = ("rigid", "similarity", "affine")


#: Numbers beyond this many mm are no places, and their squares are soon beyond what doubles hold. Chosen.
LARGEST = 1e12


def as_affine(matrix, what: str = "the matrix") -> np.ndarray:
    """Return ``matrix`` as a 4×4 float64 affine (a 3×4 one is completed).

    Raises InputError where the shape is wrong, a number is not finite or no place in mm (see LARGEST), the last row is
    not (0, 0, 0, 1), or the 3×3 part is so close to singular that it cannot be inverted.
    """
    try:
        result = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} is not made of numbers; expected a 4×4 affine matrix.") from None
    if result.shape == (3, 4):
        result = np.vstack([result, [0.0, 0.0, 0.0, 1.0]])
    if result.shape != (4, 4):
        raise InputError(f"{what} has shape {result.shape}; expected a 4×4 affine matrix.")
    if not np.isfinite(result).all():
        raise InputError(f"{what} contains NaN or infinite numbers; expected a 4×4 affine matrix.")
    if np.abs(result).max() > LARGEST:
        raise InputError(f"{what} contains {np.abs(result).max():.3g}, which is no length in mm; correct it first.")
    if not np.allclose(result[3], [0, 0, 0, 1], atol=1e-6):
        raise InputError(f"{what} has the last row {result[3].tolist()}; an affine matrix ends in 0 0 0 1.")
    result[3] = [0, 0, 0, 1]
    lengths = np.linalg.norm(result[:3, :3], axis=0)
    if lengths.min() <= 1e-12 or abs(np.linalg.det(result[:3, :3] / lengths)) < 1e-6:
        raise InputError(f"{what} is degenerate (its axes do not span space), so it has no inverse.")
    return result


def from_parts(linear, translation=(0.0, 0.0, 0.0)) -> np.ndarray:
    """The 4×4 matrix of x → linear·x + translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = translation
    return matrix


def about(linear, center, translation=(0.0, 0.0, 0.0)) -> np.ndarray:
    """The 4×4 matrix of x → linear·(x − center) + center + translation."""
    linear, center = np.asarray(linear, float), np.asarray(center, float)
    return from_parts(linear, center - linear @ center + translation)


def inverse(matrix) -> np.ndarray:
    """Inverse of a 4×4 affine; that of a rigid one is rigid to the last digit."""
    linear = np.asarray(matrix, float)[:3, :3]
    if np.abs(linear.T @ linear - np.eye(3)).max() < 1e-12:
        return from_parts(linear.T, -linear.T @ matrix[:3, 3])
    result = np.linalg.inv(np.asarray(matrix, float))
    result[3] = [0, 0, 0, 1]
    return result


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map N×3 points by a 4×4 matrix."""
    return np.asarray(points, float) @ matrix[:3, :3].T + matrix[:3, 3]


def spacing(voxel_to_world: np.ndarray) -> np.ndarray:
    """Distance in mm between neighboring voxels along each array axis."""
    return np.linalg.norm(voxel_to_world[:3, :3], axis=0)


def normalized_to_voxel(shape) -> np.ndarray:
    """Normalized (x, y, z) → voxel (i, j, k) of a tensor of shape (D, H, W) = (I, J, K)."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for axis, size in enumerate(shape):
        matrix[axis, 2 - axis] = size / 2.0
        matrix[axis, 3] = (size - 1) / 2.0
    return matrix


def theta_to_world(theta, fixed_normalized_to_world, moving_normalized_to_world) -> np.ndarray:
    """World matrix (fixed → moving points) of a network affine θ (3×4, normalized, output → input)."""
    theta = np.vstack([np.asarray(theta, float), [0, 0, 0, 1]])
    return moving_normalized_to_world @ theta @ np.linalg.inv(fixed_normalized_to_world)


def world_to_theta(fixed_to_moving, fixed_normalized_to_world, moving_normalized_to_world) -> np.ndarray:
    """Inverse of :func:`theta_to_world`; returns 3×4."""
    return (np.linalg.inv(moving_normalized_to_world) @ fixed_to_moving @ fixed_normalized_to_world)[:3]


def _linear_fit(cross: np.ndarray, covariance: np.ndarray, kind: str) -> np.ndarray:
    """Best 3×3 map in the least-squares sense, from Σ y xᵀ (``cross``) and Σ x xᵀ (``covariance``).

    Rigid and similarity: Umeyama, IEEE PAMI 13(4):376, 1991.
    """
    if kind == "affine":
        return np.linalg.solve(covariance, cross.T).T
    if kind not in TRANSFORM_KINDS:
        raise InputError(f"Unknown transform {kind!r}; choose one of: {', '.join(TRANSFORM_KINDS)}.")
    u, singular, vt = np.linalg.svd(cross)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * signs) @ vt
    return rotation if kind == "rigid" else rotation * ((singular * signs).sum() / np.trace(covariance))


def fit(source, target, kind: str = "affine", weights=None) -> np.ndarray:
    """The 4×4 transform of a kind that maps N×3 ``source`` points closest to ``target`` (weighted least squares)."""
    source, target = np.asarray(source, float), np.asarray(target, float)
    weights = np.ones(len(source)) if weights is None else np.asarray(weights, float)
    weights = weights / weights.sum()
    source_mean, target_mean = weights @ source, weights @ target
    centered, aimed = source - source_mean, target - target_mean
    cross, covariance = (aimed * weights[:, None]).T @ centered, (centered * weights[:, None]).T @ centered
    linear = _linear_fit(cross, covariance, kind)
    return from_parts(linear, target_mean - linear @ source_mean)


def project(matrix, kind: str, mean, covariance) -> np.ndarray:
    """The transform of ``kind`` closest to an affine over a cloud of points given by its mean and covariance.

    Closest in RMS displacement (mm) of the cloud. A rigid result is orthonormal to rounding and has determinant +1.
    """
    if kind == "affine":
        return np.array(matrix, float)
    linear = _linear_fit(matrix[:3, :3] @ covariance, covariance, kind)
    return from_parts(linear, matrix[:3, :3] @ mean + matrix[:3, 3] - linear @ mean)


def limit_strain(matrix, most: float, center) -> np.ndarray:
    """A 4×4 affine whose logarithmic strains along its principal axes are cut to ±``most``; ``center`` (mm) goes
    where it went."""
    u, stretches, vt = np.linalg.svd(matrix[:3, :3])
    linear = (u * np.exp(np.clip(np.log(stretches), -most, most))) @ vt
    return from_parts(linear, matrix[:3, :3] @ center + matrix[:3, 3] - linear @ center)


def displacement_rms(a, b, mean, covariance) -> float:
    """RMS distance in mm between the images under two transforms of a cloud with that mean and covariance."""
    difference = np.asarray(a, float) - np.asarray(b, float)
    offset = difference[:3, :3] @ mean + difference[:3, 3]
    spread = np.trace(difference[:3, :3] @ covariance @ difference[:3, :3].T)
    return float(np.sqrt(max(0.0, offset @ offset + spread)))


def log(matrix) -> np.ndarray:
    """Principal matrix logarithm of a 4×4 affine.

    Raises ValueError where there is none: a reflection, or a rotation by exactly 180°.
    """
    from scipy.linalg import logm

    if np.linalg.det(matrix[:3, :3]) <= 0:
        raise ValueError("a transform with a reflection has no real logarithm")
    eigenvalues = np.linalg.eigvals(matrix[:3, :3])
    if np.any((eigenvalues.real < 0) & (np.abs(eigenvalues.imag) < 1e-9 * np.abs(eigenvalues.real))):
        raise ValueError("a rotation by 180° has no principal logarithm")
    result = np.real(logm(np.asarray(matrix, float)))
    result[3] = 0.0
    return result


def exp(generator) -> np.ndarray:
    """Matrix exponential of a 4×4 generator whose last row is 0."""
    from scipy.linalg import expm

    result = expm(np.asarray(generator, float))
    result[3] = [0, 0, 0, 1]
    return result


def mean(matrices, iterations: int = 30) -> np.ndarray:
    """Log-Euclidean (Karcher) mean of affines that lie within 180° of each other.

    The mean of inverses is the inverse of the mean, and the mean of two is the midpoint of the path between them
    (Arsigny et al., "A fast and log-Euclidean polyaffine framework", JMIV 33:222, 2009, section 3.2).
    """
    matrices = [np.asarray(m, float) for m in matrices]
    center = matrices[0]
    for _ in range(iterations):
        step = np.mean([log(np.linalg.inv(center) @ m) for m in matrices], axis=0)
        center = center @ exp(step)
        if np.abs(step).max() < 1e-12 * max(1.0, np.abs(center).max()):  # shifts are in mm, so relative
            break
    return center


@dataclass(frozen=True)
class Decomposition:
    """What an affine does, in the units people use. M = R · stretch, the stretch upper triangular.

    ``rotation_deg`` is the total angle about one axis; ``rotations_deg`` the angles about the x, y and z axes
    (applied in that order); ``translation_mm`` where the given center goes; ``scales_percent`` 100 = unchanged;
    ``shears`` xy, xz, yz. ``mirrored`` tells a reflection (then the x scale is negative).
    """

    rotation_deg: float
    rotations_deg: tuple
    translation_mm: tuple
    scales_percent: tuple
    shears: tuple
    mirrored: bool

    def text(self) -> str:
        """One line for people."""
        numbers = "{:.1f}, {:.1f}, {:.1f}".format
        line = (
            f"turned {self.rotation_deg:.1f}°, moved {np.linalg.norm(self.translation_mm):.1f} mm "
            f"({directions(self.translation_mm)}), scaled {numbers(*self.scales_percent)} %"
        )
        if max(map(abs, self.shears)) > 5e-4:
            line += ", shear " + ", ".join(f"{s:.3f}" for s in self.shears)
        return line + (", mirrored" if self.mirrored else "")


def directions(mm) -> str:
    """A displacement (RAS, mm) as people say it: "2.9 L, 43.6 P, 1.0 S"."""
    ends = ("R", "L"), ("A", "P"), ("S", "I")
    return ", ".join(f"{abs(value):.1f} {pair[int(value < 0)]}" for value, pair in zip(mm, ends))


def rotation_angle(rotation) -> float:
    """Angle in degrees of a 3×3 rotation; accurate near 0° and 180°."""
    skew = rotation - rotation.T
    sine = 0.5 * np.sqrt(skew[2, 1] ** 2 + skew[0, 2] ** 2 + skew[1, 0] ** 2)
    return float(np.degrees(np.arctan2(sine, 0.5 * (np.trace(rotation) - 1.0))))


def decompose(matrix, center=(0.0, 0.0, 0.0)) -> Decomposition:
    """Split a 4×4 affine into rotation, translation of ``center``, scales and shears (see Decomposition)."""
    linear = np.asarray(matrix, float)[:3, :3]
    rotation, stretch = np.linalg.qr(linear)
    signs = np.sign(np.diag(stretch))
    rotation, stretch = rotation * signs, stretch * signs[:, None]
    mirrored = np.linalg.det(rotation) < 0
    if mirrored:
        rotation[:, 0] *= -1
        stretch[0] *= -1
    scales = np.diag(stretch)
    shears = (stretch[0, 1] / scales[0], stretch[0, 2] / scales[0], stretch[1, 2] / scales[1])
    y = np.arcsin(np.clip(-rotation[2, 0], -1, 1))
    x, z = np.arctan2(rotation[2, 1], rotation[2, 2]), np.arctan2(rotation[1, 0], rotation[0, 0])
    center = np.asarray(center, float)
    return Decomposition(
        rotation_deg=rotation_angle(rotation),
        rotations_deg=tuple(float(v) for v in np.degrees([x, y, z])),
        translation_mm=tuple(float(v) for v in linear @ center + np.asarray(matrix, float)[:3, 3] - center),
        scales_percent=tuple(float(100 * v) for v in scales),
        shears=tuple(float(v) for v in shears),
        mirrored=bool(mirrored),
    )


def rotation_about(axis, angle: float) -> np.ndarray:
    """3×3 rotation by ``angle`` radians about an axis (Rodrigues' formula)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@lru_cache(maxsize=1)
def rotation_group() -> np.ndarray:
    """The 60 rotations of the icosahedron (60×3×3, read-only), the identity first.

    They cover all rotations so that none is further than 44.5° from one of them. Generated as the closure of a
    turn by 72° about a vertex and a turn by 180° about an edge's middle.
    """
    golden = (1 + np.sqrt(5)) / 2
    generators = [rotation_about([0, 1, golden], 2 * np.pi / 5), rotation_about([0, 0, 1], np.pi)]
    group = [np.eye(3)]
    for element in group:  # grows while it is walked
        for generator in generators:
            candidate = element @ generator
            if all(np.abs(candidate - known).max() > 1e-6 for known in group):
                group.append(candidate)
    found = np.array(group)
    found.flags.writeable = False
    return found
