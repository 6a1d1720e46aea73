"""Small DICOM series, written as scanners write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="writes DICOM files")

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def header(kind=MR, uid=None, frame=None, number=1, words="t1", study="1.2.3", modality="MR"):
    """What all files of a series share."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName, data.PatientID, data.StudyInstanceUID = "Doe^Jane", "7", study
    data.SeriesInstanceUID, data.SeriesNumber, data.SeriesDescription = uid or pydicom.uid.generate_uid(), number, words
    data.FrameOfReferenceUID = frame or pydicom.uid.generate_uid()
    data.Modality, data.ImageType = modality, ["ORIGINAL", "PRIMARY"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    return data


def save(data, path, implicit=False, little=True, whole=True):
    """Write a file; `whole`: with preamble and file header.  Of pydicom 2, too, the last one for Python 3.9."""
    if int(pydicom.__version__.split(".")[0]) < 3:
        data.is_implicit_VR, data.is_little_endian = implicit, little
        pydicom.dcmwrite(path, data, write_like_original=not whole)
    else:
        pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=little, enforce_file_format=whole)


def write_series(folder, volume, voxel_to_ras, drop=(), positions=None, suffix="", order=None, **about):
    """Write an (I, J, K) volume as a file per slice k; returns the headers.

    voxel_to_ras: 4×4; its third column may be sheared. drop: slices left out; positions: k of each slice (fractions
    too).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS_RAS @ voxel_to_ras
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    shared = header(**about)
    about = dict(about, uid=shared.SeriesInstanceUID, frame=shared.FrameOfReferenceUID)
    written = []
    names = order if order is not None else range(volume.shape[2])
    for k, name in zip(range(volume.shape[2]), names):
        if k in drop:
            continue
        data = header(**about)
        place = k if positions is None else positions[k]
        data.ImagePositionPatient = [f"{x:.8g}" for x in (lps @ [0, 0, place, 1])[:3]]
        data.ImageOrientationPatient = [f"{x:.10g}" for x in (lps[:3, :2] / steps[:2]).T.ravel()]
        data.PixelSpacing = [f"{steps[1]:.8g}", f"{steps[0]:.8g}"]  # between rows, then between columns
        data.InstanceNumber = int(name) + 1
        data.Rows, data.Columns = volume.shape[1], volume.shape[0]
        data.PixelData = np.ascontiguousarray(volume[:, :, k].T.astype("<i2")).tobytes()
        save(data, folder / f"IM{name:04d}{suffix}")
        written.append(data)
    return written


def write_enhanced(path, frames, voxel_to_ras, **about):
    """Write (I, J, K, N) frames as one "enhanced" file of N·K slices."""
    data = header(kind=ENHANCED_MR, **about)
    lps = LPS_RAS @ voxel_to_ras
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    shared, measures, plane = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [f"{steps[1]:.8g}", f"{steps[0]:.8g}"], "3"
    plane.ImageOrientationPatient = [f"{x:.10g}" for x in (lps[:3, :2] / steps[:2]).T.ravel()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    data.SharedFunctionalGroupsSequence = [shared]
    groups, planes = [], []
    for time in range(frames.shape[3]):
        for k in range(frames.shape[2]):
            own, position, content = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            position.ImagePositionPatient = [f"{x:.8g}" for x in (lps @ [0, 0, k, 1])[:3]]
            content.TemporalPositionIndex, content.StackID, content.InStackPositionNumber = time + 1, "1", k + 1
            own.PlanePositionSequence, own.FrameContentSequence = [position], [content]
            groups.append(own)
            planes.append(frames[:, :, k, time].T.astype("<i2"))
    data.PerFrameFunctionalGroupsSequence = groups
    data.NumberOfFrames, data.InstanceNumber = len(planes), 1
    data.Rows, data.Columns = frames.shape[1], frames.shape[0]
    data.PixelData = np.ascontiguousarray(planes).tobytes()
    save(data, path)
