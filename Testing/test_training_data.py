"""From files to batches: finding, splitting, skipping, caching and the endless stream."""
from __future__ import annotations

import json
from collections import Counter

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionTraining import datasets  # noqa: E402
from SpatialDiffusionTraining.augmentation import Pose  # noqa: E402
from SpatialDiffusionTraining.pairs import PairMaker, seeded  # noqa: E402
from SpatialDiffusionTraining.settings import Settings  # noqa: E402
from training_fixtures import phantom, real_scans, write_phantoms  # noqa: E402

from SpatialDiffusionCore.errors import InputError  # noqa: E402
from SpatialDiffusionCore.method import diffusion  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file  # noqa: E402

GRID = {"size": [16, 16, 16], "spacing": 14.0}


def source(paths, held=(), class_id=1, modality="t1-brain", loader="canonical"):
    return datasets.Source(modality, class_id, list(paths), list(held), 1.0, loader)


# ------------------------------------------------------------------------------------------------ finding
def test_scans_are_found_recursively_and_lists_are_relative_to_themselves(tmp_path):
    write_phantoms(tmp_path / "a", 2)
    write_phantoms(tmp_path / "a" / "deeper", 1)
    (tmp_path / "a" / "notes.txt").write_text("no scan")
    (tmp_path / "a" / "._phantom.nii.gz").write_text("what macOS leaves behind")
    found = datasets.find_scans(tmp_path / "a")
    assert [p.name for p in found] == ["phantom_00.nii.gz", "phantom_00.nii.gz", "phantom_01.nii.gz"]
    listed = tmp_path / "list.txt"
    listed.write_text("# training\n\na/phantom_01.nii.gz\na/missing.nii\n")
    assert datasets.find_scans(listed) == [tmp_path / "a" / "phantom_01.nii.gz", tmp_path / "a" / "missing.nii"]
    datasets.write_list(found, tmp_path / "again.txt")
    assert datasets.find_scans(tmp_path / "again.txt") == found


def test_what_holds_no_scans_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for place, words in (("empty", "no NIfTI"), ("empty.txt", "names no files"), ("absent", "does not exist")):
        with pytest.raises(InputError, match=words):
            datasets.find_scans(tmp_path / place)


def test_the_split_is_fixed_stable_and_keeps_visits_together():
    paths = [f"/data/sub-{i:03d}_T1w.nii.gz" for i in range(100)]
    training, held = datasets.split(paths)
    assert len(held) == 10 and not set(training) & set(held) and sorted(training + held) == paths
    assert datasets.split(list(reversed(paths))) == (training, held)
    more, held_more = datasets.split(paths + ["/data/sub-900_T1w.nii.gz"])
    assert len(set(held) & set(held_more)) >= 9
    visits = [f"/data/sub-{i:03d}_ses-{v}_T1w.nii.gz" for i in range(30) for v in (1, 2)]
    training, held = datasets.split(visits)
    assert not {p.split("_")[0] for p in training} & {p.split("_")[0] for p in held}
    assert datasets.split(paths[:1]) == (paths[:1], [])


# -------------------------------------------------------------------------------------------------- cache
def test_the_cache_holds_canonical_cubes_in_bytes(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 3)
    scans = datasets.find_scans(folder)
    cache = datasets.build(tmp_path / "cache", [source(scans[:2], scans[2:])], GRID, report=lambda text: None)
    assert cache.shape == (16, 16, 16) and cache.cubes.dtype == np.uint8 and isinstance(cache.cubes, np.memmap)
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


def test_an_unchanged_cache_is_reused_and_a_changed_one_rebuilt(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 2)
    scans, said = datasets.find_scans(folder), []
    datasets.build(tmp_path / "cache", [source(scans)], GRID, report=said.append)
    built = (tmp_path / "cache" / "cubes.npy").stat().st_mtime_ns
    said.clear()
    datasets.build(tmp_path / "cache", [source(scans)], GRID, report=said.append)
    assert not said and (tmp_path / "cache" / "cubes.npy").stat().st_mtime_ns == built
    datasets.build(tmp_path / "cache", [source(scans)], {"size": [20] * 3, "spacing": 12.0}, report=said.append)
    assert said and datasets.open_cache(tmp_path / "cache").shape == (20, 20, 20)
    two = datasets.build(tmp_path / "cache", [source(scans)], GRID, workers=2, report=said.append)
    assert len(two.entries) == 2


def broken_files(folder):
    """One file of every kind that training must survive; their number."""
    good = phantom(0)
    (folder / "text.nii").write_text("this is no image")
    whole = (folder / "phantom_00.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    data = np.asarray(good.dataobj)
    bad = {"four_d": np.stack([data, data], -1), "flat": data[:, :, :1], "constant": np.zeros_like(data),
           "small": data[:8, :8, :8]}
    for name, array in bad.items():
        nibabel.save(nibabel.Nifti1Image(array, good.affine), folder / f"{name}.nii.gz")
    nan = data.astype(np.float32)
    nan[3] = np.nan
    nibabel.save(nibabel.Nifti1Image(nan, good.affine), folder / "nan.nii.gz")
    return 8


def test_broken_files_are_skipped_counted_and_listed(tmp_path):
    folder = write_phantoms(tmp_path / "scans", 3)
    count, said = broken_files(folder), []
    scans = [*datasets.find_scans(folder), folder / "missing.nii.gz"]
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
        datasets.build(tmp_path / "cache", [source(datasets.find_scans(folder))], GRID, report=lambda text: None)
    with pytest.raises(InputError, match="no usable cache"):
        datasets.open_cache(tmp_path / "cache")


def test_a_damaged_index_is_no_cache(tmp_path):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="no usable cache"):
        datasets.open_cache(tmp_path)


def test_brain_masks_lie_beside_the_cubes_and_strip_what_is_outside(tmp_path):
    from SpatialDiffusionTraining.augmentation import Corruption

    scans = datasets.find_scans(write_phantoms(tmp_path / "scans", 3))
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
    scans, size = datasets.find_scans(write_phantoms(tmp_path / "scans", 1)), [48, 56, 52]
    cache = datasets.build(tmp_path / "cache", [source(scans, modality=modality, loader="published")],
                           {"size": size, "spacing": 1.0}, report=lambda text: None)
    prepared, grid = published_loading.published(
        sampling.prepare(volume_file.load(scans[0])), catalog.get(modality).published_loader, size)
    expected = sampling.sample(prepared, grid)
    assert cache.shape == tuple(size)
    assert (cache.read([0]) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert cache.cubes[0].min() == 0 and cache.cubes[0].max() == 255


def test_published_loading_through_the_cache(tmp_path):
    scans = datasets.find_scans(write_phantoms(tmp_path / "scans", 1))
    cache = datasets.build(tmp_path / "cache", [source(scans, loader="published")],
                           {"size": [24, 32, 28], "spacing": 1.0}, report=lambda text: None)
    assert cache.shape == (24, 32, 28) and cache.means.shape == (1, 3)


# ---------------------------------------------------------------------------------------------- real scans
def test_real_scans_of_every_kind_become_cubes(tmp_path):
    scans = real_scans()
    cache = datasets.build(tmp_path / "cache", [source(scans)], {"size": [32] * 3, "spacing": 7.0},
                           report=lambda text: None)
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
    second = volume.resample(volume.Volume(np.asarray(first.dataobj), first.affine),
                             volume.Grid((44, 50, 46), header), matrix)
    nibabel.save(first, tmp_path / "head_ses1.nii.gz")
    volume_file.save(second, tmp_path / "head_ses2.nii.gz")
    numbers = "\t".join(str(v) for v in matrix[:3].ravel())
    (tmp_path / datasets.PARTNERS).write_text(f"head_ses1.nii.gz\thead_ses2.nii.gz\t{numbers}\n")
    cache = datasets.build(tmp_path / "cache", [source(datasets.find_scans(tmp_path))],
                           {"size": [40, 44, 36], "spacing": [6.0, 5.0, 7.0]}, report=lambda text: None)
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
    (tmp_path / datasets.PARTNERS).write_text("phantom_00.nii.gz\tphantom_01.nii.gz\t1 0 0\n")
    with pytest.raises(InputError, match="partners.tsv, line 1"):
        datasets.build(tmp_path / "cache", [source(datasets.find_scans(tmp_path))], GRID, report=lambda text: None)


def test_a_scan_with_several_partners_meets_each_of_them(tmp_path):
    """A list elsewhere; every pair shows one of the partners where the list puts it, or the scan itself."""
    write_phantoms(tmp_path / "scans", 3)
    (tmp_path / "lists").mkdir()
    shift = {1: 12.0, 2: -9.0}
    (tmp_path / "lists" / "people.tsv").write_text("".join(
        f"../scans/phantom_00.nii.gz\t../scans/phantom_{n:02d}.nii.gz\t1\t0\t0\t{mm}\t0\t1\t0\t0\t0\t0\t1\t0\n"
        for n, mm in shift.items()))
    scans = datasets.Source("t1-brain", 1, datasets.find_scans(tmp_path / "scans"), [],
                            partners=str(tmp_path / "lists" / "people.tsv"))
    cache = datasets.build(tmp_path / "cache", [scans], GRID, report=lambda text: None)
    assert {row: [r for r, _ in known] for row, known in cache.partners.items()} == {0: [1, 2], 1: [0], 2: [0]}
    maker = PairMaker(cache, Settings.from_dict({"augmentation": {"partner": 0.7}}))
    maker.pose = Pose(rotation_degrees=0, shift=0, scale=0)
    seen = {}
    for seed in range(12):
        pairs = maker.make([0], seeded(seed), t=[1], corrupt=False)
        undone = diffusion.warp(pairs.moving, pairs.target)
        expected = [(diffusion.warp(cache.read([row]), theta[None]) - undone).abs().mean().item()
                    for row, theta in [(0, torch.eye(3, 4)), *cache.partners[0]]]
        best = int(np.argmin(expected))
        assert expected[best] < 0.02
        seen[best] = seen.get(best, 0) + 1
    assert set(seen) == {0, 1, 2}
    for row, theta in cache.partners[0]:
        first, second = (np.array(cache.entries[r]["to_ras"]) for r in (0, row))
        world = geometry.theta_to_world(theta.double().numpy(), first, second)
        assert np.allclose(world, geometry.about(np.eye(3), np.zeros(3), (shift[row], 0, 0)), atol=1e-4)
