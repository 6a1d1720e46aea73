"""What the module's self test registers."""

from __future__ import annotations

import numpy as np
import slicer
import vtk


def lopsidedVolume(name, matrix=None):
    """A smooth, lopsided object of 48 x 44 x 40 voxels of 4 mm, moved by a 4x4 RAS matrix in its header."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 44, 48)), indexing="ij")
    data = np.zeros(x.shape)
    for cx, cy, cz, size, height in (
        (0, 0, 0, 0.55, 60),
        (0.25, 0.2, 0.1, 0.22, 60),
        (-0.3, 0.15, 0.2, 0.15, 90),
        (0.05, -0.35, -0.2, 0.18, 45),
        (-0.1, 0.3, -0.35, 0.12, 70),
    ):
        data += height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + 1.3 * (z - cz) ** 2) / (2 * (size / 1.5) ** 2))
    ijkToRas = np.diag([4.0, 4.0, 4.0, 1.0])
    ijkToRas[:3, 3] = [-94, -86, -78]
    if matrix is not None:
        ijkToRas = matrix @ ijkToRas
    return slicer.util.addVolumeFromArray(data.astype(np.float32), ijkToRAS=ijkToRas, name=name)


def turned(degrees=20.0, shift=(12.0, -8.0, 5.0)):
    """A turn about an oblique axis and a shift in mm, 4x4."""
    transform = vtk.vtkTransform()
    transform.Translate(*shift)
    transform.RotateWXYZ(degrees, 0.3, 0.2, 0.93)
    return slicer.util.arrayFromVTKMatrix(transform.GetMatrix())
