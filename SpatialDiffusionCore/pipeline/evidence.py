"""What is known of an answer, from which the probability that it is right is computed (confidence.py)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np

#: Changes whenever a figure below is added, dropped or computed in another way.
VERSION = 2


@dataclass(frozen=True)
class Evidence:
    """Figures of one answer; lengths are shares of the size (twice the RMS radius of the fixed tissue).

    similarity: local, over the tissue of the volume that finds more of itself in the other one; least_similarity: over
    that of the other. correlation, information: see similarity.py. overlap: the larger share of a volume's tissue that
    lies in the other's field of view. strain: see strain_of. spread: between repeated refinements. margin: by how much
    the answer ranks above the best candidate of another basin, both at most refined coarsely; lead: above the best
    answer of another basin, both refined in full. searches: the share of the independent searches whose best pose lies
    in the answer's basin. refined: 1, or 0 where the refinement was undone. agreement: of the network with the answer,
    0…1. detour: how far from it the way round by a template ends.

    None where it was not asked, or cannot be told.
    """

    similarity: float
    least_similarity: float
    correlation: float
    information: float
    overlap: float
    strain: float
    spread: float | None = None
    margin: float | None = None
    lead: float | None = None
    searches: float | None = None
    refined: float = 1.0
    agreement: float | None = None
    detour: float | None = None

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict) -> Evidence:
        """Of what ``to_dict`` gave; other entries are left out."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


def strain_of(matrix: np.ndarray) -> float:
    """How far a 4×4 transform squeezes: the largest logarithm of a stretch beside their mean, one way or the other. A
    change of size alone is none.
    """
    stretches = np.log(np.maximum(np.linalg.svd(np.asarray(matrix, float)[:3, :3], compute_uv=False), 1e-6))
    return float(np.abs(stretches - stretches.mean()).max())
