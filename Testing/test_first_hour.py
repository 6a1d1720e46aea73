"""What a newcomer types works, and what they read explains itself: inputs, words, reports, tables, pictures."""

from __future__ import annotations

import csv
import inspect
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from SpatialDiffusionCore import InputError, Volume, register
from SpatialDiffusionCore import report as words
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.cli.selection import volume_files
from SpatialDiffusionCore.inputs import as_matrix, as_volume
from SpatialDiffusionCore.pipeline.confidence import Quality
from SpatialDiffusionCore.spatial import geometry, volume_file
from SpatialDiffusionCore.spatial.file_names import unique_names
from SpatialDiffusionCore.spatial.transform_file import read_transform, write_transform
from volume_fixtures import blob

#: Quick: no search, no network, no repeated runs; the answer itself is not what these tests are about.
QUICK = {"search": False, "steps": 0, "polish": False}
QUICK_WORDS = ["--no-search", "--steps", "0", "--no-polish", "--threads", "1"]
OBLIQUE = geometry.about(geometry.rotation_about([1, 2, 3], 0.3), [1, 2, 3], [4, -5, 6]) @ np.diag([2.0, 2.5, 3, 1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """moving.nii.gz and fixed.nii.gz, oblique, in the current folder."""
    monkeypatch.chdir(tmp_path)
    nibabel.save(nibabel.Nifti1Image(blob(), OBLIQUE), "moving.nii.gz")
    nibabel.save(nibabel.Nifti1Image(blob((13, 11, 12)), OBLIQUE), "fixed.nii.gz")
    return tmp_path


@pytest.fixture(scope="module")
def result():
    """A registration of two Volumes."""
    return register(Volume(blob(), OBLIQUE, "visit 1"), Volume(blob((13, 11, 12)), OBLIQUE, "visit 2"), **QUICK)


# Python as typed


def test_every_kind_of_input_means_the_same_voxels_in_the_same_place(folder):
    """The corner voxels' values and places agree, whatever holds them."""
    data, expected = blob(), volume_file.load("moving.nii.gz")
    itk_file = "moving.nrrd"
    volume_file.save(expected, itk_file)
    kinds = {
        "path": "moving.nii.gz",
        "pathlib": folder / "moving.nii.gz",
        "Volume": expected,
        "nibabel": nibabel.load("moving.nii.gz"),
        "nibabel in memory": nibabel.Nifti1Image(data[..., None], OBLIQUE),
        "SimpleITK": sitk.ReadImage(itk_file),
        "pair": (data, OBLIQUE),
        "pair of a list": [data, OBLIQUE.tolist()],
    }
    import torch

    kinds["pair of a tensor"] = (torch.from_numpy(data), OBLIQUE)
    for name, given in kinds.items():
        volume = as_volume(given)
        np.testing.assert_allclose(volume.voxel_to_ras, OBLIQUE, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(volume.data, data, atol=1e-3, err_msg=name)
        assert volume.data.dtype == np.float32


def test_what_is_no_volume_gets_a_sentence():
    for given, words_ in (
        (blob(), ["array, affine"]),
        ([blob()], ["list", "a path"]),
        (None, ["NoneType"]),
        (nibabel.Nifti1Image(np.zeros((4, 4, 4, 3)), np.eye(4)), ["4D", "4×4×4×3", "slicer"]),
        (sitk.Image([8, 8], sitk.sitkUInt8), ["2D"]),
        ((blob()[0], np.eye(4)), ["not a 3D volume"]),
        ((blob(), np.zeros((4, 4))), ["spacing of 0"]),
    ):
        with pytest.raises(InputError) as error:
            as_volume(given, "moving")
        assert all(word in str(error.value) for word in words_), error.value


def test_labels_keep_their_type_where_asked():
    labels = np.full((16, 16, 16), 70000, np.int64)
    for given in ((labels, np.eye(4)), nibabel.Nifti1Image(labels, np.eye(4), dtype=np.int64)):
        assert as_volume(given, keep_type=True).data.dtype == np.int64
        assert as_volume(given).data.dtype == np.float32


def test_paths_images_and_volumes_are_registered_alike(folder, result):
    from_paths = register("moving.nii.gz", "fixed.nii.gz", **QUICK)
    np.testing.assert_allclose(from_paths.matrix, result.matrix, atol=1e-6)
    mask = (np.ones((24, 26, 22), np.uint8), OBLIQUE)
    image = nibabel.load("moving.nii.gz")
    masked = register(image, sitk_image("fixed.nii.gz"), moving_mask=mask, fixed_mask=mask, **QUICK)
    assert np.isfinite(masked.matrix).all()
    assert from_paths.report()["moving_file"] == str(folder / "moving.nii.gz")


def sitk_image(path):
    return as_volume(path).to_simpleitk()


def test_init_may_be_a_file_a_matrix_or_another_answer(folder, result):
    write_transform(result.matrix, "start.tfm")
    np.testing.assert_allclose(as_matrix("start.tfm"), result.matrix, atol=1e-9)
    assert as_matrix(result) is result.matrix and as_matrix(None) is None
    started = register("moving.nii.gz", "fixed.nii.gz", init="start.tfm", **QUICK)
    np.testing.assert_allclose(started.matrix, result.matrix, atol=1e-3)


def test_register_names_its_options():
    parameters = inspect.signature(register).parameters
    assert {"transform", "modality", "seed", "init", "moving_mask", "on_step"} <= set(parameters)
    with pytest.raises(InputError, match="affine"):
        register((blob(), OBLIQUE), (blob(), OBLIQUE), transform="bspline")


def test_an_answer_is_two_lines(result):
    lines = repr(result).splitlines()
    assert len(lines) == 2 and "visit 1 to visit 2" in lines[0] and "turned" in lines[0]
    assert lines[1].strip().startswith(result.quality.confidence) and "similarity" in lines[1]


def test_the_inverse_is_the_answer_the_other_way_round(result):
    back = result.inverse()
    np.testing.assert_allclose(back.matrix @ result.matrix, np.eye(4), atol=1e-9)
    assert (back.moving, back.fixed) == (result.fixed, result.moving)
    assert back.volumes[0] is result.volumes[1]
    moved = np.array(back.decomposition.translation_mm) + result.decomposition.translation_mm
    np.testing.assert_allclose(moved, 0, atol=1e-6)  # about the same pair of points
    np.testing.assert_allclose(back.inverse().matrix, result.matrix, atol=1e-9)
    result.quality.warnings = ["The moving volume looks mirrored, with left and right swapped; check the header."]
    assert result.inverse().quality.warnings[0].startswith("The fixed volume looks mirrored")
    result.quality.warnings = []


def test_an_answer_is_saved_for_other_tools_with_the_volumes_that_it_has(result, tmp_path):
    result.save(tmp_path / "a.mat", format="flirt")
    result.save(tmp_path / "a.lta")
    for name in ("a.mat", "a.lta"):
        found = read_transform(tmp_path / name, *result.volumes)
        np.testing.assert_allclose(found, result.matrix, atol=1e-5)
    transform = result.to_simpleitk()
    point = np.array([3.0, -8, 5])
    flip = np.array([-1, -1, 1])
    resampled = np.array(transform.TransformPoint((flip * point).tolist())) * flip
    np.testing.assert_allclose(geometry.transform_points(result.matrix, resampled[None])[0], point, atol=1e-6)
    moved = result.apply()
    assert moved.to_nibabel().shape == result.volumes[1].shape
    np.testing.assert_allclose(moved.to_nibabel().affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(as_volume(moved.to_simpleitk()).voxel_to_ras, OBLIQUE, atol=1e-5)


# Words


def quality(**changes):
    figures = {"similarity_before": 0.1, "similarity_after": 0.5, "overlap": 1.0, "spread_mm": 0.3}
    figures["probability"] = 0.975
    return Quality(**{**figures, **changes})


def test_a_word_says_what_it_rests_on():
    assert quality(confidence="good").why() == "about 1 in 40 such answers is wrong; repeated runs agree within 0.3 mm"
    poor = quality(probability=0.3, warnings=["Repeated runs disagree by 9.0 mm; do not rely on this answer unseen."])
    assert poor.why() == "repeated runs disagree by 9.0 mm; 70 of 100 such answers are wrong"


# The report


def test_the_report_keeps_to_its_schema_and_the_schema_to_the_list_of_fields(result):
    jsonschema = pytest.importorskip("jsonschema")
    schema = words.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for answer in (result, result.inverse()):
        report = json.loads(json.dumps(answer.report()))
        jsonschema.validate(report, schema)
        names = [*(name for name in report if name != "quality"), *(f"quality.{name}" for name in report["quality"])]
        assert sorted(names) == sorted(field.name for field in words.FIELDS)


def test_the_report_says_about_what_point_the_translation_is(result):
    report = result.report()
    start, matrix = np.array(report["translation_of_mm"]), np.array(report["matrix_moving_to_fixed_ras"])
    end = geometry.transform_points(matrix, start[None])[0]
    np.testing.assert_allclose(end - start, report["translation_mm"], atol=1e-9)
    np.testing.assert_allclose(end, result.center, atol=1e-9)
    assert report["settings"]["steps"] == 0 and report["settings"]["seed"] == 0 and report["device"] == "cpu"
    assert len(report["model_sha256"]) == 64


def test_the_published_schema_and_the_table_of_fields_are_those_of_the_code():
    from conftest import ROOT

    assert json.loads((ROOT / "docs" / "report-schema-1.json").read_text(encoding="utf-8")) == words.schema()
    assert words.field_table() in (ROOT / "docs" / "report.md").read_text(encoding="utf-8")


def test_shell_and_table_use_the_same_words_and_signs(folder, capsys):
    os.mkdir("scans")
    for name in ("a", "b"):
        volume_file.save(as_volume("moving.nii.gz"), f"scans/{name}.nii.gz")
    assert main(["register", "scans", "fixed.nii.gz", "-o", "out/", *QUICK_WORDS]) == 0
    shell = capsys.readouterr().out
    with open("out/registrations.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["moving"] for row in rows] == ["a.nii.gz", "b.nii.gz"] and list(rows[0]) == list(words.COLUMNS)
    for row in rows:
        assert f"({row['translation_mm']})" in row["in_words"] and row["in_words"] in shell
        assert f"confidence {row['confidence']}: {row['why']}" in shell
        assert row["transform_file"] == f"out/{row['moving'][0]}_to_fixed.tfm"
    assert "[1 of 2]" in shell and "[2 of 2]" in shell and f"2 volumes: 2 {rows[0]['confidence']}" in shell


# Warnings survive


@pytest.fixture
def mirrored(folder):
    """fixed.nii.gz is moved so far away that hardly any of it is in the moving field of view: a warning, and poor."""
    image = nibabel.load("fixed.nii.gz")
    far = image.affine.copy()
    far[:3, 3] += 500
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), far), "far.nii.gz")
    write_transform(np.eye(4), "identity.tfm")
    return [
        "register",
        "moving.nii.gz",
        "far.nii.gz",
        "-o",
        "x.tfm",
        "--init",
        "identity.tfm",
        "--steps",
        "0",
        "--no-polish",
    ]


def test_warnings_survive_quiet_and_decide_the_exit_status_where_asked(mirrored, capsys):
    assert main([*mirrored, "--quiet", "--report", "r.json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    word = report["quality"]["confidence"]
    assert word != "good" and report["quality"]["warnings"]
    assert captured.out == ""
    for warning in report["quality"]["warnings"]:
        assert f"warning: moving.nii.gz: {warning}" in captured.err
    for limit, status in (("poor", 3 if word == "poor" else 0), ("fair", 3)):
        assert main([*mirrored, "--quiet", "--fail-on", limit]) == status
    assert os.path.exists("x.tfm")


def test_a_fair_answer_fails_on_fair_only(folder, capsys):
    command = ["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--quiet", *QUICK_WORDS]
    register_quietly = main([*command, "--report", "r.json"])
    word = json.loads(Path("r.json").read_text(encoding="utf-8"))["quality"]["confidence"]
    assert register_quietly == 0
    assert main([*command, "--fail-on", "poor"]) == (3 if word == "poor" else 0)
    assert main([*command, "--fail-on", "fair"]) == (0 if word == "good" else 3)


# Other tools' files


def test_what_was_written_and_who_reads_it_is_said(folder, capsys):
    command = ["register", "moving.nii.gz", "fixed.nii.gz", *QUICK_WORDS]
    assert main([*command, "-o", "x.mat"]) == 0
    assert "x.mat (ITK: 3D Slicer, ANTs, SimpleITK); for FSL add --format flirt" in capsys.readouterr().out
    assert main([*command, "-o", "y.mat", "--format", "flirt", "--show-commands"]) == 0
    said = capsys.readouterr().out
    assert "y.mat (FSL FLIRT)" in said
    assert "flirt -in moving.nii.gz -ref fixed.nii.gz -applyxfm -init y.mat -out y_moved.nii.gz" in said
    volumes = as_volume("moving.nii.gz"), as_volume("fixed.nii.gz")
    np.testing.assert_allclose(read_transform("x.mat"), read_transform("y.mat", *volumes), atol=1e-5)
    assert main([*command, "-o", "z.tfm", "--format", "flirt"]) == 1
    assert ".mat" in capsys.readouterr().err and not os.path.exists("z.tfm")
    assert main([*command, "-o", "fsl/", "--format", "flirt"]) == 0
    assert os.listdir("fsl") == ["moving_to_fixed.mat"]


def test_an_lta_without_volumes_is_called_incomplete(folder, capsys):
    write_transform(np.eye(4), "i.tfm")
    assert main(["convert", "i.tfm", "i.lta"]) == 0
    captured = capsys.readouterr()
    assert "i.lta is incomplete" in captured.err and "wrote i.lta (FreeSurfer)" in captured.out
    assert main(["convert", "i.tfm", "i.lta", "--moving", "moving.nii.gz", "--fixed", "fixed.nii.gz"]) == 0
    assert capsys.readouterr().err == ""


def test_an_initial_transform_that_looks_inverted_is_asked_about(folder, capsys):
    shift = geometry.from_parts(np.eye(3), [300, 0, 0])
    fixed = nibabel.load("fixed.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(fixed.dataobj), shift @ fixed.affine), "away.nii.gz")
    for name, matrix in (("right.tfm", shift), ("wrong.tfm", np.linalg.inv(shift))):
        write_transform(matrix, name)
        main(["register", "moving.nii.gz", "away.nii.gz", "-o", "x.tfm", "--init", name, "--quiet", *QUICK_WORDS])
        error = capsys.readouterr().err
        assert ("wrong.tfm looks inverted" in error) == (name == "wrong.tfm")
        assert "--invert" in error if name == "wrong.tfm" else True


def test_apply_moves_all_frames_and_several_files_and_says_so(folder, capsys):
    frames = np.stack([blob(), blob() * 2, blob((9, 9, 9))], -1)
    series = nibabel.Nifti1Image(frames, OBLIQUE)
    series.header.set_zooms((*series.header.get_zooms()[:3], 2.5))
    nibabel.save(series, "series.nii.gz")
    write_transform(geometry.from_parts(np.eye(3), [4, 0, -3]), "t.tfm")
    command = ["apply", "t.tfm", "series.nii.gz", "--reference", "fixed.nii.gz"]
    assert main([*command, "-o", "moved.nii.gz"]) == 0
    assert "wrote moved.nii.gz (3 volumes, 24×26×22 voxels of fixed.nii.gz, linear)" in capsys.readouterr().out
    moved = nibabel.load("moved.nii.gz")
    assert moved.shape == (24, 26, 22, 3) and moved.header.get_zooms()[3] == 2.5
    for index in range(3):
        assert (
            main(["apply", "t.tfm", f"series.nii.gz@{index}", "--reference", "fixed.nii.gz", "-o", "one.nii.gz"]) == 0
        )
        np.testing.assert_allclose(nibabel.load("one.nii.gz").get_fdata(), moved.get_fdata()[..., index], atol=1e-3)
    assert main([*command[:3], "moving.nii.gz", *command[3:], "-o", "both/"]) == 0
    assert sorted(os.listdir("both")) == ["moving_moved.nii.gz", "series_moved.nii.gz"]
    capsys.readouterr()
    assert main([*command, "-o", "moved.nrrd"]) == 1
    assert "4D" in capsys.readouterr().err
    # One that is bad does not stop those that come after it.
    assert main(["apply", "t.tfm", "gone.nii", "moving.nii.gz", *command[3:], "-o", "rest/"]) == 1
    assert "gone.nii does not exist" in capsys.readouterr().err and os.listdir("rest") == ["moving_moved.nii.gz"]


# Folders


def test_a_folder_and_a_pattern_mean_the_volumes_in_them(folder):
    os.makedirs("data/sub-01/anat")
    os.makedirs("data/.cache")
    for name in ("data/b.nii.gz", "data/sub-01/anat/a.nii", "data/.cache/c.nii", "data/notes.txt", "data/T.NII.GZ"):
        open(name, "w").close()
    assert volume_files(["data"]) == ["data/T.NII.GZ", "data/b.nii.gz", "data/sub-01/anat/a.nii"]
    assert volume_files(["data/*.nii.gz"]) == ["data/b.nii.gz"]
    assert volume_files(["data/**/*.nii"]) == ["data/sub-01/anat/a.nii"]
    assert volume_files(["data", "data/b.nii.gz"], leave_out=["data/T.NII.GZ"]) == [
        "data/b.nii.gz",
        "data/sub-01/anat/a.nii",
    ]
    for word, what in (("data/*.mha", "pattern"), ("data/.cache/empty", "folder")):
        os.makedirs("data/.cache/empty", exist_ok=True)
        with pytest.raises(InputError, match=what):
            volume_files([word])


def test_folders_of_dicom_files_are_a_volume_each(folder):
    os.makedirs("patients/ann/head")
    os.makedirs("patients/bob")
    for name, content in (("ann/head/1.dcm", b""), ("ann/head/2.dcm", b""), ("bob/IM0001", b"\0" * 128 + b"DICM")):
        Path("patients", name).write_bytes(content)
    Path("patients/bob/pair.hdr").touch()
    Path("patients/bob/pair.img").touch()
    assert volume_files(["patients"]) == ["patients/ann/head", "patients/bob", "patients/bob/pair.hdr"]
    assert unique_names(["patients/ann/head", "patients/bob"]) == ["head", "bob"]


@pytest.mark.parametrize(
    "paths, names",
    [
        (["x/a.nii.gz", "x/b.nii"], ["a", "b"]),
        (["sub-01/ses-1/T1w.nii.gz", "sub-02/ses-1/T1w.nii.gz"], ["sub-01_ses-1_T1w", "sub-02_ses-1_T1w"]),
        (["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"], ["sub-01_T1w", "sub-02_T1w"]),
        (["ann/mri/brain.nii", "bob/mri/brain.nii", "other.nii"], ["ann_mri_brain", "bob_mri_brain", "other"]),
        (["x/a.nii.gz", "x/a.nrrd"], ["a_nii_gz", "a_nrrd"]),
        (["x/a@1.nii", "y/a.nii@1", "z/b.nii"], ["a@1", "a_1", "b"]),
        (["p/Scan.nii", "q/scan.nii"], ["p_Scan", "q_scan"]),
        (["f.nii@0", "f.nii@1"], ["f_0", "f_1"]),
        (["my.scan.v2.nii.gz"], ["my.scan.v2"]),
    ],
)
def test_names_tell_volumes_apart(paths, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unique_names(paths) == names


def test_the_same_volume_twice_is_said():
    with pytest.raises(InputError, match="twice"):
        unique_names(["a/b.nii", "a/b.nii"])


def test_an_output_means_the_same_for_one_and_for_many(folder, capsys):
    for extra in ([], ["second.nii.gz"]):
        nibabel.save(nibabel.load("moving.nii.gz"), "second.nii.gz")
        assert main(["register", "moving.nii.gz", *extra, "fixed.nii.gz", "-o", "new/", "--quiet", *QUICK_WORDS]) == 0
        assert "moving_to_fixed.tfm" in os.listdir("new")
    capsys.readouterr()
    assert main(["register", "moving.nii.gz", "second.nii.gz", "fixed.nii.gz", "-o", "t.tfm", *QUICK_WORDS]) == 1
    assert "t/" in capsys.readouterr().err and not os.path.exists("t.tfm")


def test_a_failing_volume_is_in_the_table_and_in_the_tally(folder, capsys):
    os.mkdir("scans")
    nibabel.save(nibabel.load("moving.nii.gz"), "scans/good.nii.gz")
    with open("scans/broken.nii.gz", "wb") as file:
        file.write(b"no volume")
    assert main(["register", "scans", "fixed.nii.gz", "-o", "out/", "--picture", "out/", *QUICK_WORDS]) == 1
    captured = capsys.readouterr()
    assert "1 failed" in captured.out and "broken.nii.gz cannot be read" in captured.err
    rows = {
        row["moving"]: row
        for row in csv.DictReader(Path("out/registrations.csv").read_text(encoding="utf-8").splitlines())
    }
    assert rows["broken.nii.gz"]["confidence"] == "failed" and "cannot be read" in rows["broken.nii.gz"]["why"]
    assert {"contact_sheet.png", "good_check.png", "good_to_fixed.tfm"} <= set(os.listdir("out"))


# Pictures


def test_a_picture_is_large_and_says_its_warnings_in_words(result, tmp_path):
    from PIL import Image

    from SpatialDiffusionCore import picture

    plain = result.picture()
    assert plain.width >= 1200
    result.quality.warnings = ["The moving volume looks mirrored; check the header."]
    warned = result.picture(path=tmp_path / "p.png")
    result.quality.warnings = []
    assert warned.height > plain.height  # a line more
    assert Image.open(tmp_path / "p.png").size == warned.size
    drawn = np.asarray(warned)
    left, top = picture.tile(2, 0)
    edges = (drawn[top : top + picture.SIZE, left : left + picture.SIZE] == picture.FIXED_COLOR).all(-1)
    assert 50 < edges.sum() < 0.1 * edges.size


def test_the_checkerboard_shows_both_volumes_by_turns():
    from SpatialDiffusionCore import picture

    size = 160
    plane = picture.Plane(np.full((size, size), 1.0), np.zeros((size, size)), np.ones((size, size), bool))
    board = picture._checkerboard(plane)
    assert board[5, 5].max() == 255 and board[5, 25].max() == 0 and board[25, 25].max() == 255
    assert 0.4 < (board.max(-1) == 255).mean() < 0.6


def test_edges_lie_where_the_fixed_volume_changes():
    from SpatialDiffusionCore import picture

    values = np.zeros((200, 200))
    values[60:140, 50:150] = 1
    found = np.argwhere(picture._edges(values))
    distance = np.minimum(
        np.abs(found[:, 0][:, None] - [59.5, 139.5]).min(1), np.abs(found[:, 1][:, None] - [49.5, 149.5]).min(1)
    )
    assert len(found) > 200 and distance.max() <= 2


def test_what_the_moving_volume_did_not_see_is_hatched_and_said(result):
    from SpatialDiffusionCore import picture

    seen = np.ones((60, 60), bool)
    seen[:, 30:] = False
    plane = picture.Plane(np.zeros((60, 60)), np.zeros((60, 60)), seen)
    drawn = picture._overlay(plane)
    assert (drawn[:, :30] == 0).all() and (drawn[:, 30:] == picture.HATCH).all(-1).any()
    legend = picture._notes(result, True, 400)[0][0]
    assert any("outside the moving volume" in text for text, _ in legend)
    assert not any("outside" in text for text, _ in picture._notes(result, False, 400)[0][0])


# Modality words


def test_a_volume_of_no_known_kind_is_not_called_mixed(result):
    assert result.modality == ("any", "any") and result.recognized == (True, True)
    assert result.kinds() == "a volume of any kind"


def test_one_side_may_be_said_and_the_other_recognized(folder):
    for own, other in (("moving", "fixed"), ("fixed", "moving")):
        answer = register("moving.nii.gz", "fixed.nii.gz", **{f"{own}_modality": "t2"}, **QUICK)
        sides = ("moving", "fixed")
        said = dict(zip(sides, zip(answer.modality, answer.recognized)))
        assert said[own] == ("t2-head-neck", False)
        assert said[other] == ("any", True)  # the alias says nothing about the other one
    assert (
        main(["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--moving-modality", "t2", *QUICK_WORDS]) == 0
    )


def test_help_says_what_each_option_means():
    text = inspect.getdoc(register)
    for name in ("transform", "sampler", "seed", "init", "RAS", "4×4"):
        assert name in text
