"""Scans of eyes as maps seen from the front: the mean along depth, and the depth of the tissue's middle."""

from __future__ import annotations

import torch

from .layers import blur


def front_view(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(maps, height, known) of B×1×D×H×W scans of eyes in 0…1, seen from the front, along H.

    maps: B×1×D×2×W in 0…1, the two maps of ``maps_of`` as if they were two slices; height: B×1×D×1×W, normalized y
    of the tissue's middle, 0 where it is not known; known: B×1×D×1×W, 0 or 1.
    """
    values = volume[:, 0].float()
    with torch.no_grad():
        maps, _, height, known = maps_of(values, torch.ones_like(values), 2 / volume.shape[3])
    return maps.permute(0, 2, 1, 3)[:, None] / 5 + 0.5, (height * known)[:, None, :, None], known[:, None, :, None]


#: Blurs in pixels: of the map against noise, and of what is subtracted from it (shading, the fovea's dip).
FINE, BROAD = 1.0, 7.0

#: A column whose brightest tissue is below this share of what is usual is not known; the blur in voxels before that is
#: looked for; and what is usual: this quantile of the columns. Networks were trained on maps that are made so; no
#: measurement is kept of this and of what follows.
DARK, SPECKLE, USUAL = 0.2, 0.6, 0.9

#: Blur in pixels of what is known, and the least share of the deepest column that a pixel of the mask covers.
RIM, COVERED = 1.5, 0.25

#: Above this share of its column's brightest tissue a voxel weighs where the tissue's middle is.
TISSUE = 0.35

#: This share of the typical local deviation is added to it, so that flat places stay flat; outliers are cut there.
FLAT, OUTLIER = 0.3, 2.5


def maps_of(
    values: torch.Tensor, support: torch.Tensor, step: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B×2×D×W maps, B×D×W mask, B×D×W height, B×D×W known) of B×D×H×W values in 0…1 and their support, as Face has
    them, on the same voxels; step: mm per voxel along depth, H.
    """
    # Each column by its own brightest tissue: half of the light may be missing in a shadow.
    brightest = blur((values * support)[:, None], SPECKLE)[:, 0].amax(2)
    usual = brightest.where(brightest > 0, torch.nan).flatten(1).nanquantile(USUAL, dim=1).nan_to_num(1.0)
    known = (brightest > DARK * usual[:, None, None]).float()
    inside = support.sum(2) * (_smooth(known, RIM) > 0.5)
    mask = (inside > COVERED * inside.amax((1, 2), keepdim=True)).float()
    known = known * mask
    image = ((values * support).sum(2) / inside.clamp_min(1)).clamp_min(1e-3).log()  # shading becomes a sum
    depth = (torch.arange(values.shape[2], device=values.device) - (values.shape[2] - 1) / 2) * step
    weight = (values / brightest.clamp_min(1e-3)[:, :, None] - TISSUE).clamp_min(0) * support
    height = (weight * depth[:, None]).sum(2) / weight.sum(2).clamp_min(1e-6)
    maps = []
    for plane, where in ((image, mask), (height, known)):
        # What belongs to a whole scan line (brightness, axial motion), along whichever axis the lines run.
        for axis in (1, 2):
            plane = plane - (plane * where).sum(axis, keepdim=True) / where.sum(axis, keepdim=True).clamp_min(1)
        maps.append(_normalized(plane, where))
    return torch.stack(maps, 1), mask, height, known


def _smooth(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """B×D×W planes, blurred."""
    return blur(planes[:, None, None], sigma)[:, 0, 0]


def _normalized(planes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """B×D×W planes with local mean 0 and deviation 1 inside their masks, outliers cut, 0 outside."""

    def local(planes: torch.Tensor) -> torch.Tensor:
        return _smooth(planes * mask, BROAD) / _smooth(mask, BROAD).clamp_min(1e-3)

    planes = _smooth(planes * mask, FINE) / _smooth(mask, FINE).clamp_min(1e-3)
    planes = (planes - local(planes)) * mask
    deviation = local(planes**2).clamp_min(1e-12).sqrt()
    typical = (deviation * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
    return (planes / (deviation + FLAT * typical[:, None, None])).clamp(-OUTLIER, OUTLIER) * mask
