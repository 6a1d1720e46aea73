"""DICOM Spatial Registration (.dcm), PS3.3 A.39.1 and C.20.2: source → registered points in LPS, with pydicom.

The object establishes the *registered* frame, which is the fixed volume's. Each of its items says how the points of one
*source* get there (C.20.2.1.1: the matrix takes a point with respect to B into A): that of the moving volume holds
moving → fixed, as in memory; that of the fixed volume is the identity. Other programs are known to store the inverse.
"""

from __future__ import annotations

import datetime
import io
from typing import Any

import numpy as np

from ...errors import InputError
from ..geometry import LPS_RAS, as_affine, inverse, spacing
from ..volume_io import dicom as series
from .text import ONLY_LINEAR, damaged

_SPATIAL_REGISTRATION = "1.2.840.10008.5.1.4.1.1.66.1"
_DEFORMABLE = "1.2.840.10008.5.1.4.1.1.66.3"

#: Attributes of the fixed series' patient and study that its registration shares.
_SHARED = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "ReferringPhysicianName",
    "AccessionNumber",
    "SpecificCharacterSet",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
]


def _pydicom(path):
    try:
        import pydicom
    except ImportError:
        raise InputError(f"'{path}' is DICOM and needs pydicom; install it with: pip install pydicom.") from None
    return pydicom


def read(content: bytes, path, moving, fixed) -> np.ndarray:
    """The matrix between two sources of a registration: moving and fixed tell which, where they are DICOM series.

    Otherwise there must be one source, or two of which one lies in the registered frame already: that is the fixed one.
    """
    pydicom = _pydicom(path)
    try:
        data = pydicom.dcmread(io.BytesIO(content))
        kind = str(data.get("SOPClassUID", ""))
        if kind == _DEFORMABLE:
            raise InputError(f"'{path}' holds a non-linear transform; {ONLY_LINEAR}.")
        if kind != _SPATIAL_REGISTRATION:
            raise InputError(f"'{path}' is a DICOM file, but not a Spatial Registration; give one of modality REG.")
        items = list(data.RegistrationSequence)
        matrices = [_matrix_of(item, path) for item in items]
    except InputError:
        raise
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise damaged(path) from error
    source = _chosen(items, moving, pydicom)
    target = _chosen(items, fixed, pydicom)
    if source is None and target is None:
        source, target = _told_apart(items, matrices, str(data.get("FrameOfReferenceUID", "")), path)
    elif source is None and target is not None:
        source = _other(items, target, path)
    to_registered = matrices[source] if source is not None else np.eye(4)
    if target is None and len(items) == 2:
        target = 1 - source if source is not None else None
    if target is not None and target != source:
        to_registered = inverse(matrices[target]) @ to_registered
    return as_affine(LPS_RAS @ to_registered @ LPS_RAS, f"The matrix in '{path}'")


def _matrix_of(item: Any, path) -> np.ndarray:
    """Source → registered (4×4, LPS) of an item."""
    sequence = item.MatrixRegistrationSequence[0].MatrixSequence
    parts = [np.array(one.FrameOfReferenceTransformationMatrix, float).reshape(4, 4) for one in sequence]
    ahead, behind = np.eye(4), np.eye(4)
    for part in parts:
        ahead, behind = ahead @ part, part @ behind
    # The order of the items is that of the multiplication (C.20.2.1.1), which programs read either way.
    if not np.allclose(ahead, behind, rtol=0, atol=1e-6):
        raise InputError(
            f"'{path}' gives a transform as a product of {len(parts)} matrices, and their order, which programs take "
            "differently, matters in it; export it as one matrix, or open it in the program that made it and save the "
            "transform there as .tfm or as a 4×4 matrix."
        )
    return as_affine(ahead, f"The matrix in '{path}'")


def _chosen(items: list[Any], volume, pydicom) -> int | None:
    """The item of a volume that is a DICOM series, None where it is none or no item is its."""
    headers = _headers(volume, pydicom)
    if not headers:
        return None
    instances = {str(header.SOPInstanceUID) for header in headers}
    for index, item in enumerate(items):
        images = item.get("ReferencedImageSequence") or []
        if any(str(image.get("ReferencedSOPInstanceUID", "")) in instances for image in images):
            return index
    frame = str(headers[0].get("FrameOfReferenceUID", "")) or None
    of_frame = [index for index, item in enumerate(items) if str(item.get("FrameOfReferenceUID", "")) == frame]
    return of_frame[0] if len(of_frame) == 1 else None


def _told_apart(items: list[Any], matrices: list[np.ndarray], registered: str, path):
    """(moving item, fixed item or None) by the items alone."""
    if len(items) == 1:
        return 0, None
    in_place = [index for index, matrix in enumerate(matrices) if np.allclose(matrix, np.eye(4), atol=1e-9)]
    if len(in_place) != 1:
        in_place = [
            index for index, item in enumerate(items) if str(item.get("FrameOfReferenceUID", "")) == registered != ""
        ]
    if len(items) != 2 or len(in_place) != 1:
        raise InputError(
            f"'{path}' registers {len(items)} series and does not tell which is fixed; give the DICOM folders of the "
            "moving and the fixed volume."
        )
    return 1 - in_place[0], in_place[0]


def _other(items: list[Any], target: int, path) -> int:
    if len(items) != 2:
        raise InputError(f"'{path}' registers {len(items)} series; give the DICOM folder of the moving volume, too.")
    return 1 - target


def _headers(volume, pydicom) -> list[Any]:
    """The headers of a volume's DICOM files, none where it is no DICOM series."""
    files = series.files_of(getattr(volume, "path", None)) if volume is not None else []
    return [pydicom.dcmread(name, stop_before_pixels=True) for name in files]


def written(matrix: np.ndarray, path, moving, fixed) -> bytes:
    """The content of a Spatial Registration of two DICOM series; InputError where either volume is no series."""
    pydicom = _pydicom(path)
    sources = [_headers(volume, pydicom) for volume in (fixed, moving)]
    if not all(sources):
        raise InputError(
            f"A DICOM Spatial Registration ('{path}') refers to DICOM series; give the folders of both, or write "
            "another format."
        )
    data = _empty_registration(pydicom, sources[0][0])
    to_registered = LPS_RAS @ matrix @ LPS_RAS
    for headers, source_matrix in zip(sources, (np.eye(4), to_registered)):
        item = pydicom.Dataset()
        if "FrameOfReferenceUID" in headers[0]:
            item.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
        item.ReferencedImageSequence = [_reference(pydicom, header) for header in headers]
        entry = pydicom.Dataset()
        values = (source_matrix + 0.0).ravel()
        entry.FrameOfReferenceTransformationMatrix = [pydicom.valuerep.DSfloat(v, auto_format=True) for v in values]
        entry.FrameOfReferenceTransformationMatrixType = _type_of(source_matrix)
        registration = pydicom.Dataset()
        registration.RegistrationTypeCodeSequence = []
        registration.MatrixSequence = [entry]
        item.MatrixRegistrationSequence = [registration]
        data.RegistrationSequence.append(item)
    buffer = io.BytesIO()
    if int(pydicom.__version__.split(".")[0]) < 3:  # the last one for Python 3.9, and in older Slicers
        data.is_little_endian, data.is_implicit_VR = True, False
        data.save_as(buffer, write_like_original=False)
    else:
        data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _empty_registration(pydicom, fixed: Any) -> Any:
    """A Spatial Registration in the fixed series' study and frame, without items."""
    from ... import __version__

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    for name in _SHARED:
        if name in fixed:
            setattr(data, name, fixed[name].value)
        elif name not in ("SpecificCharacterSet", "PositionReferenceIndicator", "FrameOfReferenceUID"):
            setattr(data, name, "")
    if "FrameOfReferenceUID" not in data:
        data.FrameOfReferenceUID = pydicom.uid.generate_uid()
    now = datetime.datetime.now()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = _SPATIAL_REGISTRATION
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.SeriesInstanceUID = pydicom.uid.generate_uid()
    data.Modality, data.SeriesNumber, data.InstanceNumber = "REG", "1", "1"
    data.SeriesDescription = "Spatial registration"
    data.SeriesDate = data.ContentDate = now.strftime("%Y%m%d")
    data.SeriesTime = data.ContentTime = now.strftime("%H%M%S")
    data.Manufacturer, data.ManufacturerModelName = "", "Spatial Diffusion Registration"
    data.DeviceSerialNumber, data.SoftwareVersions = "", __version__
    data.PositionReferenceIndicator = data.get("PositionReferenceIndicator", "")
    data.ContentLabel, data.ContentDescription, data.ContentCreatorName = "REGISTRATION", "", ""
    data.RegistrationSequence = []
    return data


def _reference(pydicom, header: Any) -> Any:
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return reference


def _type_of(matrix: np.ndarray) -> str:
    """RIGID, RIGID_SCALE (perpendicular axes) or AFFINE, as C.20.2.1.2 defines them; a reflection is an affine."""
    steps = spacing(matrix)
    axes = matrix[:3, :3] / steps
    perpendicular = np.abs(axes.T @ axes - np.eye(3)).max() < 1e-9 and np.linalg.det(axes) > 0
    return "AFFINE" if not perpendicular else "RIGID" if np.abs(steps - 1).max() < 1e-9 else "RIGID_SCALE"
