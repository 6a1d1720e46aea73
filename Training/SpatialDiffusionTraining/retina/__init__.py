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

from .acquisition import TROUBLES, Acquisition, draw_acquisition, true_transform
from .anatomy import LAYERS, REACH, STEP, Eye, make_eye, read_graph
from .files import find_graphs, main, make_pair, write
from .rendering import CHOROID, NOISE, SPECKLE, VITREOUS, scan, speckle

__all__ = [
    "CHOROID",
    "LAYERS",
    "NOISE",
    "REACH",
    "SPECKLE",
    "STEP",
    "TROUBLES",
    "VITREOUS",
    "Acquisition",
    "Eye",
    "draw_acquisition",
    "find_graphs",
    "main",
    "make_eye",
    "make_pair",
    "read_graph",
    "scan",
    "speckle",
    "true_transform",
    "write",
]
