"""The shell command: outputs, bad input (one sentence, nothing written), apply, convert, models."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modelfile.catalog import catalog
from SpatialDiffusionCore.modelfile.model import load_model
from SpatialDiffusionCore.modelfile.safetensors_file import save_model
from SpatialDiffusionCore.spatial import geometry, volume, volume_file
from SpatialDiffusionCore.spatial.transform_file import read_transform, write_transform
from volume_fixtures import blob

RNG = np.random.default_rng(1)
HEADER = geometry.from_parts(np.diag([2.0, 2, 2]), [-20, -20, -20])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a good pair, and every kind of bad file."""
    monkeypatch.chdir(tmp_path)

    def write(name, data, affine=HEADER):
        nibabel.save(nibabel.Nifti1Image(data, affine), name)

    write("moving.nii.gz", blob())
    write("fixed.nii.gz", blob(center=(13, 11, 12)))
    write("small.nii.gz", blob(shape=(24, 24, 3)))
    write("four.nii.gz", np.stack([blob()] * 3, -1))
    write("constant.nii.gz", np.full((20, 20, 20), 7, np.float32))
    write("nan.nii.gz", np.full((24, 24, 24), np.nan, np.float32))
    write("inf.nii.gz", np.full((24, 24, 24), np.inf, np.float32))
    holes = blob()
    holes[3, 4, 5:9] = np.nan, np.inf, -np.inf, np.nan
    write("holes.nii.gz", holes)
    write("flat.nii.gz", blob(), geometry.from_parts(np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])))
    (tmp_path / "noise.nii.gz").write_bytes(RNG.bytes(500))
    (tmp_path / "text.nii").write_text("not a volume")
    (tmp_path / "volume.xyz").write_text("?")
    write_transform(np.eye(4), "identity.tfm")
    return tmp_path


def shown(folder):
    """The names in a folder that are not hidden: what was done is on record beside them."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def files(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*")}


BAD = {
    "missing file": (
        ["register", "nothing.nii.gz", "fixed.nii.gz", "-o", "x.tfm"],
        1,
        ["nothing.nii.gz", "does not exist"],
    ),
    "damaged file": (
        ["register", "noise.nii.gz", "fixed.nii.gz", "-o", "x.tfm"],
        1,
        ["noise.nii.gz", "cannot be read"],
    ),
    "not NIfTI": (["register", "text.nii", "fixed.nii.gz", "-o", "x.tfm"], 1, ["text.nii", "cannot be read"]),
    "unknown kind": (["register", "volume.xyz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["volume.xyz", ".nii.gz"]),
    "4D": (["register", "four.nii.gz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["4D", "0 to 2", "four.nii.gz@0"]),
    "4D index": (["register", "four.nii.gz@3", "fixed.nii.gz", "-o", "x.tfm"], 1, ["no volume 3", "0 to 2"]),
    "constant": (["register", "constant.nii.gz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["constant", "7"]),
    "fixed constant": (["register", "moving.nii.gz", "constant.nii.gz", "-o", "x.tfm"], 1, ["Fixed", "constant"]),
    "NaN": (["register", "nan.nii.gz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["nothing but NaN"]),
    "infinite": (["register", "inf.nii.gz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["nothing but NaN or infinite"]),
    "degenerate": (["register", "flat.nii.gz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["flat.nii.gz", "degenerate"]),
    "too small": (["register", "small.nii.gz", "fixed.nii.gz", "-o", "x.tfm"], 1, ["24×24×3", "at least 4"]),
    "modality": (
        ["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--modality", "xray"],
        1,
        ["xray", "t1-brain", "octa"],
    ),
    "model": (
        ["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--model", "no-such"],
        1,
        ["no-such", "installed"],
    ),
    "no CUDA": (["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--device", "cuda"], 1, ["CUDA", "cpu"]),
    "device": (["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--device", "tpu"], 1, ["tpu", "cuda"]),
    "folder": (["register", "moving.nii.gz", "fixed.nii.gz", "-o", "no/x.tfm"], 1, ["no", "does not exist"]),
    "extension": (["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.xfm"], 1, ["x.xfm", ".tfm"]),
    "overwrite": (["register", "moving.nii.gz", "fixed.nii.gz", "--moved", "fixed.nii.gz"], 1, ["overwrite", "input"]),
    "same output": (
        ["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--inverse", "./x.tfm"],
        1,
        ["overwrite", "another output"],
    ),
    "no output": (["register", "moving.nii.gz", "fixed.nii.gz"], 2, ["-o FILE"]),
    "steps": (["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--steps", "66"], 1, ["to 65", "66"]),
    "steps of reference": (
        ["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--sampler", "reference", "--steps", "5"],
        1,
        ["every timestep"],
    ),
    "bad init": (["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.tfm", "--init", "text.nii"], 1, ["text.nii"]),
    "apply overwrites": (
        ["apply", "identity.tfm", "moving.nii.gz", "--reference", "fixed.nii.gz", "-o", "moving.nii.gz"],
        1,
        ["overwrite"],
    ),
    "apply missing": (
        ["apply", "none.tfm", "moving.nii.gz", "--reference", "fixed.nii.gz", "-o", "y.nii.gz"],
        1,
        ["none.tfm"],
    ),
    "flirt without volumes": (["convert", "identity.tfm", "y.mat", "--to", "flirt"], 1, ["moving and the fixed image"]),
    "import missing": (
        ["models", "import", "none.pth", "--volume-size", "64", "64", "64", "-o", "m.safetensors"],
        1,
        ["none.pth"],
    ),
    "import text": (
        ["models", "import", "text.nii", "--volume-size", "64", "64", "64", "-o", "m.safetensors"],
        1,
        ["plain dictionary"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(folder, capsys, case):
    arguments, expected, words = BAD[case]
    if case == "no CUDA":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device here")
    before = files(folder)
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == expected, captured.err
    assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    assert files(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["register"],
        ["register", "a"],
        ["nonsense"],
        ["register", "a", "b", "--steps", "x"],
        ["register", "a", "b", "--transform", "bspline"],
    ],
)
def test_a_wrong_command_line_exits_with_2_in_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_without_the_modality_is_refused(folder, capsys):
    assert main(["models", "list", "--json"]) == 0
    name = next(iter(json.loads(capsys.readouterr().out)))
    card = catalog()[name].card
    narrow = replace(card, name="narrow", modalities={"t1-brain": 0}, grids={}, schedules={}, parts={}, agreement={})
    save_model("narrow.safetensors", load_model(name, *[next(iter(card.modalities))] * 2).network, narrow)
    assert (
        main(
            [
                "register",
                "moving.nii.gz",
                "fixed.nii.gz",
                "-o",
                "x.tfm",
                "--modality",
                "oct",
                "--model",
                "narrow.safetensors",
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "not trained for oct" in error and "t1-brain" in error and not os.path.exists("x.tfm")


def test_every_output_is_written_and_agrees(folder, capsys):
    assert (
        main(
            [
                "register",
                "moving.nii.gz",
                "fixed.nii.gz",
                "-o",
                "a.tfm",
                "--inverse",
                "b.lta",
                "--moved",
                "m.nii",
                "--report",
                "r.json",
                "--picture",
                "p.png",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    moving, fixed = volume_file.load("moving.nii.gz"), volume_file.load("fixed.nii.gz")
    matrix, report = read_transform("a.tfm"), json.loads((folder / "r.json").read_text())
    np.testing.assert_allclose(report["matrix_moving_to_fixed_ras"], matrix, atol=1e-9)
    np.testing.assert_allclose(read_transform("b.lta"), np.linalg.inv(matrix), atol=1e-6)
    expected = volume.resample(moving, fixed, matrix)
    np.testing.assert_allclose(volume_file.load("m.nii").data, expected.data, atol=1e-3)
    assert {"similarity_before", "similarity_after", "confidence", "warnings"} <= set(report["quality"])
    assert (folder / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert "confidence" in capsys.readouterr().out


def test_several_volumes_go_into_folders_and_a_bad_one_does_not_stop_the_rest(folder, capsys):
    assert (
        main(
            [
                "register",
                "moving.nii.gz",
                "nan.nii.gz",
                "four.nii.gz@1",
                "fixed.nii.gz",
                "-o",
                "out",
                "--report",
                "out",
                "--quiet",
                "--threads",
                "1",
            ]
        )
        == 1
    )
    assert shown("out") == [
        "four_1_report.json",
        "four_1_to_fixed.tfm",
        "moving_report.json",
        "moving_to_fixed.tfm",
        "registrations.csv",
    ]
    error = capsys.readouterr().err
    assert "nan.nii.gz holds nothing but NaN" in error and "Traceback" not in error
    # volume 1 of the 4D file is the same as the 3D one, so is its transform
    np.testing.assert_array_equal(read_transform("out/four_1_to_fixed.tfm"), read_transform("out/moving_to_fixed.tfm"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_name_that_is_no_unicode_is_refused_and_is_in_the_table(folder, capsys):
    """SimpleITK ends the process on one."""
    odd = os.fsdecode(b"k\xf6pf.nii.gz")
    os.rename("moving.nii.gz", odd)
    options = [
        "--quiet",
        "--threads",
        "1",
        "--init",
        "identity.tfm",
        "--steps",
        "0",
        "--no-polish",
        "--modality",
        "any",
    ]
    assert main(["register", odd, "gone.nii.gz", "fixed.nii.gz", "-o", "out/", *options]) == 1
    assert "pf.nii.gz' has characters that are no Unicode; rename it." in capsys.readouterr().err
    with open("out/registrations.csv", encoding="utf-8", newline="") as file:
        names = [row["moving"].rpartition("/")[2] for row in csv.DictReader(file)]
    assert names == ["k\\udcf6pf.nii.gz", "gone.nii.gz"]
    with pytest.raises(InputError, match="no Unicode"):
        volume_file.save(volume_file.load("fixed.nii.gz"), os.fsdecode(b"f\xfcr.nrrd"))


@pytest.mark.parametrize("bad", ["nan.nii.gz", "gone.nii.gz", "text.nii", "flat.nii.gz", "constant.nii.gz"])
def test_a_first_volume_that_is_no_good_does_not_stop_the_others(folder, capsys, bad):
    assert (
        main(
            [
                "register",
                bad,
                "moving.nii.gz",
                "fixed.nii.gz",
                "-o",
                "out/",
                "--quiet",
                "--threads",
                "1",
                "--init",
                "identity.tfm",
                "--steps",
                "0",
                "--modality",
                "any",
                "--no-polish",
            ]
        )
        == 1
    )
    assert shown("out") == ["moving_to_fixed.tfm", "registrations.csv"]
    assert bad in capsys.readouterr().err


def test_holes_of_nan_are_registered_and_spoken_of(folder, capsys):
    assert (
        main(
            [
                "register",
                "holes.nii.gz",
                "fixed.nii.gz",
                "-o",
                "x.tfm",
                "--report",
                "r.json",
                "--moved",
                "m.nii",
                "--threads",
                "1",
                "--init",
                "identity.tfm",
                "--steps",
                "0",
                "--modality",
                "any",
                "--no-polish",
            ]
        )
        == 0
    )
    told = "less than 0.1 % of holes.nii.gz hold NaN or infinite values; they are taken for background."
    assert told in capsys.readouterr().err
    assert told in json.loads((folder / "r.json").read_text())["quality"]["warnings"]
    assert np.isfinite(volume_file.load("m.nii").data).sum() > 10000


def test_a_header_that_contradicts_itself_is_spoken_of_in_shell_report_and_api(folder, capsys):
    image = nibabel.load("moving.nii.gz")
    image.set_qform(image.affine, 1)
    image.set_sform(geometry.from_parts(np.eye(3), (9.0, 0, 0)) @ image.affine, 4)
    nibabel.save(image, "two.nii")
    quick = {"steps": 0, "modality": "any", "polish": False, "search": False, "device": "cpu"}
    from SpatialDiffusionCore import register

    told = "The qform and the sform of two.nii place it up to 9 mm apart; the qform is used, as in Slicer and ITK."
    for moving in ("two.nii", nibabel.load("two.nii"), volume_file.load("two.nii")):
        assert told in register(moving, "fixed.nii.gz", init=np.eye(4), **{**quick, "search": True}).quality.warnings
    assert main(["apply", "identity.tfm", "two.nii", "--reference", "fixed.nii.gz", "-o", "y.nii", "--quiet"]) == 0
    assert told in capsys.readouterr().err


def test_one_output_that_fails_at_the_end_leaves_the_others(folder, capsys, monkeypatch):
    from SpatialDiffusionCore.spatial import volume_file as module

    def broken(*_):
        raise IndexError("median(): internal words")

    monkeypatch.setattr(module, "save", broken)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert (
        main(
            [
                "register",
                "moving.nii.gz",
                "fixed.nii.gz",
                "-o",
                "x.tfm",
                "--moved",
                "m.nii",
                "--report",
                "r.json",
                "--picture",
                "p.png",
                "--threads",
                "1",
                "--init",
                "identity.tfm",
                "--steps",
                "0",
                "--modality",
                "any",
                "--no-polish",
            ]
        )
        == 1
    )
    assert all(os.path.getsize(name) for name in ("x.tfm", "r.json", "p.png")) and not os.path.exists("m.nii")
    error = capsys.readouterr().err
    assert "median" not in error and "IndexError" not in error and "failed at writing m.nii" in error
    report = next(folder.glob("spatial-diffusion-failure-*.txt")).read_text()
    assert "IndexError: median(): internal words" in report and "Spatial Diffusion Registration" in report


def test_what_does_not_fit_a_file_is_said_before_the_work(folder, capsys):
    shear = geometry.from_parts([[1, 0.15, 0], [0, 1, 0], [0, 0, 1]])
    volume_file.save(volume_file.load("fixed.nii.gz").moved(shear), "sheared.nii.gz")
    quick = ["--threads", "1", "--init", "identity.tfm", "--steps", "0", "--modality", "any", "--no-polish", "--quiet"]
    assert main(["register", "moving.nii.gz", "fixed.nii.gz", "-o", "x.dcm", *quick]) == 1
    error = capsys.readouterr().err
    assert "refers to DICOM series, and the moving volume is none" in error and error.count("\n") == 1
    for name, warned in (("m.nii.gz", True), ("m.nrrd", False), ("m.MHA", False)):
        assert (
            main(["apply", "identity.tfm", "moving.nii.gz", "--reference", "sheared.nii.gz", "-o", name, "--quiet"])
            == 0
        )
        assert ("will not open m.nii.gz" in capsys.readouterr().err) == warned
        np.testing.assert_allclose(
            volume_file.load(name).voxel_to_ras, volume_file.load("sheared.nii.gz").voxel_to_ras, atol=1e-5
        )


def test_the_background_of_a_moved_volume_can_be_said(folder):
    shift = geometry.from_parts(np.eye(3), (1000.0, 0, 0))
    write_transform(shift, "far.tfm")
    arguments = ["apply", "far.tfm", "moving.nii.gz", "--reference", "fixed.nii.gz", "-o", "y.nii.gz", "--quiet"]
    assert main(arguments) == 0 and (volume_file.load("y.nii.gz").data == 0).all()
    assert main([*arguments, "--background", "-5"]) == 0 and (volume_file.load("y.nii.gz").data == -5).all()


def test_torchrun_ranks_share_the_list(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["register", "moving.nii.gz", "four.nii.gz@1", "fixed.nii.gz", "-o", "out", "--quiet"]) == 0
    assert shown("out") == ["four_1_to_fixed.tfm", "registrations_1.csv"]


STOPPED_WHILE_WRITING = """
import os, signal, sys, threading, time
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.errors import InputError

def stop():
    while not any(".part" in name for name in os.listdir("out")):
        time.sleep(0.001)
    os.kill(os.getpid(), number)

number = int(sys.argv[1])  # which the tests' own process may ignore
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
threading.Thread(target=stop, daemon=True).start()
words = ["long.nii.gz", "--reference", "long.nii.gz@0", "-o", "out/moved.nii.gz", "--interpolation", "cubic"]
sys.exit(main(["apply", "identity.tfm", *words]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_nothing_half_written_is_left_by_whatever_stops_it(folder, number):
    nibabel.save(nibabel.Nifti1Image(np.stack([blob()] * 400, -1), HEADER), "long.nii.gz")
    os.mkdir("out")
    start = [sys.executable, "-c", STOPPED_WHILE_WRITING, str(int(number))]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + number and "Traceback" not in done.stderr
    assert "cancelled; files that were not complete are not there." in done.stderr
    assert os.listdir("out") == []


def test_apply_says_where_nothing_is_left(folder, capsys):
    write_transform(geometry.from_parts(np.eye(3), (500.0, 0, 0)), "away.tfm")
    words = ["moving.nii.gz", "--reference", "fixed.nii.gz", "-o", "moved.nii.gz", "--quiet", "--interpolation"]
    for how in ("linear", "nearest"):
        assert main(["apply", "away.tfm", *words, how]) == 0
        assert "lies wholly outside the voxels of fixed.nii.gz, so the result is empty" in capsys.readouterr().err
        assert not volume_file.load("moved.nii.gz").data.any()
        assert main(["apply", "identity.tfm", *words, how]) == 0
        assert capsys.readouterr().err == ""


def test_a_file_whose_name_begins_with_a_dash_is_told_how_to_write(folder, capsys, monkeypatch):
    os.rename("moving.nii.gz", "-moving.nii.gz")
    words = ["apply", "identity.tfm", "-moving.nii.gz", "--reference", "fixed.nii.gz", "-o", "moved.nii.gz", "--quiet"]
    monkeypatch.setattr("sys.argv", ["spatial-diffusion", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "write ./-moving.nii.gz for the file of that name" in capsys.readouterr().err
    words[2] = "./-moving.nii.gz"
    assert main(words) == 0


def test_apply_moves_label_maps_without_touching_their_values(folder, capsys):
    labels = np.zeros((24, 26, 22), np.uint16)
    labels[5:12, 6:14, 8:18], labels[12:15, 6:14, 8:18] = 40000, 3
    nibabel.save(nibabel.Nifti1Image(labels, HEADER), "labels.nii.gz")
    write_transform(geometry.from_parts(np.eye(3), [4, -2, 6]), "shift.tfm")  # 2, -1 and 3 voxels
    words = ["apply", "shift.tfm", "labels.nii.gz", "--reference", "fixed.nii.gz", "-o", "moved.nii.gz"]
    assert main([*words, "--quiet"]) == 0  # linear, which blends them
    assert "looks like a label map" in capsys.readouterr().err
    assert main([*words, "--quiet", "--interpolation", "nearest"]) == 0
    assert capsys.readouterr().err == ""
    moved = nibabel.load("moved.nii.gz")
    assert moved.get_data_dtype() == np.uint16
    expected = np.zeros_like(labels)
    expected[2:, :-1, 3:] = labels[:-2, 1:, :-3]
    np.testing.assert_array_equal(np.asarray(moved.dataobj), expected)
    assert (
        main(
            [
                "apply",
                "shift.tfm",
                "moved.nii.gz",
                "--reference",
                "fixed.nii.gz",
                "-o",
                "back.nii.gz",
                "--interpolation",
                "nearest",
                "--invert",
            ]
        )
        == 0
    )
    np.testing.assert_array_equal(np.asarray(nibabel.load("back.nii.gz").dataobj), labels)


def test_convert_between_formats_and_back(folder):
    matrix = geometry.about(geometry.rotation_about([1, 2, 3], 0.4), [5, 6, 7], [1, -2, 3]) @ np.diag([1.1, 1, 0.9, 1])
    write_transform(matrix, "a.tfm")
    volumes = ["--moving", "moving.nii.gz", "--fixed", "fixed.nii.gz"]
    assert main(["convert", "a.tfm", "b.mat", "--to", "flirt", *volumes]) == 0
    assert main(["convert", "b.mat", "c.lta", "--from", "flirt", *volumes]) == 0
    assert main(["convert", "c.lta", "d.txt", "--invert"]) == 0
    np.testing.assert_allclose(np.loadtxt("d.txt"), np.linalg.inv(matrix), atol=1e-6)


def test_models_are_listed_and_described(capsys):
    assert main(["models", "list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"retina", "t1-brain"} <= set(listed)
    assert main(["models", "info", "retina", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert "phantom" in info["card"]["training"]["data"] and info["card"]["grid"]["spacing"] == [0.1, 0.04, 0.1]
    assert main(["models", "info", "t1-brain", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["parameters"] > 1e5 and info["flops"] > 1e8 and info["layers"] > 10
    assert {"architecture", "grid", "schedule", "modalities", "training", "license", "accuracy", "created"} <= set(
        info["card"]
    )


def test_an_imported_checkpoint_registers_like_any_other_model(folder, conditional, capsys):
    config = conditional.config
    size = [str(n) for n in config["volume_size"]]
    checkpoint = str(conditional.checkpoint)
    wrong = ["models", "import", checkpoint, "--volume-size", "72", "160", "66", "-o", "m.safetensors"]
    assert main([*wrong, "--modality", "oct", "octa", "t1-brain", "t2-head-neck"]) == 1
    assert "output_head.2.weight" in capsys.readouterr().err and not os.path.exists("m.safetensors")
    assert (
        main(["models", "import", checkpoint, "--volume-size", *size, "-o", "m.safetensors", "--modality", "oct"]) == 1
    )
    assert "4 modalities" in capsys.readouterr().err
    assert (
        main(
            [
                "models",
                "import",
                checkpoint,
                "--volume-size",
                *size,
                "-o",
                "m.safetensors",
                "--modality",
                "oct",
                "octa",
                "t1-brain",
                "t2-head-neck",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "register",
                "moving.nii.gz",
                "fixed.nii.gz",
                "-o",
                "x.tfm",
                "--model",
                "m.safetensors",
                "--modality",
                "t1-brain",
                "--report",
                "r.json",
            ]
        )
        == 0
    )
    report = json.loads((folder / "r.json").read_text())
    assert [step["stage"] for step in report["steps"]].count("Diffusion") == 65 and report["polished"] is False
