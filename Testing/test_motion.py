"""Motion of series: right transforms on known motion, what is written, and what is said of bad frames and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from moving_series import MovingSeries
from SpatialDiffusionCore import Cancelled, InputError, load, register_series
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.many import motion, motion_files
from SpatialDiffusionCore.many.executor import Here, Outcome, WorkerLost
from SpatialDiffusionCore.many.frames import open_series
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume

BOLD = Path(__file__).parent / "data" / "bold_3.nii.gz"


@pytest.fixture(scope="module")
def frame() -> Volume:
    return load(f"{BOLD}@0")


@pytest.fixture(scope="module")
def known(frame) -> MovingSeries:
    return MovingSeries(frame, 7)


@pytest.fixture(scope="module")
def result(known):
    return register_series(known.frames, reference=0)


def test_known_motion_is_found_to_a_sixtieth_of_a_voxel(known, result):
    errors = known.errors(result.matrices)
    assert np.median(errors) <= 0.05 and np.percentile(errors, 95) <= 0.15
    # Doing nothing would be 30 times as wrong.
    assert np.median(known.errors(np.array([np.eye(4)] * 7))) > 1.0
    assert result.doubts == {}
    np.testing.assert_array_equal(result.matrices[0], np.eye(4))
    linear = result.matrices[:, :3, :3]
    np.testing.assert_allclose(linear @ linear.swapaxes(1, 2), np.broadcast_to(np.eye(3), linear.shape), atol=1e-10)


def test_the_answer_is_the_same_from_several_processes(known):
    frames = known.frames[:3] * 6  # more than one task
    one, two = (register_series(frames, reference=0, jobs=jobs).matrices for jobs in (None, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("factor", [0.05, 8.0])
def test_a_mouse_or_an_elephant_moves_like_a_head(known, result, factor):
    scale = np.diag([factor, factor, factor, 1.0])
    frames = [Volume(one.data, scale @ one.voxel_to_ras, one.name) for one in known.frames[:4]]
    found = np.linalg.inv(scale) @ register_series(frames, reference=0).matrices @ scale
    errors = np.linalg.norm(
        [geometry.transform_points(m @ t, known.points) - known.points for m, t in zip(found, known.truth)], axis=2
    )
    assert np.percentile(errors, 95) <= 0.15


def test_corrected_frames_lie_on_the_reference(known, result):
    still = known.frames[0].data
    inside = ndimage.binary_erosion(still > 150, iterations=4)
    before = np.corrcoef(known.frames[3].data[inside], still[inside])[0, 1]
    after = np.corrcoef(result.corrected(3)[inside], still[inside])[0, 1]
    assert after > 0.97 > before
    np.testing.assert_array_equal(result.corrected(0), still)


def test_only_what_is_in_the_mask_counts(known, frame):
    """What lies still in front of a moving head, like a phantom, is left out by a mask."""
    phantom = np.zeros(frame.shape, bool)
    phantom[:, :20] = True
    frames = [Volume(np.where(phantom, known.frames[0].data, v.data), v.voxel_to_ras) for v in known.frames[:3]]
    mask = Volume((~phantom).astype(np.uint8), frame.voxel_to_ras)
    found = register_series(frames, reference=0, mask=mask)
    errors = [
        geometry.transform_points(m @ t, known.points) - known.points for m, t in zip(found.matrices, known.truth)
    ]
    assert np.percentile(np.linalg.norm(errors, axis=2), 95) <= 0.3


def test_framewise_displacement_is_powers(result):
    six = result.parameters
    change = np.abs(six[4] - six[3])
    assert result.radius == 50.0
    assert result.framewise_displacement[4] == pytest.approx(change[:3].sum() + 50 * change[3:].sum())
    assert np.isnan(result.framewise_displacement[0])


def test_bad_frames_are_doubtful_and_spoil_no_other(known, frame):
    data = [one.data.copy() for one in known.frames]
    data[2][:] = 0
    data[4] = np.random.default_rng(0).normal(400, 100, frame.shape).astype(np.float32)
    data[6][:] = np.nan
    frames = [Volume(one, frame.voxel_to_ras) for one in data]
    found = register_series(frames, reference=0)
    assert set(found.doubts) == {2, 4, 6}
    assert "empty" in found.doubts[2] and "unlike" in found.doubts[4]
    good = [index - 1 for index in (1, 3, 5)]
    assert np.percentile(known.errors(found.matrices)[good], 95) <= 0.15


def test_frames_of_another_contrast_are_laid_as_well(known, frame):
    """As in diffusion-weighted series: half of the frames show bright what the others show dark."""
    frames = []
    for index, one in enumerate(known.frames[:4]):
        turned = np.where(one.data > 100, 900 - one.data, one.data) if index % 2 else one.data
        frames.append(Volume(turned.astype(np.float32), one.voxel_to_ras))
    found = register_series(frames, reference=0)
    errors = np.array(
        [
            np.linalg.norm(geometry.transform_points(m @ t, known.points) - known.points, axis=1)
            for m, t in zip(found.matrices, known.truth)
        ]
    )
    assert np.percentile(errors, 95) <= 0.3 and found.doubts == {}


def test_the_reference_is_a_frame_like_the_others(known, frame):
    data = [one.data for one in known.frames[:5]]
    data[2] = ndimage.gaussian_filter(data[2], 6)  # the middle frame is spoilt
    assert register_series([Volume(d, frame.voxel_to_ras) for d in data]).reference in (1, 3)


def test_interleaved_scans_of_an_eye(data_folder):
    even, odd = (load(data_folder / "oct" / f"amd01_{part}.nii.gz") for part in ("even", "odd"))
    frames = [Volume(even.data[:, : odd.shape[1]], even.voxel_to_ras), Volume(odd.data, even.voxel_to_ras)]
    found = register_series(frames, reference=0)
    center = geometry.transform_points(found.matrices[1], [odd.center()])[0] - odd.center()
    # Between its lines: half of 0.0596 mm.
    np.testing.assert_allclose(center, [0.0, 0.0298, 0.0], atol=0.005)
    assert found.doubts == {}


# Reading


def test_every_kind_of_series_is_read_alike(tmp_path, frame):
    whole = nibabel.load(BOLD)
    values = np.asarray(whole.dataobj)
    nibabel.save(whole, tmp_path / "plain.nii")
    image = sitk.JoinSeries([sitk.ReadImage(str(BOLD))[..., k] for k in range(3)])
    sitk.WriteImage(image, str(tmp_path / "four.nrrd"))
    as_vectors = sitk.GetImageFromArray(np.moveaxis(values.T, 0, -1).copy(), isVector=True)
    one = sitk.ReadImage(str(BOLD))[..., 0]
    as_vectors.CopyInformation(one)
    sitk.WriteImage(as_vectors, str(tmp_path / "slicer.seq.nrrd"))
    (tmp_path / "folder").mkdir()
    for index in (0, 1, 2):
        part = nibabel.Nifti1Image(values[..., index], whole.affine)
        nibabel.save(part, tmp_path / "folder" / f"vol_{9 + index}.nii.gz")
    for name in ("plain.nii", "four.nrrd", "slicer.seq.nrrd", "folder"):
        series = open_series(tmp_path / name)
        assert series.count == 3, name
        np.testing.assert_allclose(series.voxel_to_ras, frame.voxel_to_ras, atol=1e-4, err_msg=name)
        for index in range(3):
            np.testing.assert_array_equal(series.frame(index), values[..., index], err_msg=f"{name} {index}")
    assert open_series(BOLD).interval == pytest.approx(2.0, abs=1e-5)


def test_a_dicom_series_is_cut_into_its_frames(tmp_path, data_folder):
    import tarfile

    packed = data_folder / "series" / "bold_dicom_6.tar.gz"
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path)
    series = open_series(tmp_path / "bold_dicom")
    whole = open_series(data_folder / "series" / "bold_60.nii.gz")
    assert (series.shape, series.count) == (whole.shape, 6)
    assert series.interval == pytest.approx(2.0, abs=1e-5)
    np.testing.assert_allclose(series.voxel_to_ras, whole.voxel_to_ras, atol=1e-4)
    for index in (0, 5):
        mine, others = series.frame(index)[10:-10, 10:-10], whole.frame(index)[10:-10, 10:-10]
        assert np.corrcoef(mine.ravel(), others.ravel())[0, 1] > 0.9995


# Writing


def test_what_is_written_means_the_same_to_itk_fsl_and_afni(tmp_path, known, result):
    nitransforms = pytest.importorskip("nitransforms")
    paths = motion_files.write_all(result, tmp_path)
    reference = nibabel.Nifti1Image(known.frames[0].data, known.frames[0].voxel_to_ras)
    index, points = 5, known.points[:20]
    expected = geometry.transform_points(np.linalg.inv(result.matrices[index]), points)
    itk = sitk.ReadTransform(str(paths["itk"] / f"frame_{index:04d}.tfm"))
    flip = np.array([-1, -1, 1])
    mapped = [flip * itk.TransformPoint((flip * p).tolist()) for p in points]
    np.testing.assert_allclose(mapped, expected, atol=1e-4)
    for name, kind in ((paths["fsl"] / f"MAT_{index:04d}", "fsl"), (paths["afni"], "afni")):
        read = nitransforms.linear.load(name, fmt=kind, reference=reference, moving=reference)
        matrix = np.atleast_3d(read.matrix)
        matrix = read.matrix[index] if read.matrix.ndim == 3 else read.matrix
        np.testing.assert_allclose(geometry.transform_points(matrix, points), expected, atol=1e-3, err_msg=kind)


def test_the_table_has_bids_names_and_a_line_a_frame(tmp_path, result):
    motion_files.write_table(result, tmp_path / "t.tsv", tmp_path / "t.json")
    head, *lines = (tmp_path / "t.tsv").read_text().splitlines()
    names = head.split("\t")
    assert names[:7] == [*(f"{kind}_{a}" for kind in ("trans", "rot") for a in "xyz"), "framewise_displacement"]
    assert len(lines) == 7 and lines[0].split("\t")[6] == "n/a"
    np.testing.assert_allclose([float(v) for v in lines[4].split("\t")[:6]], result.parameters[4], atol=1e-6)
    facts = json.loads((tmp_path / "t.json").read_text())
    assert set(names) <= set(facts) and facts["framewise_displacement"]["SphereRadius"] == 50.0


def test_the_shell_writes_a_series_that_stands_still_and_skips_what_is_done(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["motion", str(BOLD), "-o", str(out), "--reference", "0"]) == 0
    written = nibabel.load(out / "bold_3_desc-motion_series.nii.gz")
    assert written.shape == (80, 80, 35, 3) and written.header.get_zooms()[3] == pytest.approx(2.0, abs=1e-4)
    np.testing.assert_allclose(written.affine, nibabel.load(BOLD).affine, atol=1e-5)
    np.testing.assert_array_equal(written.dataobj[..., 0], np.asarray(nibabel.load(BOLD).dataobj[..., 0]))
    assert "<svg" in (out / "bold_3_desc-motion_plot.svg").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert main(["motion", str(BOLD), "-o", str(out), "--reference", "0"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(["motion", str(BOLD), "-o", str(out), "--reference", "1"]) == 1
    assert "holds another run" in capsys.readouterr().err


def test_names_follow_bids():
    names = motion_files.names("x", "sub-01_task-rest_bold.nii.gz")
    assert names["series"] == Path("x/sub-01_task-rest_desc-motion_bold.nii.gz")
    assert names["table"] == Path("x/sub-01_task-rest_desc-motion_timeseries.tsv")
    assert motion_files.names("x", "scan.seq.nrrd")["series"] == Path("x/scan_desc-motion_series.nii.gz")


# Bad input, before any work


@pytest.mark.parametrize(
    "options, words",
    [
        ({"reference": 9}, "no frame 9"),
        ({"transform": "elastic"}, "Unknown transform"),
        ({"modality": "oct"}, "not modality"),
        ({"jobs": "0"}, "at least 1"),
        ({"jobs": "many"}, "neither a number"),
        ({"mask": Volume(np.ones((3, 3, 3)), np.eye(4))}, "3×3×3"),
        ({"mask": Volume(np.zeros((80, 80, 35)), np.eye(4))}, "is empty"),
    ],
)
def test_bad_options_get_a_sentence(known, options, words):
    with pytest.raises(InputError, match=words):
        next(motion.series_steps(known.frames, **options))


def test_bad_series_get_a_sentence(tmp_path, frame):
    smaller = Volume(frame.data[:-1], frame.voxel_to_ras, "small")
    elsewhere = frame.moved(geometry.from_parts(np.eye(3), [1, 0, 0]))
    sheared = Volume(frame.data, geometry.from_parts([[3, 0.5, 0], [0, 3, 0], [0, 0, 3]]))
    (tmp_path / "none").mkdir()
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(BOLD.read_bytes()[:100_000])
    for series, words in (
        ([frame, smaller], "differ: .* 79×80×35"),
        ([frame, elsewhere], "different voxel grids"),
        ([frame], "one frame"),
        ([], "empty"),
        ([sheared, sheared], "sheared"),
        (tmp_path / "none", "neither volumes"),
        (tmp_path / "missing.nii", "does not exist"),
        (cut, "is truncated"),
        ([frame, 3], "is no Volume"),
    ):
        with pytest.raises(InputError, match=words):
            register_series(series)


def test_constant_frames_are_refused(frame):
    flat = Volume(np.zeros(frame.shape), frame.voxel_to_ras)
    with pytest.raises(InputError, match="constant"):
        register_series([flat, flat])


class LosesOnce:
    """An executor of this process, whose first task is lost as if its process had been killed; ``times`` times."""

    def __init__(self, times):
        self.times = times

    def run(self, function, items):
        for outcome in Here().run(function, items):
            self.times -= 1
            yield Outcome(outcome.index, error=WorkerLost("Its process was killed.")) if self.times >= 0 else outcome


def test_frames_whose_process_is_killed_are_laid_by_another(known, result, monkeypatch):
    monkeypatch.setattr(motion, "executor", lambda jobs: LosesOnce(1))
    np.testing.assert_array_equal(register_series(known.frames, reference=0).matrices, result.matrices)
    monkeypatch.setattr(motion, "executor", lambda jobs: LosesOnce(2))
    with pytest.raises(InputError, match="were lost twice: Its process was killed"):
        register_series(known.frames, reference=0)


def test_what_a_header_contradicts_is_heard_of_in_a_series(tmp_path, frame, capsys):
    values = np.stack([frame.data[::2, ::2, ::2]] * 2, axis=-1).astype(np.int16)
    image = nibabel.Nifti1Image(values, frame.voxel_to_ras @ np.diag([2, 2, 2, 1]))
    image.set_qform(image.affine, 1)
    image.set_sform(geometry.from_parts(np.eye(3), (15.0, 0.0, 0.0)) @ image.affine, 4)
    nibabel.save(image, tmp_path / "a.nii")
    assert main(["motion", str(tmp_path / "a.nii"), "-o", str(tmp_path / "out"), "--reference", "0"]) == 0
    assert "a.nii place it up to 15 mm apart" in capsys.readouterr().err
    facts = json.loads((tmp_path / "out" / "a_desc-motion_timeseries.json").read_text())
    assert "15 mm apart" in facts["Series"]["Warnings"][0]


def test_it_can_be_cancelled(known):
    with pytest.raises(Cancelled):
        register_series(known.frames, on_step=lambda step: False)
