"""From files to batches: finding, splitting, skipping, caching and the endless stream."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.errors import InputError  # noqa: E402
from SpatialDiffusionCore.method import diffusion  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file  # noqa: E402
from SpatialDiffusionTraining import datasets, loaders, people  # noqa: E402
from SpatialDiffusionTraining import scans as scans_  # noqa: E402
from SpatialDiffusionTraining.augmentation import Pose  # noqa: E402
from SpatialDiffusionTraining.pair_lists import PARTNERS  # noqa: E402
from SpatialDiffusionTraining.pairs import PairMaker, seeded  # noqa: E402
from SpatialDiffusionTraining.settings import Settings  # noqa: E402
from training_fixtures import phantom, real_scans, write_phantoms  # noqa: E402

GRID = {"size": [16, 16, 16], "spacing": 14.0}


def source(paths, held=(), class_id=1, modality="t1-brain", loader="canonical"):
    return datasets.Source(modality, class_id, list(paths), list(held), 1.0, loader)


# ------------------------------------------------------------------------------------------------ finding
def test_scans_are_found_recursively_and_lists_are_relative_to_themselves(tmp_path):
    write_phantoms(tmp_path / "a", 2)
    write_phantoms(tmp_path / "a" / "deeper", 1)
    (tmp_path / "a" / "notes.txt").write_text("no scan")
    (tmp_path / "a" / "._phantom.nii.gz").write_text("what macOS leaves behind")
    found = scans_.find_scans(tmp_path / "a")
    assert [p.name for p in found] == ["phantom_00.nii.gz", "phantom_00.nii.gz", "phantom_01.nii.gz"]
    listed = tmp_path / "list.txt"
    listed.write_text("# training\n\na/phantom_01.nii.gz\na/missing.nii\n")
    assert scans_.find_scans(listed) == [tmp_path / "a" / "phantom_01.nii.gz", tmp_path / "a" / "missing.nii"]
    scans_.write_list(found, tmp_path / "again.txt")
    assert scans_.find_scans(tmp_path / "again.txt") == found


def test_what_holds_no_scans_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for place, words in (("empty", "no volumes"), ("empty.txt", "names no files"), ("absent", "does not exist")):
        with pytest.raises(InputError, match=words):
            scans_.find_scans(tmp_path / place)


# ------------------------------------------------------------------------------------------------ people
def split(names, held_out=0.1, **options):
    return people.split([Path("/data") / name for name in names], held_out, **options)


def test_the_split_is_fixed_and_stable():
    names = [f"sub-{i:03d}_T1w.nii.gz" for i in range(100)]
    first, again = split(names), split(names[::-1])
    assert (first.train, first.held_out) == (again.train, again.held_out) and len(first.held_out) == 10
    assert tuple(first) == (first.train, first.held_out)
    assert not set(first.train) & set(first.held_out) and len(first.train) == 90 and not first.odd
    more = split([*names, "sub-900_T1w.nii.gz"])
    assert len(set(first.held_out) & set(more.held_out)) >= 9
    assert split(names[:1]).held_out == [] and split(names, 0).held_out == []


@pytest.mark.parametrize("pattern", [
    "sub-{:03d}_T1w.nii.gz", "sub-{0:03d}/anat/sub-{0:03d}_T1w.nii.gz", "s{:03d}/mri/T1.nii.gz", "{:03d}/T1.nii",
    "knee_T2_{:03d}.nii.gz", "brain_t1_{:03d}.nrrd", "my_test_{:03d}.mha", "study.{:03d}.nii.gz", "mri_ses{:03d}.nii",
    "1.2.840.113619.2.55.{}.nii.gz", "m{:04d}.nii.gz", "OAS1_{:04d}_MR1.nii", "site1/p{:02d}.nii"])  # fmt: skip
def test_people_are_told_by_what_varies(pattern):
    parts = split([pattern.format(i) for i in range(70)])
    assert (len(parts.train), len(parts.held_out)) == (63, 7) and len(set(parts.people.values())) == 70


@pytest.mark.parametrize("pattern", [
    "p{:03d}_v{}.nii.gz", "p{:03d}/visit{}/T2.nii.gz", "sub-{:02d}_ses-{}_T1w.nii", "sub-{0:02d}/ses-{1}/anat/T1.nii",
    "p-{:02d}-20{}90102.nii", "OAS1_{:04d}_MR{}.nii", "case{:03d}_day{}.nii", "subject {:02d}/visit {}/x.nii",
    "{:03d}_S_0413/I4{}966.nii", "knee_{:03d}/m{}/scan.nii", "x{:02d}_week_{}.nii", "20{1}9/p{0:03d}.nii"])  # fmt: skip
def test_nobody_is_on_both_sides(pattern):
    names = [pattern.format(person, visit) for person in range(35) for visit in (1, 2)]
    parts = split(names)
    sides = [{parts.people[str(path)] for path in side} for side in (parts.train, parts.held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 35
    assert len(parts.held_out) in (6, 8) and not parts.odd


def test_eyes_contrasts_and_sides_of_a_person_stay_together():
    names = [f"{i:03d}_{kind}.nii.gz" for i in range(20) for kind in ("OD", "OS", "T1", "FLAIR")]
    parts = split(names)
    assert len(set(parts.people.values())) == 20 and len(parts.held_out) == 8


def test_the_same_person_of_two_data_sets_stays_on_one_side():
    known = {}
    first = split([f"T1/IXI{i:03d}-Guys-T1.nii.gz" for i in range(40)], known=known)
    second = split([f"T2/IXI{i:03d}-Guys-T2.nii.gz" for i in range(20, 60)], known=known)
    sides = [{path.name.split("-")[0] for path in parts.train} for parts in (first, second)]
    held = [{path.name.split("-")[0] for path in parts.held_out} for parts in (first, second)]
    assert not sides[0] & held[1] and not sides[1] & held[0] and len(held[1]) >= 4


def test_what_looks_odd_is_said():
    assert "one person" in split([f"anna/visit{i}/T1.nii" for i in range(9)] + ["bert/visit1/T1.nii"]).odd[0]
    assert "UIDs" in split([f"1.2.840.113619.2.55.{i}.nii.gz" for i in range(20)]).odd[0]
    assert "visit" in split([f"mri_ses{i:03d}.nii" for i in range(20)]).odd[0]
    assert "none can be held out" in split(["a/T1.nii", "a/T2.nii", "a/FLAIR.nii"]).odd[0]
    # Nobody has so many scans that most of them would be held out.
    many = split([f"p{i}_v{v}.nii" for i in range(3) for v in range(10)])
    assert len(many.held_out) <= 10 < len(many.train)


def test_a_table_says_who_is_who(tmp_path):
    table = tmp_path / "people.tsv"
    table.write_text("file\tperson\n" + "".join(f"x{i}.nii\tp{i // 2}\n" for i in range(20)))
    known = people.read_people(table)
    parts = split([f"x{i}.nii" for i in range(20)], table=known)
    assert len(set(parts.people.values())) == 10 and len(parts.held_out) == 2
    assert len({parts.people[str(path)] for path in parts.held_out}) == 1
    table.write_text("x0.nii\n")
    with pytest.raises(InputError, match="line 1"):
        people.read_people(table)


def test_the_bundled_models_split_of_the_development_data_stays(data_folder):
    """What they were judged on they were not trained on: these heads stay held out."""
    parts = people.split(scans_.find_scans(data_folder / "t1"))
    names = "".join(sorted(path.name for path in parts.held_out))
    assert len(parts.held_out) == 25
    assert hashlib.sha256(names.encode()).hexdigest().startswith("88491a6d9e85a25f")


def test_links_are_followed_once_and_keep_their_names(tmp_path):
    real = write_phantoms(tmp_path / "store", 2)
    folder = tmp_path / "scans"
    (folder / "inner").mkdir(parents=True)
    (folder / "linked").symlink_to(real, target_is_directory=True)
    (folder / "inner" / "again").symlink_to(folder, target_is_directory=True)  # a link to itself
    (folder / "sub-01_T1w.nii.gz").symlink_to(real / "phantom_00.nii.gz")  # as git-annex does it
    (folder / "sub-02_T1w.nii.gz").symlink_to(tmp_path / "not-here.nii.gz")
    (folder / ".git").mkdir()
    shutil.copy(real / "phantom_00.nii.gz", folder / ".git" / "hidden.nii.gz")
    found = scans_.find_scans(folder)
    assert [path.name for path in found] == ["phantom_00.nii.gz", "phantom_01.nii.gz", "sub-02_T1w.nii.gz"]
    cache = datasets.build(tmp_path / "cache", [source(found)], GRID, report=lambda text: None)
    assert len(cache.entries) == 2 and "fetch" in cache.skipped[0]["reason"]


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_a_folder_of_dicom_slices_is_one_scan(suffix, tmp_path):
    pytest.importorskip("pydicom")
    from dicom_fixtures import write_series

    image = phantom(0)
    for person in ("p01", "p02"):
        folder = tmp_path / "scans" / person / "visit1"
        write_series(folder, np.asarray(image.dataobj).astype(int), image.affine, suffix=suffix)
        (folder / "notes.txt").write_text("about it")
    (tmp_path / "scans" / "papers").mkdir()
    (tmp_path / "scans" / "papers" / "readme").write_text("no scan")
    found = scans_.find_scans(tmp_path / "scans")
    assert [path.relative_to(tmp_path / "scans").as_posix() for path in found] == ["p01/visit1", "p02/visit1"]
    assert set(people.people_of(found).values()) == {"p01", "p02"}
    cache = datasets.build(tmp_path / "cache", [source(found)], GRID, report=lambda text: None)
    assert len(cache.entries) == 2, cache.skipped


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".nhdr"])
def test_all_formats_of_the_core_are_scans(ending, tmp_path):
    image = phantom(0)
    volume_file.save(volume.Volume(np.asarray(image.dataobj), image.affine, "x"), tmp_path / f"scan{ending}")
    cache = datasets.build(tmp_path / "cache", [source(scans_.find_scans(tmp_path))], GRID, report=lambda text: None)
    assert len(cache.entries) == 1


# -------------------------------------------------------------------------------------------------- cache
def test_the_cache_holds_canonical_cubes_in_bytes(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 3)
    scans = scans_.find_scans(folder)
    cache = datasets.build(tmp_path / "cache", [source(scans[:2], scans[2:])], GRID, report=lambda text: None)
    assert cache.shape == (16, 16, 16) and cache.cubes[0].dtype == np.uint8
    assert cache.rows("train") == [0, 1] and cache.rows("validation") == [2]
    batch = cache.read([1, 0])
    assert batch.shape == (2, 1, 16, 16, 16) and batch.dtype == torch.float32
    prepared = sampling.prepare(volume_file.load(scans[1]))
    expected = sampling.sample(prepared, sampling.canonical_grid(prepared, 16, 14.0))
    assert (batch[:1] - expected).abs().max() <= 0.5 / 255 + 1e-6
    # The moments are those of the tissue: near the middle, about as wide as the phantom.
    assert cache.means.abs().max() < 0.05
    assert 0.05 < cache.covariances.diagonal(dim1=1, dim2=2).min() < 0.5
    assert cache.files([2]) == [str(scans[2])]


def cubes_of(folder):
    """{file: when it was written} of all cubes of a cache."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


def test_only_what_changed_is_prepared_anew(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 3)
    scans, said, place = scans_.find_scans(folder), [], tmp_path / "cache"
    datasets.build(place, [source(scans)], GRID, report=said.append)
    built = cubes_of(place)
    said.clear()
    datasets.build(place, [source(scans)], GRID, report=said.append)
    assert not said and cubes_of(place) == built and len(built) == 3
    nibabel.save(phantom(7), scans[1])
    os.utime(scans[1], (1, 1))
    changed = datasets.build(place, [source(scans)], GRID, report=said.append)
    assert said == ["prepared 1 of 1 scans, 0 skipped"] and built.items() <= cubes_of(place).items()
    expected = datasets.build(tmp_path / "new", [source(scans)], GRID, report=said.append)
    assert torch.equal(changed.read([0, 1, 2]), expected.read([0, 1, 2]))
    # Another split of the same scans needs no cube anew; another grid all of them.
    said.clear()
    assert datasets.build(place, [source(scans[:2], scans[2:])], GRID, report=said.append).rows("validation") == [2]
    assert not said
    datasets.build(place, [source(scans)], {"size": [20] * 3, "spacing": 12.0}, report=said.append)
    assert said and datasets.open_cache(place).shape == (20, 20, 20)
    assert len(datasets.build(tmp_path / "two", [source(scans)], GRID, workers=2, report=said.append).entries) == 3


def test_preparing_goes_on_where_it_was_interrupted_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    scans, place, real = scans_.find_scans(write_phantoms(tmp_path / "scans", 4)), tmp_path / "cache", loaders.load

    def interrupted(path, *rest):
        if Path(path) == scans[2]:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(loaders, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.build(place, [source(scans)], GRID, report=lambda text: None)
    before = cubes_of(place)
    assert len(before) == 2 and not [p for p in place.rglob("*") if ".part" in p.name]
    monkeypatch.setattr(loaders, "load", real)
    cache = datasets.build(place, [source(scans)], GRID, report=lambda text: None)
    assert len(cache.entries) == 4 and before.items() <= cubes_of(place).items()


def test_a_full_disk_ends_in_a_sentence_and_costs_nothing_that_was_prepared(tmp_path):
    """A real limit on the size of files, as a disk that fills in the middle of one."""
    scans = scans_.find_scans(write_phantoms(tmp_path / "scans", 2))
    place = tmp_path / "cache"
    datasets.build(place, [source(scans[:1])], GRID, report=lambda text: None)
    before = cubes_of(place)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        with pytest.raises(InputError, match="kept"):
            datasets.build(place, [source(scans)], GRID, report=lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert cubes_of(place) == before and not [p for p in place.rglob("*") if ".part" in p.name]
    assert len(datasets.open_cache(place).entries) == 1
    assert len(datasets.build(place, [source(scans)], GRID, report=lambda text: None).entries) == 2


def test_scans_that_are_gone_are_taken_from_the_cache(tmp_path):
    folder, said = write_phantoms(tmp_path / "scans", 3), []
    scans, place = scans_.find_scans(folder), tmp_path / "cache"
    whole = datasets.build(place, [source(scans)], GRID, report=said.append)
    shutil.move(folder, tmp_path / "elsewhere")
    kept = datasets.build(place, [source(scans)], GRID, report=said.append)
    assert torch.equal(kept.read([0, 1, 2]), whole.read([0, 1, 2]))
    assert any("3 scans are no longer where they were" in text for text in said)
    with pytest.raises(InputError, match="None of the 3 files"):  # not on this grid: but the other is still there
        datasets.build(place, [source(scans)], {"size": [20] * 3, "spacing": 12.0}, report=said.append)
    assert datasets.open_cache(place).shape == (16, 16, 16)


def broken_files(folder):
    """One file of every kind that training must survive; their number."""
    good = phantom(0)
    (folder / "text.nii").write_text("this is no image")
    whole = (folder / "phantom_00.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    data = np.asarray(good.dataobj)
    bad = {
        "four_d": np.stack([data, data], -1),
        "flat": data[:, :, :1],
        "constant": np.zeros_like(data),
        "small": data[:8, :8, :8],
    }
    for name, array in bad.items():
        nibabel.save(nibabel.Nifti1Image(array, good.affine), folder / f"{name}.nii.gz")
    nan = data.astype(np.float32)
    nan[:] = np.nan
    nibabel.save(nibabel.Nifti1Image(nan, good.affine), folder / "nan.nii.gz")
    return 8


def test_broken_files_are_skipped_counted_and_listed(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 3)
    count, said = broken_files(folder), []
    scans = [*scans_.find_scans(folder), folder / "missing.nii.gz"]
    cache = datasets.build(tmp_path / "cache", [source(scans)], GRID, report=said.append)
    assert len(cache.entries) == 3 and len(cache.skipped) == count + 1
    lines = (tmp_path / "cache" / "skipped.txt").read_text().splitlines()
    assert len(lines) == count + 1 and all(len(line.split("\t")) == 2 for line in lines)
    assert any("four_d" in line and "4D" in line for line in lines)
    assert any(f"{count + 1} of {count + 4} files cannot be used" in text for text in said)


def test_all_bad_stops(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 1)
    broken_files(folder)
    (folder / "phantom_00.nii.gz").unlink()
    with pytest.raises(InputError, match="None of the 8 files"):
        datasets.build(tmp_path / "cache", [source(scans_.find_scans(folder))], GRID, report=lambda text: None)
    with pytest.raises(InputError, match="no usable cache"):
        datasets.open_cache(tmp_path / "cache")


def test_a_damaged_index_is_no_cache(tmp_path):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="no usable cache"):
        datasets.open_cache(tmp_path)


def test_brain_masks_lie_beside_the_cubes_and_strip_what_is_outside(tmp_path):
    from SpatialDiffusionTraining.augmentation import Corruption

    scans = scans_.find_scans(write_phantoms(tmp_path / "scans", 3))
    masks = tmp_path / "masks"
    masks.mkdir()
    image = nibabel.load(scans[1])
    inside = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    inside[: inside.shape[0] // 2] = 0
    nibabel.save(nibabel.Nifti1Image(inside, image.affine), masks / scans[1].name)
    with_masks = datasets.Source("t1-brain", 1, scans, [], masks=str(masks))
    cache = datasets.build(tmp_path / "cache", [with_masks], GRID, report=lambda text: None)
    rows = [2, 1, 0, 1]
    places, mask = cache.read_masks(rows)
    assert places.tolist() == [1, 3] and set(mask.unique().tolist()) == {0.0, 1.0}
    volumes = cache.read(rows)
    pipeline = Corruption({"strip": {"probability": 1.0}})
    draws = pipeline.draw(4, torch.Generator().manual_seed(0))
    draws["strip"]["on"] = torch.tensor([True, True, True, False])
    stripped = pipeline.strip(volumes, (places, mask), draws)
    assert torch.equal(stripped[[0, 2, 3]], volumes[[0, 2, 3]])  # no mask, no mask, not drawn
    kept, all_of_it = (stripped[1] > 0).sum(), (volumes[1] > 0).sum()
    assert 0.2 * all_of_it < kept < 0.75 * all_of_it
    # Without masks nothing is stripped, and the cache says so.
    plain = datasets.build(tmp_path / "plain", [source(scans)], GRID, report=lambda text: None)
    assert plain.read_masks(rows)[0].numel() == 0


# ----------------------------------------------------------------------------------------------- sampling
def test_every_row_comes_equally_often():
    sampler = datasets.Sampler([list(range(10)), list(range(10, 200))], [1, 1], seed=3)
    counts = Counter(sampler.draw(0, sampler.length * 4))
    small, large = sum(counts[r] for r in range(10)), sum(counts[r] for r in range(10, 200))
    assert abs(small - large) <= 8  # equal weights, whatever the sizes
    for rows in (range(10), range(10, 200)):
        assert max(counts[r] for r in rows) - min(counts[r] for r in rows) <= 1
    weighted = datasets.Sampler([list(range(10)), list(range(10, 200))], [1, 9])
    assert sum(r < 10 for r in weighted.draw(0, 2000)) == pytest.approx(200, abs=30)


def test_the_stream_is_a_function_of_seed_and_position():
    sampler = datasets.Sampler([list(range(37))], seed=5)
    stream = sampler.draw(0, 500)
    assert datasets.Sampler([list(range(37))], seed=5).draw(123, 200) == stream[123:323]
    assert datasets.Sampler([list(range(37))], seed=6).draw(0, 500) != stream


def test_processes_share_the_global_batch_without_overlap():
    sampler = datasets.Sampler([list(range(50))], seed=1)
    for step in range(5):
        parts = [sampler.batch(step, 3, rank, 4) for rank in range(4)]
        assert sum(parts, []) == sampler.draw(step * 12, 12)


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(ValueError):
        datasets.Sampler([[1, 2], []])
    with pytest.raises(ValueError):
        datasets.Sampler([[1], [2]], [1.0, 0.0])


# ------------------------------------------------------------------------------------------- published
@pytest.mark.parametrize("modality", ["t1-brain", "t2-head-neck", "oct", "octa", "ct-head-neck"])
def test_published_loading_is_that_of_registration(modality, tmp_path):
    """A published model trains on what it will see; every loading ends in 0..1 by minimum and maximum."""
    from SpatialDiffusionCore.method import published_loading
    from SpatialDiffusionCore.modelfile import catalog

    if modality == "t2-head-neck":
        pytest.importorskip("skimage")
    scans, size = scans_.find_scans(write_phantoms(tmp_path / "scans", 1)), [48, 56, 52]
    cache = datasets.build(
        tmp_path / "cache",
        [source(scans, modality=modality, loader="published")],
        {"size": size, "spacing": 1.0},
        report=lambda text: None,
    )
    prepared, grid = published_loading.published(
        sampling.prepare(volume_file.load(scans[0])), catalog.get(modality).published_loader, size
    )
    expected = sampling.sample(prepared, grid)
    assert cache.shape == tuple(size)
    assert (cache.read([0]) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert cache.cubes[0].min() == 0 and cache.cubes[0].max() == 255


def test_published_loading_through_the_cache(tmp_path):
    scans = scans_.find_scans(write_phantoms(tmp_path / "scans", 1))
    cache = datasets.build(
        tmp_path / "cache",
        [source(scans, loader="published")],
        {"size": [24, 32, 28], "spacing": 1.0},
        report=lambda text: None,
    )
    assert cache.shape == (24, 32, 28) and cache.means.shape == (1, 3)


# ---------------------------------------------------------------------------------------------- real scans
def test_real_scans_of_every_kind_become_cubes(tmp_path):
    scans = real_scans()
    cache = datasets.build(
        tmp_path / "cache", [source(scans)], {"size": [32] * 3, "spacing": 7.0}, report=lambda text: None
    )
    assert not cache.skipped and len(cache.entries) == len(scans)
    volumes = cache.read(cache.rows("train"))
    assert (volumes.amax((1, 2, 3, 4)) > 0.9).all() and ((volumes > 0.1).float().mean((1, 2, 3, 4)) > 0.08).all()
    assert json.loads((tmp_path / "cache" / "index.json").read_text())["grid"]["spacing"] == 7.0


# ------------------------------------------------------------------------------------------------ partners
def test_a_pair_of_two_scans_is_aligned_by_its_target(tmp_path):
    """Two scans of one head on different grids, 20° and 15 mm apart: undone by the target, they show the same."""
    first = phantom(3)
    header = first.affine @ np.diag([1.1, 0.9, 1.05, 1.0])
    matrix = geometry.about(geometry.rotation_about([1, 2, 1], np.radians(20)) * 1.05, np.zeros(3), (9, -8, 9))
    second = volume.resample(
        volume.Volume(np.asarray(first.dataobj), first.affine), volume.Grid((44, 50, 46), header), matrix
    )
    nibabel.save(first, tmp_path / "head_ses1.nii.gz")
    volume_file.save(second, tmp_path / "head_ses2.nii.gz")
    numbers = "\t".join(str(v) for v in matrix[:3].ravel())
    (tmp_path / PARTNERS).write_text(f"head_ses1.nii.gz\thead_ses2.nii.gz\t{numbers}\n")
    cache = datasets.build(
        tmp_path / "cache",
        [source(scans_.find_scans(tmp_path))],
        {"size": [40, 44, 36], "spacing": [6.0, 5.0, 7.0]},
        report=lambda text: None,
    )
    [(second_row, there)], [(first_row, back)] = cache.partners[0], cache.partners[1]
    assert (first_row, second_row) == (0, 1)
    both = diffusion.compose(there[None], back[None])
    assert torch.allclose(both, torch.eye(3, 4)[None], atol=1e-5)
    settings = Settings.from_dict({"augmentation": {"partner": 1.0}})
    maker = PairMaker(cache, settings)
    maker.pose = Pose(rotation_degrees=30, shift=0.02, scale=0.05)

    def differences(row):
        pairs = maker.make([row] * 4, seeded(4, row), t=[1, 5, 10, 20], corrupt=False)
        undone = diffusion.warp(pairs.moving, pairs.target)
        return (undone - pairs.fixed)[:, :, 6:-6, 6:-6, 6:-6].abs().mean((1, 2, 3, 4))

    assert max(differences(0).max(), differences(1).max()) < 0.02
    there[:], back[:] = torch.eye(3, 4), torch.eye(3, 4)  # what if the transform were ignored
    assert min(differences(0).min(), differences(1).min()) > 0.04
    maker.partner = 0.0
    alone = maker.make([0] * 2, seeded(4), t=[1, 1], corrupt=False)
    assert (alone.fixed - alone.moving).abs().mean() < 0.02


def test_a_damaged_list_of_partners_is_named(tmp_path):
    write_phantoms(tmp_path, 2)
    (tmp_path / PARTNERS).write_text("phantom_00.nii.gz\tphantom_01.nii.gz\t1 0 0\n")
    with pytest.raises(InputError, match="partners.tsv, line 1"):
        datasets.build(tmp_path / "cache", [source(scans_.find_scans(tmp_path))], GRID, report=lambda text: None)


def test_a_scan_with_several_partners_meets_each_of_them(tmp_path):
    """A list elsewhere; every pair shows one of the partners where the list puts it, or the scan itself."""
    write_phantoms(tmp_path / "scans", 3)
    (tmp_path / "lists").mkdir()
    shift = {1: 12.0, 2: -9.0}
    (tmp_path / "lists" / "people.tsv").write_text(
        "".join(
            f"../scans/phantom_00.nii.gz\t../scans/phantom_{n:02d}.nii.gz\t1\t0\t0\t{mm}\t0\t1\t0\t0\t0\t0\t1\t0\n"
            for n, mm in shift.items()
        )
    )
    scans = datasets.Source(
        "t1-brain", 1, scans_.find_scans(tmp_path / "scans"), [], partners=str(tmp_path / "lists" / "people.tsv")
    )
    cache = datasets.build(tmp_path / "cache", [scans], GRID, report=lambda text: None)
    assert {row: [r for r, _ in known] for row, known in cache.partners.items()} == {0: [1, 2], 1: [0], 2: [0]}
    maker = PairMaker(cache, Settings.from_dict({"augmentation": {"partner": 0.7}}))
    maker.pose = Pose(rotation_degrees=0, shift=0, scale=0)
    seen = {}
    for seed in range(12):
        pairs = maker.make([0], seeded(seed), t=[1], corrupt=False)
        undone = diffusion.warp(pairs.moving, pairs.target)
        expected = [
            (diffusion.warp(cache.read([row]), theta[None]) - undone).abs().mean().item()
            for row, theta in [(0, torch.eye(3, 4)), *cache.partners[0]]
        ]
        best = int(np.argmin(expected))
        assert expected[best] < 0.02
        seen[best] = seen.get(best, 0) + 1
    assert set(seen) == {0, 1, 2}
    for row, theta in cache.partners[0]:
        first, second = (np.array(cache.entries[r]["to_ras"]) for r in (0, row))
        world = geometry.theta_to_world(theta.double().numpy(), first, second)
        assert np.allclose(world, geometry.about(np.eye(3), np.zeros(3), (shift[row], 0, 0)), atol=1e-4)
