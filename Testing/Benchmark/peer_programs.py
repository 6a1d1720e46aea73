"""Peers that are programs of their own: volumes go to them as NIfTI files, the matrix comes back as one.

As in peers.py, numpy (and nibabel, to write the files) is all that is needed here; writing the files is not timed, what
the program itself reads and writes is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def find_program(name: str) -> str:
    """The program's path: beside this Python, or on the path. Raises FileNotFoundError where it is in neither place."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"the program {name} is not installed")
    return found


class Program:
    """What both share. runs_programs: its processor time is that of child processes (worker.py)."""

    program = ""
    runs_programs = True

    def __init__(self) -> None:
        self.path = find_program(self.program)
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0

    def load(self, array, voxel_to_ras) -> Path:
        """Write the volume; files of the registration before are removed by ``run``."""
        import nibabel

        self.count += 1
        path = Path(self.folder.name) / f"volume{self.count}.nii"
        image = nibabel.Nifti1Image(np.asarray(array, np.float32), voxel_to_ras)
        image.set_qform(voxel_to_ras, code=1)
        image.set_sform(voxel_to_ras, code=1)
        nibabel.save(image, path)
        return path

    def run(self, moving: Path, fixed: Path, seed: int) -> np.ndarray:
        """4×4 moving → fixed, RAS mm. Raises RuntimeError with the program's last words where it fails."""
        try:
            return np.linalg.inv(self.fixed_to_moving(moving, fixed, Path(self.folder.name)))
        finally:
            moving.unlink()
            fixed.unlink()

    def fixed_to_moving(self, moving: Path, fixed: Path, folder: Path) -> np.ndarray:
        """4×4 fixed → moving, RAS mm."""
        raise NotImplementedError

    def call(self, *arguments) -> None:
        """Run the program with these arguments on one thread."""
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "CMTK_NUM_THREADS")}
        done = subprocess.run(
            [self.path, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **threads}
        )
        sys.stderr.write(done.stdout + done.stderr)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise RuntimeError(f"{self.program} ended with status {done.returncode}: {''.join(last)}")


class RegAladin(Program):
    """NiftyReg's reg_aladin: block matching with trimmed least squares down to full resolution, its defaults."""

    program = "reg_aladin"

    def fixed_to_moving(self, moving: Path, fixed: Path, folder: Path) -> np.ndarray:
        found = folder / "found.txt"
        self.call("-ref", fixed, "-flo", moving, "-aff", found, "-res", folder / "found.nii", "-omp", 1)
        return np.loadtxt(found)


class Cmtk(Program):
    """CMTK's registration: 6, then 12 degrees of freedom, normalized mutual information, from the volumes' centers."""

    program = "cmtk"

    def fixed_to_moving(self, moving: Path, fixed: Path, folder: Path) -> np.ndarray:
        found, itk = folder / "found.xform", folder / "found.tfm"
        for old in (found, itk):  # a folder in some versions
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        options = ("--initxlate", "--auto-multi-levels", 3, "--dofs", "6,12", "--nmi")
        self.call("registration", *options, "-o", found, fixed, moving)
        self.call("xform2itk", found, itk)
        return LPS_RAS @ read_itk(itk.read_text()) @ LPS_RAS


def read_itk(text: str) -> np.ndarray:
    """The 4×4 matrix (LPS) of an affine in ITK's text format."""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
    numbers = np.array(lines["Parameters"].split(), float)
    center = np.array(lines["FixedParameters"].split(), float)[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:12] + center - matrix[:3, :3] @ center
    return matrix


METHODS = {"reg-aladin": RegAladin, "cmtk": Cmtk}
