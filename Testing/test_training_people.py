"""Pairs of people, carried masks and the focus, from scans on disk to what training reads."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.errors import InputError  # noqa: E402
from SpatialDiffusionCore.modelfile.card import read_card  # noqa: E402
from SpatialDiffusionCore.modelfile.catalog import BUNDLED  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file  # noqa: E402
from SpatialDiffusionTraining import datasets, focus, masks, necks, partners  # noqa: E402
from SpatialDiffusionTraining import scans as scans_  # noqa: E402
from SpatialDiffusionTraining.augmentation import Corruption, Pose  # noqa: E402
from SpatialDiffusionTraining.pairs import seeded  # noqa: E402
from training_fixtures import write_phantoms  # noqa: E402

DEMO = BUNDLED.parent / "demo"


def bundled(part):
    """The bundled scan whose name begins so."""
    return volume_file.load(next(DEMO.glob(f"{part}*.nii*")))


def turned(scan, number):
    """(the scan under a header of its own, the 4×4 matrix that moved it)."""
    random = np.random.default_rng(number)
    linear = geometry.rotation_about(random.normal(size=3), 0.4) * random.uniform(0.9, 1.1)
    moved = geometry.about(
        linear, geometry.transform_points(scan.voxel_to_ras, np.array([scan.shape]) / 2)[0], random.uniform(-15, 15, 3)
    )
    return scan.moved(moved), moved


def test_every_scan_is_paired_with_others_once():
    paths = [f"{i}" for i in range(9)]
    pairs = partners.choose(paths, 3)
    assert len(pairs) == 27 == len({frozenset(pair) for pair in pairs})
    assert all(sum(p in pair for pair in pairs) == 6 for p in paths)
    assert len(partners.choose(paths[:2], 3)) == 0
    assert len(partners.choose(paths[:3], 5)) == 3


def test_people_are_paired_where_they_were_put(tmp_path):
    """Three copies of a brain under headers of their own: the list says how they lie to each other, to 0.5 mm."""
    brain, places = bundled("moving"), {}
    (tmp_path / "scans").mkdir()
    for number in range(3):
        scan, places[f"copy_{number}.nii.gz"] = turned(brain, number)
        volume_file.save(scan, tmp_path / "scans" / f"copy_{number}.nii.gz")
    told = []
    path = partners.write(tmp_path / "scans", "t1-brain", tmp_path / "people.tsv", held_out=0, report=told.append)
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and "3 of 3 pairs are good" in told
    prepared = sampling.prepare(brain)
    for text in lines:
        first, second, *numbers = text.split("\t")
        first, second = (name.split("/")[-1] for name in (first, second))
        found = geometry.as_affine(np.array(numbers, float).reshape(3, 4))
        back = np.linalg.inv(places[second]) @ found @ places[first]
        assert geometry.displacement_rms(back, np.eye(4), prepared.tissue_center, prepared.tissue_covariance) < 0.5
    source = datasets.Source("t1-brain", 1, scans_.find_scans(tmp_path / "scans"), [], partners=str(path))
    cache = datasets.build(tmp_path / "cache", [source], {"size": [16] * 3, "spacing": 14.0}, report=told.append)
    assert {row: len(known) for row, known in cache.partners.items()} == {0: 2, 1: 2, 2: 2}
    # What an interrupted call had found is not found again: a list that says so is believed.
    claimed = [line.split("\t")[:2] + ["1", "0", "0", "7", "0", "1", "0", "0", "0", "0", "1", "0"] for line in lines]
    (tmp_path / "people.tsv.part").write_text("".join("\t".join(line) + "\n" for line in claimed))
    path = partners.write(tmp_path / "scans", "t1-brain", tmp_path / "people.tsv", held_out=0, report=told.append)
    assert sorted(path.read_text().splitlines()) == sorted("\t".join(line) for line in claimed)


def test_too_few_scans_to_pair_are_named(tmp_path, capsys):
    write_phantoms(tmp_path / "scans", 2)
    assert partners.main(["--train", str(tmp_path / "scans"), "-o", str(tmp_path / "p.tsv")]) == 2
    assert "2 scans, too few to pair people" in capsys.readouterr().err
    assert not (tmp_path / "p.tsv").exists()


def test_a_mask_is_carried_to_where_the_scan_lies(tmp_path):
    brain = bundled("moving")
    inside = volume.Volume(
        (brain.data > np.percentile(brain.data[brain.data > 0], 30)).astype(np.uint8), brain.voxel_to_ras
    )
    volume_file.save(brain, tmp_path / "template.nii.gz")
    volume_file.save(inside, tmp_path / "inside.nii.gz")
    scan, moved = turned(brain, 7)
    (tmp_path / "scans").mkdir()
    volume_file.save(scan, tmp_path / "scans" / "somebody.nii.gz")
    arguments = [
        "--train",
        str(tmp_path / "scans"),
        "--template",
        str(tmp_path / "template.nii.gz"),
        "--mask",
        str(tmp_path / "inside.nii.gz"),
        "-o",
        str(tmp_path / "masks"),
    ]
    assert masks.main(arguments) == 0
    found = nibabel.load(tmp_path / "masks" / "somebody.nii.gz")
    true = inside.data > 0
    got = np.asarray(found.dataobj) > 0
    assert 2 * (true & got).sum() / (true.sum() + got.sum()) > 0.97
    assert masks.main([*arguments[:2], "--template", str(tmp_path / "absent.nii"), *arguments[4:]]) == 2


def masked_phantoms(folder, count=4):
    """A cache of phantoms, all but the first with a ball for a mask."""
    write_phantoms(folder / "scans", count)
    (folder / "masks").mkdir()
    for path in sorted((folder / "scans").iterdir())[1:]:
        image = nibabel.load(path)
        place = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1) - np.array(image.shape) / 2
        ball = ((place / (0.25 * np.array(image.shape))) ** 2).sum(-1) < 1
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), image.affine), folder / "masks" / path.name)
    source = datasets.Source("t1-brain", 1, scans_.find_scans(folder / "scans"), [], masks=str(folder / "masks"))
    return datasets.build(folder / "cache", [source], {"size": [32] * 3, "spacing": 7.0}, report=lambda text: None)


def test_masks_of_the_focus_move_with_their_scans(tmp_path):
    cache = masked_phantoms(tmp_path)
    pose = Pose(rotation_degrees=0, shift=0.1, scale=0.1, free=1.0)
    rows = cache.rows("train")
    strip = Corruption({"strip": {"probability": 1.0, "smooth": 0.001, "level": [0.4, 0.6]}})
    volumes, inside = focus.samples(cache, rows, seeded(1), pose, strip)
    for row, (values, mask) in enumerate(zip(volumes[:, 0], inside[:, 0])):
        lit = values > 0.1
        assert lit.sum() > 200 and (mask[lit] > 0.02).float().mean() > 0.98  # what is left of a scan lies in its mask
        same = cache.entries[row]["masked"]
        assert same == (float(mask.sum()) < 0.5 * float((cache.read([row]) > focus.TISSUE).sum()))
    perfect = torch.where(focus.half(inside) > 0.5, 9.0, -9.0)
    assert focus.error(perfect, inside) < 0.35 < 0.8 < focus.error(-perfect, inside)


def test_a_model_learns_where_to_look_and_keeps_its_own_weights(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    masked_phantoms(tmp_path)
    model, output = BUNDLED / "foundation.safetensors", tmp_path / "foundation.safetensors"
    arguments = [str(model), "--train", str(tmp_path / "scans"), "-o", str(output), "--minutes", "0.05"]
    assert focus.main([*arguments, "--masks", str(tmp_path / "none")]) == 2
    assert "name the one to look at" in capsys.readouterr().err
    assert focus.main([*arguments, "--masks", str(tmp_path / "none"), "--dataset", "any"]) == 2
    assert "not any" in capsys.readouterr().err
    arguments += ["--dataset", "t1-brain", "--set", "augmentation.artifacts.strip.probability=0"]
    assert focus.main([*arguments, "--masks", str(tmp_path / "none")]) == 2
    assert "named like a scan" in capsys.readouterr().err and not output.exists()
    assert focus.main([*arguments, "--masks", str(tmp_path / "masks")]) == 0
    card = read_card(output)
    assert set(card.accuracy["focus_dice_median_least"]) == {"clean", "corrupted"}
    before, after = (load_model(path, "t1-brain", "t1-brain").network.state_dict() for path in (model, output))
    assert all(torch.equal(before[key], after[key]) for key in before)
    loaded = load_model(output, "t1-brain", "t1-brain")
    assert loaded.focus_on("t1-brain") is not None and loaded.focus_on("ct-head-neck") is None


def test_a_missing_folder_of_masks_is_named(tmp_path):
    with pytest.raises(SystemExit):
        focus.main([])
    assert focus.main([str(BUNDLED / "foundation.safetensors"), "--train", str(tmp_path), "--masks", "absent"]) == 2


def test_what_cannot_be_read_is_no_mask(tmp_path):
    with pytest.raises(InputError, match="no volumes"):
        masks.write(tmp_path, tmp_path / "t.nii", tmp_path / "m.nii", tmp_path / "out")


def test_marked_points_say_which_pairs_fit(tmp_path):
    """What the registration says does not count then: points put elsewhere in one scan leave its pairs out."""
    brain = bundled("moving")
    (tmp_path / "scans").mkdir()
    lines, marks = [], np.array([[0.0, 0, 0], [0, 0, -60]])
    for number in range(4):
        scan, place = turned(brain, number)
        volume_file.save(scan, tmp_path / "scans" / f"copy_{number}.nii.gz")
        points = geometry.transform_points(place, marks + (50.0 if number == 2 else 0.0))
        if number < 3:
            lines.append("\t".join([f"copy_{number}.nii.gz", *map(str, points.ravel())]))
    (tmp_path / "points.tsv").write_text("\n".join(lines))
    path = partners.write(
        tmp_path / "scans",
        "t1-brain",
        tmp_path / "people.tsv",
        held_out=0,
        report=lambda text: None,
        points=tmp_path / "points.tsv",
        within=5.0,
    )
    pairs = [set(Path(name).name for name in text.split("\t")[:2]) for text in path.read_text().splitlines()]
    assert pairs == [{"copy_0.nii.gz", "copy_1.nii.gz"}]


def test_a_neck_is_a_box_before_the_spine_that_follows_its_tilt(tmp_path):
    dens = np.array([5.0, 10.0, 40.0])
    for tilt in (0.0, 0.3):
        turn = geometry.rotation_about(np.array([1.0, 0, 0]), tilt)

        def at(aside, ahead, along, turn=turn):
            return dens + turn @ np.array([aside, ahead, -along])

        below = at(0, 0, 110)
        within = [at(0, 0, 0), at(55, 85, 115), at(-55, -35, -35)]
        out = [at(65, 0, 50), at(0, 95, 50), at(0, -45, 50), at(0, 0, 125), at(0, 0, -45)]
        assert necks.inside(np.array(within + out), dens, below).tolist() == [True] * 3 + [False] * 5
    scan = bundled("moving")
    volume_file.save(scan, tmp_path / "scan.nii.gz")
    points = tmp_path / "points.tsv"
    points.write_text("scan.nii.gz\t0\t0\t0\t0\t0\t-110\nother.nii.gz\t0\t0\t0\t0\t0\t-110\n")
    assert [p.name for p in necks.write(tmp_path / "scan.nii.gz", points, tmp_path / "masks")] == ["scan.nii.gz"]
    mask = volume_file.load(tmp_path / "masks" / "scan.nii.gz")
    size = mask.data.sum() * abs(np.linalg.det(mask.voxel_to_ras[:3, :3]))
    assert np.allclose(mask.voxel_to_ras, scan.voxel_to_ras) and 0 < size < 160 * 130 * 120 * 1.02
    points.write_text("scan.nii.gz\t0\t0\n")
    with pytest.raises(InputError, match="line 1: expected a name and six numbers"):
        necks.read_points(points)


def test_every_marked_neck_of_the_list_is_a_neck():
    """The points of OpenKBP: the spine goes down about 110 mm and hardly sideways."""
    points = necks.read_points(necks.POINTS)
    assert len(points) == 68
    for dens, below in points.values():
        length = np.linalg.norm(below - dens)
        assert 85 < length < 125 and below[2] < dens[2] - 80 and below[0] == dens[0]
