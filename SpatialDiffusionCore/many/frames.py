"""Series of frames: a 4D NIfTI or NRRD file, a folder of volumes, or a folder of DICOM files; read one frame at a time.

A compressed file can't be read from the middle, so it is unpacked into a scratch folder first; memory stays that of a
frame, however many there are. (A 4D NRRD or MetaImage file is read whole, once, to be unpacked.)
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import extension
from ..spatial import geometry
from ..spatial.volume import Volume
from ..spatial.volume_file import ITK_IMAGES, NIFTI, load
from ..spatial.volume_io import nifti

#: Where header matrices of one series may differ: in voxels, at the corners.
SAME_PLACE = 1e-2


@dataclass
class Series:
    """Frames on one voxel grid.

    shape: voxels (I, J, K) of each; voxel_to_ras: 4×4, RAS mm; count: how many; interval: seconds from frame to frame
    (None where the files don't say); sources: what ``frame`` reads: one 4D array file (.nii or .npy), or per frame a
    file or a list of DICOM slices. Picklable: another process reads the same files.
    """

    name: str
    shape: tuple[int, int, int]
    voxel_to_ras: np.ndarray
    count: int
    interval: float | None
    sources: list = field(default_factory=list)
    array: np.ndarray | None = None
    _scratch: tempfile.TemporaryDirectory | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_scratch": None, "_proxy": None}

    def on_disk(self, scratch=None) -> Series:
        """The same series, not in memory: other processes read it from a scratch file instead of being sent it."""
        if self.array is None:
            return self
        folder = _scratch_folder(scratch)
        path = os.path.join(folder.name, "series.npy")
        np.save(path, np.asfortranarray(self.array))  # frame after frame
        return replace(self, sources=[path], array=None, _scratch=folder)

    def frame(self, index: int) -> np.ndarray:
        """Frame ``index`` (from 0) as a float32 array I×J×K."""
        if self.array is not None:
            return np.asarray(self.array[..., index], np.float32)
        if len(self.sources) == 1 and isinstance(self.sources[0], str) and self.count > 1:
            return np.asarray(self._whole()[..., index], np.float32)
        source = self.sources[index]
        return _stack(source)[0] if isinstance(source, list) else np.asarray(load(source).data, np.float32)

    def volume(self, index: int) -> Volume:
        """Frame ``index`` as a Volume."""
        return Volume(self.frame(index), self.voxel_to_ras, f"frame {index} of {self.name}")

    def _whole(self):
        proxy = self.__dict__.get("_proxy")
        if proxy is None:
            import nibabel

            path = self.sources[0]
            image: Any = None if path.endswith(".npy") else nibabel.load(path)
            proxy = np.load(path, mmap_mode="r") if image is None else image.dataobj
            self.__dict__["_proxy"] = proxy
        return proxy


def open_series(source, scratch=None) -> Series:
    """Open a series: a path (4D NIfTI, NRRD or MetaImage; a folder of volumes or of DICOM files), Volumes, or a Series.

    scratch: a folder for what must be unpacked (default: the system's). Raises InputError (one sentence) where frames
    differ in shape or place, or there is only one.
    """
    if isinstance(source, Series):
        return _checked(source)
    if isinstance(source, (list, tuple)):
        return _checked(_of_volumes(source))
    path = os.path.abspath(os.fspath(source))  # other processes may work in another folder
    if os.path.isdir(path):
        return _checked(_of_folder(path))
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; give a 4D file, a folder of volumes or a folder of DICOM files.")
    kind = extension(path)
    if kind in NIFTI:
        return _checked(_of_nifti(path, scratch))
    if kind in ITK_IMAGES:
        return _checked(_of_itk(path, scratch))
    raise InputError(f"{path} is not a known series; use one of: {', '.join(NIFTI + ITK_IMAGES)}, or a folder.")


def _checked(series: Series) -> Series:
    if series.count < 2:
        raise InputError(f"{series.name} holds one frame; a series has two at least (use register for two volumes).")
    if min(series.shape) < 4:
        raise InputError(
            f"The frames of {series.name} have {'×'.join(map(str, series.shape))} voxels; "
            "at least 4 are needed along each axis."
        )
    steps = series.voxel_to_ras[:3, :3] / geometry.spacing(series.voxel_to_ras)
    if np.abs(steps.T @ steps - np.eye(3)).max() > 1e-3:
        raise InputError(f"The header of {series.name} is sheared; resample it on a rectangular grid first.")
    return series


def _of_volumes(volumes: Sequence) -> Series:
    if not volumes:
        raise InputError("The series is empty; give two volumes at least.")
    for index, one in enumerate(volumes):
        if not isinstance(one, Volume):
            raise InputError(f"Frame {index} is no Volume but {type(one).__name__}; load it first.")
        _same_grid(volumes[0], one, "the series")
    first = volumes[0]
    stacked = np.stack([v.data for v in volumes], axis=-1)
    return Series("series", first.shape, first.voxel_to_ras, len(volumes), None, array=stacked)


def _same_grid(first: Volume, other: Volume, series: str) -> None:
    if first.shape != other.shape:
        shapes = ("×".join(map(str, one.shape)) for one in (first, other))
        raise InputError(
            f"The frames of {series} differ: {first.name} has {next(shapes)} voxels, {other.name} has {next(shapes)}; "
            "a series has one shape (use group instead)."
        )
    apart = np.linalg.inv(first.voxel_to_ras) @ other.voxel_to_ras - np.eye(4)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(first.shape) - 1)
    if np.abs(corners @ apart[:3, :3].T + apart[:3, 3]).max() > SAME_PLACE:
        raise InputError(
            f"{first.name} and {other.name} lie on different voxel grids, so they are no frames of one series; "
            "use group instead."
        )


def _of_nifti(path: str, scratch) -> Series:
    import nibabel

    folder = None
    try:
        header: Any = nibabel.load(path)
        shape = [n for n in header.shape]
        if path.lower().endswith(".gz"):
            folder = _scratch_folder(scratch)
            unpacked = os.path.join(folder.name, "series.nii")
            with gzip.open(path, "rb") as packed, open(unpacked, "wb") as plain:
                shutil.copyfileobj(packed, plain, 2**20)
        else:
            unpacked = path
        image: Any = nibabel.load(unpacked)
        if os.path.getsize(unpacked) < image.dataobj.offset + np.prod(shape) * image.get_data_dtype().itemsize:
            raise InputError(f"{path} is truncated: it ends before its last frame; copy it again.")
    except InputError:
        raise
    except Exception as error:  # nibabel and zlib raise many kinds for damaged files
        raise InputError(f"{path} cannot be read as NIfTI ({str(error).splitlines()[-1][:200]}).") from error
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 3:
        shape.append(1)
    if len(shape) != 4:
        raise InputError(f"{path} is not 4D: its array has shape {'×'.join(map(str, shape))}.")
    interval = float(header.header.get_zooms()[3]) if len(header.header.get_zooms()) > 3 else 0.0
    unit = header.header.get_xyzt_units()[1]
    interval *= {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    matrix = geometry.as_affine(nifti.place(path, shape)[0], f"the header of {path}")
    return Series(
        os.path.basename(path), tuple(shape[:3]), matrix, shape[3], interval or None, [unpacked], _scratch=folder
    )


def _scratch_folder(scratch) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix=".series-", dir=scratch)


def _of_itk(path: str, scratch) -> Series:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read ({str(error).strip().splitlines()[-1][:200]}).") from error
    array = sitk.GetArrayViewFromImage(image)
    if image.GetDimension() == 3 and image.GetNumberOfComponentsPerPixel() > 1:
        array = array.transpose(2, 1, 0, 3)  # Slicer's sequences: the frames are the components
    elif image.GetDimension() == 4:
        array = array.transpose(3, 2, 1, 0)
    else:
        raise InputError(f"{path} holds one frame; a series has two at least (use register for two volumes).")
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:3, :3]
    steps, origin = np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3])
    folder = _scratch_folder(scratch)
    unpacked = os.path.join(folder.name, "series.npy")
    scratch_array = np.lib.format.open_memmap(unpacked, "w+", array.dtype, array.shape, fortran_order=True)
    for index in range(array.shape[3]):
        scratch_array[..., index] = array[..., index]
    scratch_array.flush()
    matrix = geometry.LPS_RAS @ geometry.from_parts(direction * steps, origin)
    interval = float(image.GetSpacing()[3]) if image.GetDimension() == 4 else None
    return Series(
        os.path.basename(path), array.shape[:3], matrix, array.shape[3], interval, [unpacked], _scratch=folder
    )


def _of_folder(path: str) -> Series:
    name = os.path.basename(os.path.abspath(path))
    files = sorted((f for f in Path(path).iterdir() if f.is_file() and not f.name.startswith(".")), key=_natural)
    volumes = [f for f in files if extension(f) in NIFTI + ITK_IMAGES]
    if volumes:
        first = load(volumes[0])
        for other in volumes[1:]:
            _same_grid(first, _header_of(other), name)
        return Series(name, first.shape, first.voxel_to_ras, len(volumes), None, [str(f) for f in volumes])
    return _of_dicom(path, name)


def _header_of(path) -> Volume:
    """A volume of the file's grid, without reading its voxels where the format allows."""
    if extension(path) in NIFTI:
        import nibabel

        image: Any = nibabel.load(os.fspath(path))
        if len(image.shape) == 3:
            matrix = nifti.place(os.fspath(path), image.shape)[0]
            return Volume(np.broadcast_to(np.zeros(1, np.uint8), image.shape), matrix, Path(path).name)
    return load(path)


def _natural(path: Path) -> list:
    """Sorts frame_2 before frame_10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


#: DICOM tags: what a slice's header says of its place, its time and its series.
_TAGS = {
    "instance": "0020|0013",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "series": "0020|000e",
    "time": "0020|0100",
    "description": "0008|103e",
    "repetition": "0018|0080",
}


def _of_dicom(path: str, name: str) -> Series:
    """Slices are grouped by where they lie; the n-th slice in time at each place belongs to frame n."""
    slices: dict[str, list] = {}
    for folder, _, names in os.walk(path):
        for file in sorted(names):
            tags = _tags(os.path.join(folder, file))
            if tags is not None:
                slices.setdefault(tags["series"], []).append(tags)
    if not slices:
        raise InputError(f"{path} holds neither volumes ({', '.join(NIFTI + ITK_IMAGES)}) nor DICOM images.")
    if len(slices) > 1:
        listed = "; ".join(f"{len(s)} images '{s[0]['description']}'" for s in slices.values())
        raise InputError(f"{path} holds {len(slices)} DICOM series ({listed}); put one of them in a folder of its own.")
    (found,) = slices.values()
    orientation = np.array([float(v) for v in found[0]["orientation"].split("\\")])
    normal = np.cross(orientation[:3], orientation[3:])
    places: dict[float, list] = {}
    for one in found:
        position = np.array([float(v) for v in one["position"].split("\\")])
        places.setdefault(round(float(position @ normal), 2), []).append(one)
    for stack in places.values():
        stack.sort(key=lambda one: (_number(one["time"]), _number(one["instance"])))
    counts = {len(stack) for stack in places.values()}
    if len(counts) != 1:
        raise InputError(
            f"The DICOM series in {path} is not complete: its {len(places)} slice positions have {min(counts)} to "
            f"{max(counts)} images; copy the missing ones."
        )
    heights = sorted(places)
    steps = np.diff(heights)
    if len(steps) and steps.max() - steps.min() > 0.05 * abs(steps.mean()):
        raise InputError(f"Slices are missing in the DICOM series in {path}: their distances differ; copy them again.")
    frames = [[places[height][index]["path"] for height in heights] for index in range(counts.pop())]
    data, matrix = _stack(frames[0])
    interval = _number(found[0]["repetition"]) / 1000 or None
    return Series(name, data.shape, matrix, len(frames), interval, frames)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _tags(path: str) -> dict | None:
    """What matters of a DICOM image's header; None where the file is none."""
    import SimpleITK as sitk

    with open(path, "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    found = {key: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else "" for key, tag in _TAGS.items()}
    return {**found, "path": path} if found["position"] and found["orientation"] else None


def _stack(files: list[str]) -> tuple:
    """(float32 array I×J×K, 4×4 voxel → RAS) of the DICOM slices of one frame, in the order of their places."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = reader.Execute()
    direction = np.array(image.GetDirection()).reshape(3, 3)
    matrix = geometry.LPS_RAS @ geometry.from_parts(direction * image.GetSpacing(), image.GetOrigin())
    return np.asarray(sitk.GetArrayFromImage(image).T, np.float32), matrix
