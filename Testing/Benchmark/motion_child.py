"""One method on one series: ``motion_child.py METHOD FOLDER`` reads series.npz there and writes METHOD.npz.

Runs in any Python that has numpy and the method. matrices: N×4×4, frame → first frame, RAS mm. frame: CPU
seconds for each frame after the first (of ours from series of two lengths, so that what happens once does not count).
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def environment() -> dict:
    """One thread for everybody."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    # Only this project's folders: a peer's Python has packages of its own.
    return {**os.environ, **dict.fromkeys(names, "1"), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def ours(frames, to_ras):
    """register_series, which also lays the frames on each other only where it is asked to."""
    from SpatialDiffusionCore import register_series
    from SpatialDiffusionCore.spatial.volume import Volume

    volumes = [Volume(frames[..., index], to_ras) for index in range(frames.shape[3])]
    return register_series(volumes, reference=0).matrices


def ants(frames, to_ras):
    """ants.motion_correction, rigid, on the first frame; it also resamples the frames."""
    import ants

    lps = LPS_RAS @ to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    geometry = {"origin": lps[:3, 3].tolist(), "spacing": spacing.tolist()}
    direction = lps[:3, :3] / spacing
    fixed = ants.from_numpy(frames[..., 0], direction=direction, **geometry)
    four = np.eye(4)
    four[:3, :3] = direction
    series = ants.from_numpy(
        frames, origin=[*geometry["origin"], 0.0], spacing=[*geometry["spacing"], 1.0], direction=four
    )
    found = ants.motion_correction(series, fixed=fixed, type_of_transform="BOLDRigid", verbose=False)
    matrices = []
    for parameters in found["motion_parameters"]:
        path = parameters if isinstance(parameters, str) else parameters[0]
        transform = ants.read_transform(path)
        origin = np.array(transform.apply_to_point([0, 0, 0]))
        columns = [np.array(transform.apply_to_point(axis.tolist())) - origin for axis in np.eye(3)]
        lps_fixed_to_moving = np.eye(4)
        lps_fixed_to_moving[:3, :3], lps_fixed_to_moving[:3, 3] = np.array(columns).T, origin
        matrices.append(np.linalg.inv(LPS_RAS @ lps_fixed_to_moving @ LPS_RAS))
    return np.array(matrices)


def dipy(frames, to_ras):
    """dipy.align.motion_correction: center of mass, translation and rigid of each frame to the first."""
    from dipy.align import affine_registration

    matrices = [np.eye(4)]
    for index in range(1, frames.shape[3]):
        _, matrix = affine_registration(
            frames[..., index],
            frames[..., 0],
            moving_affine=to_ras,
            static_affine=to_ras,
            pipeline=["center_of_mass", "translation", "rigid"],
        )
        matrices.append(np.linalg.inv(matrix))
    return np.array(matrices)


def main() -> None:
    """Run the method on the series; ours also on the series twice over, which tells what a frame more costs."""
    method, folder = sys.argv[1], Path(sys.argv[2])
    series = np.load(folder / "series.npz")
    frames, to_ras = series["frames"], series["to_ras"]
    function, count = {"ours": ours, "ants": ants, "dipy": dipy}[method], frames.shape[3]
    if method == "ours":
        function(frames[..., :2], to_ras)  # what is loaded once is loaded now
    begun = time.process_time()
    matrices = function(frames, to_ras)
    whole = time.process_time() - begun
    frame = whole / (count - 1)
    if method == "ours":
        begun = time.process_time()
        function(np.concatenate([frames, frames], axis=3), to_ras)
        frame = (time.process_time() - begun - whole) / count
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.savez(folder / f"{method}.npz", matrices=matrices, frame=frame, whole=whole, memory=memory)


if __name__ == "__main__":
    main()
