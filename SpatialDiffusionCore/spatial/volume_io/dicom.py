"""A folder of DICOM files as volumes: which series there are, where each slice lies, slices that are missing.

GDCM (through SimpleITK) reads headers and decodes pixels, as in Slicer. Where a volume lies follows from the position
of every slice (DICOM PS3.3 C.7.6.2.1.1), so that a tilted gantry stays as it was. Only the frames of "enhanced" files,
which hold many slices each, need pydicom.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import InputError
from .. import geometry
from . import numbers
from .itk import quiet_itk
from .stored import Frames, Stored, unreadable

EXTENSIONS = (".dcm", ".ima", ".dicom")

#: A step between slices that differs by more than this share of the usual one is no rounding.
_UNEVEN = 0.02

#: Enhanced CT, MR, PET and XA: many slices in a file, each with a place of its own.
_ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.130")


@dataclass(frozen=True)
class _Slice:
    """A slice in a file. position: LPS mm of its first voxel's center; axes: 3×2, LPS mm from voxel to voxel along a
    row and down a column; order: what sorts slices of one place in time; stored: bytes of all pixels of
    its file, where they are not compressed; measured: the file says how large its voxels are."""

    path: str
    frame: int
    position: np.ndarray
    axes: np.ndarray
    order: tuple
    size: tuple
    stored: int = 0
    measured: bool = True

    @property
    def pixels(self) -> tuple[str, int, int]:
        """Where its pixels are: file, frame in it, bytes of all pixels there (0: not told)."""
        return self.path, self.frame, self.stored

    @property
    def normal(self) -> np.ndarray:
        normal = np.cross(self.axes[:, 0], self.axes[:, 1])
        return normal / np.linalg.norm(normal)


@dataclass
class _Series:
    """Slices of one series that lie parallel, at each place as many as there are volumes."""

    label: str
    number: int
    slices: list[_Slice] = field(default_factory=list)

    def places(self) -> list[list[_Slice]]:
        """The slices of each place, along the normal; at each place in the order of time."""
        along = sorted(self.slices, key=lambda s: (float(s.position @ s.normal), s.order))
        depths = np.array([s.position @ along[0].normal for s in along])
        gaps = np.diff(depths)
        apart = 0.1 * np.median(gaps[gaps > 1e-3]) if (gaps > 1e-3).any() else 1.0
        places = [[along[0]]]
        for one, gap in zip(along[1:], gaps):
            if gap > apart:
                places.append([])
            places[-1].append(one)
        return [sorted(place, key=lambda s: s.order) for place in places]


def read(path: str, index: int | None = None) -> Stored:
    """Volume ``index`` (from 0) of a folder of DICOM files, or of one file of many slices.

    Raises InputError, which lists what there is, where the folder holds several volumes and none was chosen.
    """
    chosen, label, warnings = _chosen(path, index)
    return _volume(chosen, label, warnings)


def frames(path: str, scratch) -> Frames:
    """The volumes of the one series in a folder of DICOM files (or of a file of many slices).

    Raises InputError where there are several series, or slices are missing: frames of one shape are wanted.
    """
    stacks = _stacks(path)
    if not stacks:
        raise InputError(f"{path} holds neither volumes nor DICOM images; give a 4D file, or the folder of a series.")
    if len(stacks) > 1:
        listed = "; ".join(f"{one.label}, {len(one.slices)} images" for one, _ in stacks)
        raise InputError(f"{path} holds {len(stacks)} DICOM series ({listed}); put one of them in a folder of its own.")
    one, places = stacks[0]
    counts = {len(place) for place in places}
    if len(counts) > 1:
        raise InputError(
            f"The DICOM series in {path} is not complete: its {len(places)} slice positions have {min(counts)} to "
            f"{max(counts)} images; copy the missing ones."
        )
    if len(places) < 2:
        raise InputError(f"{path} is not a series of volumes: {one.label} has a single slice position.")
    count = counts.pop()
    stack = _Stack([[place[n].pixels for place in places] for n in range(count)])
    first = _volume([place[0] for place in places], one.label, [])
    if first.data.shape[2] != len(places):
        raise InputError(f"Slices are missing in the DICOM series in {path}: their distances differ; copy them again.")
    source: Any = stack
    if len({slice_.path for slice_ in one.slices}) < len(one.slices):  # files of many slices are read once
        kept: dict = {}
        source = numbers.written_down((stack.read(n, kept) for n in range(count)), first.data.shape, scratch)
    return Frames(first.data.shape, first.voxel_to_ras, count, source, _repetition(one.slices[0]), first.warnings)


@dataclass(frozen=True)
class _Stack:
    """Where the pixels of the slices of each frame are, in the order of their places."""

    frames: list[list[tuple[str, int, int]]]

    def read(self, index: int, kept: dict | None = None) -> np.ndarray:
        """Frame ``index`` as a float32 array I×J×K; ``kept``: the file that was read last, for the frame after it."""
        return np.asarray(_pixels(self.frames[index], kept), np.float32)


def _repetition(one: _Slice) -> float | None:
    """Seconds from frame to frame: the repetition time in a slice's header."""
    reader = _header_of(one.path)
    return None if reader is None else _number(_tag(reader, "0018|0080")) / 1000 or None


def files_of(path: str | None) -> list[str]:
    """The files of a volume that was read from ``path`` (``FOLDER@N``), in their order; none where it is not DICOM."""
    path = path or ""
    match = re.fullmatch(r"(.+)@(\d+)", path, re.DOTALL)
    folder, index = (match[1], int(match[2])) if match and not os.path.exists(path) else (path, None)
    if not os.path.exists(folder) or os.path.isfile(folder) and not looks_like(folder):
        return []
    return list(dict.fromkeys(one.path for one in _chosen(folder, index)[0]))


def looks_like(path: str) -> bool:
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _chosen(path: str, index: int | None) -> tuple[list[_Slice], str, list[str]]:
    """(the slices of volume ``index`` in their order, what it is called, sentences about what is missing)."""
    stacks = _stacks(path)
    if not stacks:
        what = "is a folder without" if os.path.isdir(path) else "holds no"
        raise InputError(f"{path} {what} DICOM images; give a file of another format, or the folder of a series.")
    counts = [min(len(place) for place in places) for _, places in stacks]
    first = np.cumsum([0, *counts])
    if index is None and first[-1] > 1:
        raise InputError(_choice(path, stacks, counts, first))
    index = index or 0
    if index >= first[-1]:
        raise InputError(f"{path} has no volume {index}; it holds volumes 0 to {first[-1] - 1}.")
    which = int(np.searchsorted(first, index, side="right")) - 1
    one, places = stacks[which]
    if len(places) < 2:
        raise InputError(
            f"{path} is not a 3D volume: {one.label} has a single slice; give the folder of all its files."
        )
    chosen = [place[index - first[which]] for place in places]
    warnings = []
    if len({len(place) for place in places}) > 1:
        warnings.append(f"{one.label} is incomplete: not all of its {len(places)} slices are there equally often.")
    return chosen, one.label, warnings


def _stacks(path: str) -> list[tuple[_Series, list[list[_Slice]]]]:
    """(series, the slices of each of its places); single slices, such as scouts, count where there is nothing else."""
    stacks = [(one, one.places()) for one in _series(path)]
    return [stack for stack in stacks if len(stack[1]) > 1] or stacks


def _choice(path: str, stacks, counts, first) -> str:
    lines = []
    for (one, places), count, start in zip(stacks, counts, first):
        numbers = f"{start}" if count == 1 else f"{start} to {start + count - 1}"
        lines.append(f"{numbers}: {one.label}, {len(places)} slices")
    shown = "; ".join(lines[:12]) + ("; …" if len(lines) > 12 else "")
    return f"{path} holds {first[-1]} volumes ({shown}): choose one by writing {path}@INDEX, for example {path}@0."


def _series(path: str) -> list[_Series]:
    """The series of a folder (its subfolders included) or file, in the order of their numbers.

    What else such folders hold is left out: objects that are no images, pictures of the screen, and copies of a file.
    """
    found: dict[tuple, _Series] = {}
    seen: set[str] = set()
    no_slices: list[InputError] = []
    for name in _files(path):
        reader = _header_of(name)
        instance = "" if reader is None else _tag(reader, "0008|0018")
        if reader is None or instance in seen:
            continue
        seen.add(instance or name)
        try:
            for key, label, number, one in _slices(reader, name):
                found.setdefault(key, _Series(label, number)).slices.append(one)
        except _NoSlices as error:
            no_slices.append(error)
    if no_slices and not found:
        raise no_slices[0]
    return sorted(found.values(), key=lambda one: (one.number, one.label))


class _NoSlices(InputError):
    """An image that is none of a volume."""


def _header_of(name: str):
    """SimpleITK's reader of a file whose header it has read; None where the file is no DICOM image."""
    with quiet_itk() as sitk:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.SetImageIO("GDCMImageIO")
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if _has_pixels(name):
                raise InputError(f"{name} is truncated or damaged; copy or export it again.") from error
            return None
        return reader


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if not name.startswith(".") and name != "DICOMDIR"
    )


def _tag(reader, key: str) -> str:
    return reader.GetMetaData(key).strip().strip("\0") if reader.HasMetaDataKey(key) else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _slices(reader, path: str):
    """(key of the series, label, number, _Slice) of each slice in a file whose header has been read."""
    if reader.GetNumberOfComponents() > 1:
        raise _NoSlices(f"{path} is a color image, which is no slice of a volume; give the folder of another series.")
    if "MOSAIC" in _tag(reader, "0008|0008").upper():
        raise InputError(
            f"{path} is a mosaic, which cannot be read as slices; convert it to NIfTI with dcm2niix first."
        )
    words = _tag(reader, "0008|103e") or _tag(reader, "0018|1030") or "series without a name"
    number = int(_number(_tag(reader, "0020|0011")))
    label = f"'{words}' ({_tag(reader, '0008|0060') or 'unknown modality'}, series {number})"
    uid, size = _tag(reader, "0020|000e"), tuple(reader.GetSize()[:2])
    order = tuple(_number(_tag(reader, key)) for key in ("0020|0100", "0020|0012", "0008|0032", "0020|0013"))
    if reader.GetDimension() < 3:
        raise _NoSlices(f"{path} does not say where its slices lie, so they make no volume.")
    if reader.GetSize()[2] > 1:
        frames = _frames(reader, path, order, size)
    else:
        if not reader.HasMetaDataKey("0020|0032") and _tag(reader, "0008|0016") not in _ENHANCED:
            raise _NoSlices(f"{path} does not say where its slice lies (no Image Position), so there is no volume.")
        axes = np.array(reader.GetDirection()).reshape(3, 3)[:, :2] * np.array(reader.GetSpacing()[:2])
        frames = [_Slice(path, 0, np.array(reader.GetOrigin()), axes, order, size)]
    # ITK takes the spacing from these, and 1 mm where there is neither.
    measured = any(map(reader.HasMetaDataKey, ("0028|0030", "0018|1164"))) or _tag(reader, "0008|0016") in _ENHANCED
    stored = int(np.prod(reader.GetSize(), dtype=float) * _number(_tag(reader, "0028|0100")) / 8)
    for one in frames:
        parallel = tuple(np.round(one.normal, 2) + 0.0)
        yield (uid, size, parallel), label, number, replace(one, stored=stored, measured=measured)


def _has_pixels(path: str) -> bool:
    """Whether a file is DICOM and begins to hold pixels; reports, plans and the like hold none."""
    if not looks_like(path):
        return False
    with open(path, "rb") as file:
        return b"\xe0\x7f\x10\x00" in file.read()


def _cut_off(path: str, stored: int) -> bool:
    """Whether a file ends before its pixels do, of which there are to be ``stored`` bytes; GDCM fills up what is
    missing.

    Those of compressed pixels are not told beforehand, and their decoder notices.
    """
    with open(path, "rb") as file:
        content = file.read()
    for found in re.finditer(rb"\xe0\x7f\x10\x00(?:O[BW]\x00\x00)?(?=(.{4}))", content, re.DOTALL):
        if int.from_bytes(found[1], "little") in (stored, stored + 1):
            return len(content) < found.end() + 4 + stored
    return False


def _frames(reader, path: str, order: tuple, size: tuple) -> list[_Slice]:
    """The slices of a file that holds many."""
    if _tag(reader, "0008|0016") not in _ENHANCED:  # positions follow from the first and the spacing, as ITK has them
        matrix = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
        return [
            _Slice(path, n, np.array(reader.GetOrigin()) + n * matrix[:, 2], matrix[:, :2], order, size)
            for n in range(reader.GetSize()[2])
        ]
    try:
        import pydicom
    except ImportError:
        raise InputError(
            f"{path} is an enhanced DICOM file, whose slices need pydicom: install it with pip install pydicom, or "
            "convert the file to NIfTI with dcm2niix."
        ) from None
    content = pydicom.dcmread(path, stop_before_pixels=True)
    shared, slices = content.SharedFunctionalGroupsSequence[0], []
    for frame, own in enumerate(content.PerFrameFunctionalGroupsSequence):

        def group(name, own=own):
            return (getattr(own, name, None) or getattr(shared, name))[0]

        cosines = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3).T
        down, along = map(float, group("PixelMeasuresSequence").PixelSpacing)  # between rows, between columns
        position = np.array(group("PlanePositionSequence").ImagePositionPatient, float)
        content_of = getattr(own, "FrameContentSequence", [None])[0]
        time = _number(str(getattr(content_of, "TemporalPositionIndex", 0) or 0))
        slices.append(_Slice(path, frame, position, cosines * [along, down], (time, *order, frame), size))
    return slices


def _volume(slices: list[_Slice], label: str, warnings: list[str]) -> Stored:
    """The volume of slices in their order; put at even distances where some are missing."""
    positions = np.array([one.position for one in slices])
    depths = positions @ slices[0].normal
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    data = _pixels([one.pixels for one in slices])
    count = len(slices)
    if np.abs(gaps - usual).max() > _UNEVEN * usual:
        count = round((depths[-1] - depths[0]) / usual) + 1
        data = _evenly(data, depths, count)
        warnings.append(
            f"The slices of {label} lie {gaps.min():.3g} to {gaps.max():.3g} mm apart (missing or uneven); those in "
            f"between were interpolated, {count} in place of {len(slices)}."
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    tilt = np.degrees(np.arccos(np.clip(step @ slices[0].normal / np.linalg.norm(step), -1, 1)))
    if tilt > 0.1:
        warnings.append(f"The slices of {label} are sheared by {tilt:.1f}° (a tilted gantry) and are used as they lie.")
    if not all(one.measured for one in slices):
        warnings.append(
            f"The slices of {label} do not say how large their voxels are (no Pixel Spacing): they are taken for 1 mm, "
            "as in Slicer and ITK."
        )
    linear = np.column_stack([slices[0].axes, step])
    return Stored(data, geometry.LPS_RAS @ geometry.from_parts(linear, positions[0]), tuple(warnings))


def _pixels(slices: list[tuple[str, int, int]], kept: dict | None = None) -> np.ndarray:
    """(I, J, K) array of the slices' rescaled values; slices: as _Slice.pixels says; kept: {file read last: array}."""
    wanted = defaultdict(list)
    for place, (path, frame, stored) in enumerate(slices):
        wanted[path, stored].append((place, frame))
    planes: list[tuple[int, np.ndarray]] = []
    for (path, stored), its in wanted.items():
        array = (kept or {}).get(path)
        if array is None:
            array = _read_pixels(path, stored)
            if kept is not None:
                kept.clear()
                kept[path] = array
        planes += [(place, array[frame].T) for place, frame in its]
    return np.stack([plane for _, plane in sorted(planes, key=lambda item: item[0])], axis=2)


def _read_pixels(path: str, stored: int) -> np.ndarray:
    """All planes of a file, (K, J, I). Raises InputError where some are missing."""
    if _cut_off(path, stored):
        raise InputError(f"{path} is truncated: it ends before the last of its voxels; copy or export it again.")
    try:
        with quiet_itk() as sitk:
            return sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO="GDCMImageIO"))
    except RuntimeError as error:
        raise unreadable(path, error) from error


def _evenly(data: np.ndarray, depths: np.ndarray, count: int) -> np.ndarray:
    """Slices at ``depths`` (ascending) interpolated at as many even ones."""
    wanted = np.linspace(depths[0], depths[-1], count)
    after = np.clip(np.searchsorted(depths, wanted), 1, len(depths) - 1)
    share = (wanted - depths[after - 1]) / (depths[after] - depths[after - 1])
    result = data[..., after - 1] * (1 - share) + data[..., after] * share
    return np.rint(result).astype(data.dtype) if data.dtype.kind in "iu" else result.astype(data.dtype)
