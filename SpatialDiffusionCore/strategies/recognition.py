"""What a volume shows, told by its looks, so that nobody needs to say.

Only modalities that are then registered in another way than volumes of any kind are recognized; a volume that is not
surely one of them counts as any kind.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from ..alignment import pose_search
from ..modelfile.model import templates
from ..spatial.cube import Cube
from ..spatial.intensity import subsample
from ..spatial.sampling import Prepared, otsu
from .head_template import HeadTemplate

#: mm: a volume that is shorter along an axis shows no head (retinas, small animals).
SHORTEST = 60.0

#: Soft tissue of CT is all alike: of what is not air so much lies within 15 % of one brightness. 91 CTs had 0.48 or
#: more, 260 T1 scans at most 0.34, 30 scans of other MR sequences at most 0.44. From the second share on that is enough
#: (a CT head: 0.86).
UNIFORM, SURELY, BAND = 0.46, 0.6, 0.15

#: And air is as dark as can be: so much of what is not tissue is within 5 % of the darkest. CTs had 0.92 or more, those
#: MR scans whose tissue is most alike 0.68 and 0.72 (fluid, marrow and bone are dark there, but not black).
BLACK, DARKEST = 0.9, 0.05

#: A neck joins a head and shoulders, so along each axis of a head-and-neck scan the largest cross-sections of tissue
#: (90th percentile) are so many times the smallest (10th): 68 of 70 such CTs had 1.57 or more, two chest CTs, two torso
#: CTs and a CT head at most 1.36.
NECK = 1.5

#: Poses of the template that are looked for where the header is wrong, and tried. Of 100 turned T1 heads 99 are
#: recognized, with three poses 97; none by the third or a later one.
POSES, TRIED = 6, 2


def recognized(prepared: Prepared, look: Callable, device: str = "cpu") -> str:
    """The key of the modality that a volume surely shows, or "any".

    look(key): the volume on the cube of the model for that modality, in focus where it has one.
    """
    if np.min(prepared.volume.spacing * prepared.volume.shape) < SHORTEST:
        return "any"
    if looks_like_ct(prepared) and widens(prepared) >= NECK:
        return "ct-head-neck"
    alike = {"any": 0.0}
    for key, symmetric in templates(device):
        alike[key] = _resemblance(look(key), HeadTemplate.of(symmetric))
    return max(alike, key=lambda key: alike[key])


def looks_like_ct(prepared: Prepared) -> bool:
    """Whether soft tissue is all alike, and what is around it black."""
    alike, black = brightness(prepared)
    return alike >= SURELY or alike >= UNIFORM and black >= BLACK


def widens(prepared: Prepared) -> float:
    """How many times the largest cross-sections of tissue are the smallest, along the axis of the array along which
    they differ least; the outer tenths, and slices without tissue, left out.
    """
    values, _ = subsample(prepared.volume.data)
    tissue, ratios = values > prepared.threshold, []
    for axis in range(3):
        area = tissue.sum(tuple(other for other in range(3) if other != axis)).astype(float)
        outer = max(1, len(area) // 10)
        area = area[outer:-outer]
        area = area[area > 0.02 * area.max(initial=0.0)]
        if not len(area):
            return 1.0
        low, high = np.percentile(area, (10, 90))
        ratios.append(high / low)
    return float(min(ratios))


def brightness(prepared: Prepared) -> tuple:
    """(the largest share of what is brighter than Otsu's threshold that lies within ``BAND`` of one brightness,
    relative to it; the share of the rest that is darker than ``DARKEST`` of the window).
    """
    low, high = prepared.window
    values = np.clip((subsample(prepared.volume.data)[0] - low) / (high - low), 0, 1)
    threshold = otsu(values)
    tissue, rest = np.sort(values[values > threshold]), values[values <= threshold]
    within = np.searchsorted(tissue, tissue * (1 + BAND)) - np.arange(len(tissue))
    return float(within.max(initial=0)) / max(len(tissue), 1), float((rest < DARKEST).mean()) if len(rest) else 0.0


def _resemblance(cube: Cube, template: HeadTemplate) -> float:
    """How alike a volume is to the template of a modality, wherever it lies; 0 if it is not, or in another contrast."""
    alike = template.resemblance(cube, template.lay(cube, [np.eye(4)]))
    poses = [] if alike else pose_search.poses(cube, template.cube, 0, keep=POSES)[:TRIED]
    for matrix in poses:
        world = cube.frame @ matrix @ np.linalg.inv(template.cube.frame)
        alike = alike or template.resemblance(cube, template.refined(cube, world))
    return alike
