"""Commands of other programs that use a transform written here."""

from __future__ import annotations

import os
import shlex

from .outputs import chosen_format


def commands_for(transform: str, moving: str, fixed: str, format: str | None = None) -> list[str]:
    """Lines that resample ``moving`` on ``fixed`` with the programs that read the format of the file ``transform``."""
    base = os.path.splitext(os.path.splitext(os.path.basename(transform))[0])[0]
    m, f, t, moved = (shlex.quote(path) for path in (moving, fixed, transform, f"{base}_moved.nii.gz"))
    held = chosen_format(transform, format)
    if held == "itk":
        return [
            f"ANTs:       antsApplyTransforms -d 3 -i {m} -r {f} -t {t} -o {moved}",
            f"3D Slicer:  drop {t} on the window, then put {m} under it in the Data module",
            f"here:       spatial-diffusion apply {t} {m} --reference {f} -o {moved}",
        ]
    if held == "flirt":
        return [
            f"FSL:        flirt -in {m} -ref {f} -applyxfm -init {t} -out {moved}",
            f"            convert_xfm -omat {base}_inverse.mat -inverse {t}",
        ]
    if held == "lta":
        return [
            f"FreeSurfer: mri_vol2vol --mov {m} --targ {f} --lta {t} --o {moved}",
            f"            lta_convert --inlta {t} --outfsl {base}.mat --src {m} --trg {f}",
        ]
    if held == "afni":
        return [f"AFNI:       3dAllineate -source {m} -base {f} -1Dmatrix_apply {t} -prefix {moved}"]
    return [f"here:       spatial-diffusion apply {t} {m} --reference {f} -o {moved}"]
