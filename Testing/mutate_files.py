"""Damages files at random and reads, resamples, prepares and moves what they hold.

    python Testing/mutate_files.py [MINUTES]

Whatever a file says, reading it must give a volume, a matrix or points, or an InputError of one sentence; within a
time, without
a warning of numpy, and without a half-written file. Prints what does not, smallest first found, and exits with 1 then.
Findings become tests. A quick run of every kind is part of the suite (test_mutations.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing")]

import nibabel
import numpy as np
import torch  # noqa: F401 - loaded before the first file is timed
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.many.frames import open_series
from SpatialDiffusionCore.spatial import geometry, sampling
from SpatialDiffusionCore.spatial.point_file import EXTENSIONS as POINTS
from SpatialDiffusionCore.spatial.point_file import move_points
from SpatialDiffusionCore.spatial.segmentation_file import Segmentation, load_segmentation, save_segmentation
from SpatialDiffusionCore.spatial.transform_file import FORMATS, read_transform, write_transform
from SpatialDiffusionCore.spatial.volume import Volume, resample, validate
from SpatialDiffusionCore.spatial.volume_file import load, save

#: Seconds of the processor that one file may take.
LONGEST = 20

VOLUMES = (".nii", ".nii.gz", "-2.nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".dcm")

SERIES = (".nii", ".nii.gz", ".nrrd", ".seq.nrrd", ".mha")

#: Numbers that headers and voxels are known to hold.
WILD = (
    0,
    1,
    -1,
    255,
    2**15 - 1,
    -(2**15),
    2**31 - 1,
    -(2**31),
    float("nan"),
    float("inf"),
    -float("inf"),
    1e30,
    -1e30,
    1e-30,
)

_MATRIX = geometry.from_parts(geometry.rotation_about([1, 2, 3], 0.4) * [1.0, 2.0, 3.0], (10, 20, 30))


def volume_file(folder: Path, ending: str, data: np.ndarray) -> Path:
    """A sound file of a kind; of those in two parts its header."""
    path = folder / f"a{ending}"
    kinds = {
        "-2.nii": nibabel.Nifti2Image,
        ".hdr": nibabel.Nifti1Pair,
        ".mgh": nibabel.MGHImage,
        ".mgz": nibabel.MGHImage,
    }
    if ending == ".dcm":
        from dicom_fixtures import write_series

        write_series(folder, data, _MATRIX, suffix=".dcm")
        return folder / "IM0002.dcm"
    if ending in kinds:
        nibabel.save(kinds[ending](data, _MATRIX), path)
    else:
        save(Volume(data, _MATRIX), path)
    return path


def series_file(folder: Path, ending: str, data: np.ndarray) -> Path:
    """A sound file of three frames."""
    import SimpleITK as sitk

    path, frames = folder / f"a{ending}", np.stack([data, data + 1, data + 2])
    if ending.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(frames, 0, -1), _MATRIX), path)
    elif ending == ".seq.nrrd":
        side_by_side = np.ascontiguousarray(np.transpose(frames, (3, 2, 1, 0)))  # k, j, i, frame
        sitk.WriteImage(sitk.GetImageFromArray(side_by_side, isVector=True), str(path))
    else:
        sitk.WriteImage(sitk.GetImageFromArray(frames, isVector=False), str(path), ending == ".mha")
    return path


def point_file(folder: Path, ending: str) -> Path:
    """A sound file of points."""
    texts = {
        ".mrk.json": '{"markups": [{"type": "Line", "coordinateSystem": "LPS", "controlPoints": '
        '[{"id": "1", "label": "a", "position": [1, 2, 3], "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1]}]}]}',
        ".fcsv": "# CoordinateSystem = LPS\n# columns = id,x,y,z\n1,1.0,2.0,3.0,0,0,0,1,1,1,0,F-1,,\n",
        ".vtk": "# vtk DataFile Version 4.2\nSPACE=RAS\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n0 0 0 1 0 0\n0 1 0\n"
        "POLYGONS 1 4\n3 0 1 2\nPOINT_DATA 3\nNORMALS Normals float\n0 0 1\n0 0 1\n0 0 1\n",
        ".vtp": '<?xml version="1.0"?>\n<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" '
        'header_type="UInt32">\n'
        '<PolyData><Piece NumberOfPoints="2"><PointData Normals="N"><DataArray type="Float32" Name="N" '
        'NumberOfComponents="3" format="ascii">0 0 1 0 0 1</DataArray></PointData><Points><DataArray type="Float32" '
        'Name="Points" NumberOfComponents="3" format="binary">GAAAAAAAAAAAAAAAAAAAAAAAgD8AAABAAABAQA=='
        "</DataArray></Points>"
        "</Piece></PolyData></VTKFile>\n",
        ".stl": "solid SPACE=LPS\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\n"
        "endfacet\nendsolid\n",
        ".ply": "ply\nformat ascii 1.0\ncomment SPACE=LPS\nelement vertex 3\nproperty float x\nproperty float y\n"
        "property float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
    }
    texts[".vtu"] = texts[".vtp"].replace("PolyData", "UnstructuredGrid")
    path = folder / f"a{ending}"
    path.write_text(texts[ending], encoding="utf-8")
    return path


@st.composite
def damages(draw):  # noqa: C901  (a list of kinds of damage, not a decision)
    """A function that damages bytes: some changed, cut, doubled, numbers of a text or of a header replaced."""
    kind = draw(st.sampled_from(["bytes", "cut", "insert", "number", "double", "zero", "digits"]))
    place, seed = draw(st.floats(0, 1)), draw(st.integers(0, 2**32 - 1))
    count = draw(st.sampled_from([1, 1, 1, 2, 4, 16]))
    wild = draw(st.sampled_from(WILD))

    def damaged(content: bytes) -> bytes:
        random = np.random.default_rng(seed)
        content = bytearray(content)
        # Headers come first and matter most.
        at = int(place**3 * max(1, len(content) - 1))
        if kind == "bytes":
            for index in np.minimum(at + random.integers(0, 40, count), len(content) - 1):
                content[index] = int(random.integers(0, 256))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = random.bytes(count)
        elif kind == "number":
            form = random.choice(["<f4", "<f8", "<i2", "<i4", ">f4", ">i4"])
            with np.errstate(all="ignore"):
                bits = np.array(wild if form[1] == "f" else np.nan_to_num(wild)).astype(form).tobytes()
            content[at : at + len(bits)] = bits
        elif kind == "double":
            content += content[at:]
        elif kind == "zero":
            content[at : at + 16 * count] = bytes(min(16 * count, len(content) - at))
        elif kind == "digits":
            digits = [index for index in range(min(len(content), 4000)) if chr(content[index]).isdigit()]
            if digits:
                start = digits[int(place * (len(digits) - 1))]
                content[start : start + 1] = random.choice(
                    [b"nan", b"inf", b"-1", b"0", b"1e30", b"", b"1,5", b"99999999"]
                )
        return bytes(content)

    return damaged


class TooLong(Exception):
    """A file that takes longer than LONGEST."""


def _alarm(*_):
    raise TooLong


def used(action) -> None:
    """Carry out what an InputError of one sentence may end, and nothing else; raises AssertionError otherwise."""
    previous = signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            action()
    except InputError as error:
        message = str(error)
        assert message.endswith(".") and "\n" not in message and "Traceback" not in message, f"no sentence: {message!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def volume_is_used(path: Path) -> None:
    """Read a volume, check it, make it ready, move it and write it."""
    target = path.parent.parent / "out.nii"

    def action() -> None:
        volume = load(path.parent if path.suffix == ".dcm" else path)
        assert np.isfinite(volume.voxel_to_ras).all() and volume.data.dtype == np.float32
        if volume.data.size > 1e6:
            return
        validate(volume)
        prepared = sampling.prepare(volume)
        assert np.isfinite(prepared.tissue_center).all() and np.isfinite(prepared.window).all()
        values = sampling.sample(prepared, sampling.canonical_grid(prepared, 8, volume.spacing.max()))
        low, high = float(values.min()), float(values.max())
        assert np.isfinite(values.numpy()).all() and -1e-5 <= low <= high <= 1 + 1e-5, (
            f"{low} to {high}, {prepared.window}"
        )
        for how in ("linear", "cubic", "nearest"):
            moved = resample(volume, volume, interpolation=how)
        save(moved, target)

    used(action)
    assert not list(target.parent.glob(".*part*")), "a half-written file"


def series_is_used(path: Path) -> None:
    """Open a series and read its first and last frame."""

    def action() -> None:
        series = open_series(path, path.parent)
        for index in (0, series.count - 1):
            assert series.frame(index).shape == tuple(series.shape)

    used(action)


def segmentation_is_used(path: Path) -> None:
    """Read a segmentation and write it moved."""
    target = path.parent.parent / "out.seg.nrrd"

    def action() -> None:
        segments = load_segmentation(path)
        grid = Volume(np.zeros((4, 4, 4), np.uint8), _MATRIX)
        save_segmentation(segments.moved(grid, np.eye(4)), target)

    used(action)


def jobs() -> list[tuple[str, str]]:
    """What is damaged: (kind, ending)."""
    found = [("volume", ending) for ending in VOLUMES]
    found += [("values", ".nii"), *(("transform", ending) for ending in FORMATS if ending != ".dcm")]
    found += [("points", ending) for ending in POINTS]
    return found + [("series", ending) for ending in SERIES] + [("segmentation", ".seg.nrrd")]


def main(minutes: float) -> int:
    """Damage files for some time; returns the exit status."""
    end, found, rounds = time.monotonic() + 60 * minutes, set(), 0
    while time.monotonic() < end:
        for kind, ending in jobs():
            if time.monotonic() > end:
                break
            for finding in in_a_child(kind, ending, rounds):
                if finding["key"] not in found:
                    found.add(finding["key"])
                    print("FOUND", finding["key"], finding["words"], flush=True)
        rounds += 1
    print(f"{rounds} rounds of {len(jobs())} kinds of files; {len(found)} findings")
    return 1 if found else 0


def in_a_child(kind: str, ending: str, seed: int, examples: int = 60) -> list[dict]:
    """The findings of an attempt in a process of its own, since a library of C may end the process it is in, or never.

    The file that did is kept, and named.
    """
    folder = tempfile.mkdtemp(prefix="mutated-")
    told, write = os.pipe()
    child = os.fork()
    if child == 0:
        tempfile.tempdir = folder
        used_already = int(sum(os.times()[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used_already + 10 * LONGEST, resource.RLIM_INFINITY))
        with os.fdopen(write, "w") as file:
            for finding in findings(kind, ending, seed, examples):
                file.write(json.dumps(finding) + "\n")
        os._exit(0)
    os.close(write)
    with os.fdopen(told) as file:
        found = [json.loads(line) for line in file]
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return [*found, {"key": f"{kind} {ending} {name}", "words": f"seed {seed}, the file is in {folder}"}]
    shutil.rmtree(folder, ignore_errors=True)
    return found


def findings(kind: str, ending: str, seed: int, examples: int) -> list[dict]:
    """What must not be, of one attempt."""
    try:
        attempt(kind, ending, examples, seed)
    except BaseException as group:
        found = []
        for error in getattr(group, "exceptions", [group]):
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{kind} {ending} {type(error).__name__} {Path(place.filename).name}:{place.lineno}"
            found.append({"key": key, "words": f"seed {seed}: {str(error)[:300]!r}"})
        return found
    return []


def attempt(kind: str, ending: str, examples: int, seed: int) -> None:
    """Damage files of a kind ``examples`` times; raises what must not be."""
    from hypothesis import seed as seeded

    data = np.random.default_rng(0).integers(0, 1000, (8, 9, 10)).astype(np.int16)

    @seeded(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate, Phase.shrink])  # fmt: skip
    @given(damages(), st.lists(st.tuples(st.integers(0, 719), st.sampled_from(WILD)), max_size=400))
    def one(damage, values):
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base, "in")
            folder.mkdir()
            if kind == "values":
                wild = data.astype(np.float64)
                for index, value in values:
                    wild.flat[index] = value
                volume_is_used(volume_file(folder, ending, wild))
                return
            if kind == "volume":
                path = volume_file(folder, ending, data)
                path.write_bytes(damage(path.read_bytes()))
                volume_is_used(path)
            elif kind == "series":
                path = series_file(folder, ending, data)
                path.write_bytes(damage(path.read_bytes()))
                series_is_used(path)
            elif kind == "segmentation":
                path = folder / f"a{ending}"
                labels = Volume((data % 3).astype(np.uint8), _MATRIX)
                save_segmentation(Segmentation((labels, labels), (("Segment0_Name", "a"),)), path)
                path.write_bytes(damage(path.read_bytes()))
                segmentation_is_used(path)
            elif kind == "transform":
                path = folder / f"a{ending}"
                write_transform(_MATRIX, path)
                path.write_bytes(damage(path.read_bytes()))
                used(lambda: read_transform(path))
            else:
                path = point_file(folder, ending)
                path.write_bytes(damage(path.read_bytes()))
                used(lambda: move_points(path, folder / f"b{ending}", _MATRIX))

    one()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", nargs="?", type=float, default=10.0, metavar="MINUTES", help="default: 10")
    sys.exit(main(parser.parse_args().minutes))
