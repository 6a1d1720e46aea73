"""The one table of modalities: names, how volumes are loaded and preprocessed, and what is special about each.

The shell's choices, Slicer's combo box, the loaders of training and the model cards are all made from it. To add a
modality, add an entry here and train a model for it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Modality:
    """Facts about one modality.

    key: what is typed and stored; label: what people read; description: help in a sentence or two. preprocessing: the
    enhancement (affine_transformer.PREPROCESSING) before a network with the published loading. oriented: whether
    headers carry an anatomical orientation worth trusting; where not, only spacings count, and the axis with the finest
    one is depth (sampling.canonical_grid). published_loader: how the published method loads it
    (method/published_loading.py). aliases: what else may be typed.
    """

    key: str
    label: str
    description: str
    preprocessing: str = "none"
    oriented: bool = True
    published_loader: str = "minmax"
    aliases: tuple = ()


MODALITIES = {
    modality.key: modality
    for modality in (
        Modality(
            "any",
            "Any / mixed",
            "Anything else, or two volumes of different modalities.",
            aliases=("none", "mixed", "cross"),
        ),
        Modality(
            "t1-brain",
            "T1 brain MRI",
            "T1-weighted heads or skull-stripped brains.",
            published_loader="t1",
            aliases=("t1", "t1w", "brain"),
        ),
        Modality(
            "t2-head-neck",
            "T2 head and neck MRI",
            "T2-weighted heads and necks.",
            published_loader="t2",
            aliases=("t2", "t2w"),
        ),
        Modality("ct-head-neck", "CT head and neck", "Computed tomography of head and neck.", aliases=("ct",)),
        Modality(
            "oct",
            "Retinal OCT",
            "Optical coherence tomography of the retina. A left and a right eye mirror each other: mirror one first.",
            preprocessing="oct",
            oriented=False,
            published_loader="oct",
        ),
        Modality(
            "octa",
            "Retinal OCTA",
            "OCT angiography of the retina. A left and a right eye mirror each other: mirror one first.",
            preprocessing="octa",
            oriented=False,
            published_loader="octa",
        ),
    )
}

#: What a caller says who leaves it to the volumes (recognition.py); no volume is, and no model is trained for it.
AUTO = Modality(
    "auto",
    "Automatic",
    "T1 brains and head-and-neck CTs are recognized; everything else is taken as it comes.",
    aliases=("automatic",),
)
