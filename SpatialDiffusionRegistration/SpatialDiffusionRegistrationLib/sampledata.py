"""Two pairs of volumes to try the module on, in the Sample Data module."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

CATEGORY = "Spatial Diffusion Registration"
ICONS = Path(__file__).resolve().parents[1] / "Resources" / "Icons"

# Slicer's own sample volumes, as its Sample Data module names and checks them.
_SLICER_DATA = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
_TUMOR_1 = "998cb522173839c78657f4bc0ea907cea09fd04e44601f17c82ea27927937b95"
_TUMOR_2 = "1a64f3f422eb3d1c9b093d1a18da354b13bcf307907c66317e2463ee530b7a97"
# The bundled pair: of a file that was cached from an older version of the extension, the checksum says so.
_BRAIN = "2237ae74d3940137dc07e91f52abca6af91cddc9c7c7ff35b2b897270ede0290"
_TEMPLATE = "a6a3296180968f06ee0ad0d02ddf07a5d8e40630bbd5c14932b8c501305ac25e"


def demoPair():
    """Paths of the bundled moving brain and fixed template, or None if they are not installed."""
    from . import engine

    folder = Path(engine.core().__file__).parent / "demo"
    pair = folder / "moving_t1_brain.nii.gz", folder / "fixed_mni152_brain.nii.gz"
    return pair if all(path.is_file() for path in pair) else None


def registerSampleData():
    """Add the pairs.  The first comes with the extension, so it needs no network; the second is Slicer's own."""
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):  # Slicer 5.11 and later
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("Spatial Diffusion Registration"))
    pair = demoPair()
    if pair is not None:
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName="BrainToTemplate",
            uris=[path.as_uri() for path in pair],
            fileNames=[path.name for path in pair],
            nodeNames=["Brain (moving)", "MNI152 template (fixed)"],
            checksums=["SHA256:" + _BRAIN, "SHA256:" + _TEMPLATE],
            thumbnailFileName=str(ICONS / "BrainToTemplate.png"),
        )
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName="HeadToHead",
        uris=[_SLICER_DATA + _TUMOR_1, _SLICER_DATA + _TUMOR_2],
        fileNames=["RegLib_C01_1.nrrd", "RegLib_C01_2.nrrd"],
        nodeNames=["Head 1 (moving)", "Head 2 (fixed)"],
        checksums=["SHA256:" + _TUMOR_1, "SHA256:" + _TUMOR_2],
        thumbnailFileName=str(ICONS / "HeadToHead.png"),
    )
