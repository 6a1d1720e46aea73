"""Groups: pairs that contradict each other are found, the space favours nobody, and order does not matter."""

from __future__ import annotations

import tracemalloc
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np
import pytest

from SpatialDiffusionCore import InputError, load, register, register_group, save
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.many import averaging, group
from SpatialDiffusionCore.many.averaging import Cloud, consensus, pairs_to_register
from SpatialDiffusionCore.many.executor import Here, Outcome, WorkerLost
from SpatialDiffusionCore.many.group import PairAnswer, group_steps
from SpatialDiffusionCore.registration import run_steps
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.transform_file import read_transform
from SpatialDiffusionCore.spatial.volume import Volume

DEMO = Path(group.__file__).parents[1] / "demo"
#: About a head's (standard deviations of the tissue along x, y and z, mm).
HEAD = np.diag([35.0, 42.0, 30.0]) ** 2


class People:
    """Volumes with known transforms to a common space, and pairs with errors as two people's have (about 1 mm)."""

    def __init__(self, count, seed=0, error=1.0, wrong=0, turned=0.5):
        random = np.random.default_rng(seed)
        self.clouds = [Cloud(10 * random.normal(size=3), HEAD) for _ in range(count)]
        self.truth = []
        for cloud in self.clouds:
            turn = geometry.rotation_about(random.normal(size=3), random.uniform(0, turned))
            linear = turn @ (np.eye(3) + 0.05 * random.normal(size=(3, 3)))
            self.truth.append(geometry.about(linear, cloud.mean, 20 * random.normal(size=3)))
        self.pairs = {}
        for i, j in pairs_to_register(count):
            turn = geometry.rotation_about(random.normal(size=3), 0.01 * error * random.normal())
            off = geometry.from_parts(turn, 0.5 * error * random.normal(size=3))
            self.pairs[i, j] = geometry.inverse(self.truth[j]) @ off @ self.truth[i]
        chosen = random.choice(len(self.pairs), wrong, replace=False)
        self.wrong = sorted(sorted(self.pairs)[k] for k in chosen)
        for number, (i, j) in enumerate(self.wrong):
            angle = np.radians([12, 25, 60, 120, 180][number % 5])
            turn = geometry.rotation_about(random.normal(size=3), angle)
            self.pairs[i, j] = geometry.about(turn, self.clouds[j].mean, [4, 4, 4]) @ self.pairs[i, j]

    def worst(self, matrices):
        """mm by which the common space, laid on the true one, misses at worst."""
        ways = [truth @ geometry.inverse(m) for truth, m in zip(self.truth, matrices)]
        middle = geometry.mean(ways)
        return max(c.distance(middle @ m, t) for c, m, t in zip(self.clouds, matrices, self.truth))


def test_five_wrong_pairs_of_45_are_found_and_do_no_harm():
    for seed in (0, 1):
        people = People(10, seed, wrong=5)
        found = consensus(people.pairs, people.clouds)
        assert list(found.dropped) == people.wrong
        assert people.worst(found.matrices) < 1.5
        right = [mm for pair, mm in found.disagreement.items() if pair not in found.dropped]
        assert max(right) < 3 < min(found.disagreement[pair] for pair in found.dropped)


def test_cycle_errors_are_zero_where_pairs_agree_and_tell_which_volume_is_bad():
    people = People(6, error=0.0)
    errors = averaging.cycle_errors(people.pairs, people.clouds)
    assert len(errors) == 20 and max(errors.values()) < 1e-9
    shifted = {
        pair: geometry.from_parts(np.eye(3), [0, 7.0 * (pair[0] + 1), 0]) @ m if 5 in pair else m
        for pair, m in people.pairs.items()
    }
    told = averaging.by_volume(averaging.cycle_errors(shifted, people.clouds), 6)
    assert told.argmax() == 5 and told[5] > 5


def test_a_hundred_volumes_need_five_pairs_each():
    pairs = pairs_to_register(100)
    assert len(pairs) <= 500 and len(averaging.connected(pairs, 100)) == 1
    people = People(100, wrong=20, seed=3)
    found = consensus(people.pairs, people.clouds)
    assert set(people.wrong) == set(found.dropped)
    assert people.worst(found.matrices) < 3


def test_every_number_of_volumes_is_connected_by_triangles():
    for count in (2, 3, 5, 12, 13, 14, 17, 40, 99, 251):
        pairs = pairs_to_register(count)
        assert len(averaging.connected(pairs, count)) == 1
        if count > 2:
            neighbors = {index: {a + b - index for a, b in pairs if index in (a, b)} for index in range(count)}
            assert all(neighbors[i] & neighbors[j] for i, j in pairs), count


def test_two_volumes_meet_halfway():
    people = People(2, error=0.0)
    found = consensus(people.pairs, people.clouds)
    first, second = found.matrices
    np.testing.assert_allclose(first @ first, people.pairs[0, 1], atol=1e-8)
    np.testing.assert_allclose(first @ second, np.eye(4), atol=1e-8)


def test_a_space_is_found_whatever_the_headers():
    """Volumes that lie upside down to each other have no mean rotation."""
    people = People(4, error=0.0)
    turns = [np.eye(3), np.diag([1, -1, -1]), np.diag([-1, 1, -1]), np.diag([-1, -1, 1])]
    pairs = {(i, j): geometry.from_parts(turns[j].T @ turns[i]) for i, j in combinations(range(4), 2)}
    found = consensus(pairs, people.clouds)
    assert found.dropped == () and max(found.disagreement.values()) < 1e-6


def test_pairs_that_do_not_connect_all_are_refused():
    people = People(4)
    with pytest.raises(InputError, match="do not connect all volumes: 2 parts"):
        consensus({pair: people.pairs[pair] for pair in ((0, 1), (2, 3))}, people.clouds)


# Whole groups. Answers of pairs are known from how the volumes were made, so that registrations are few.


@pytest.fixture(scope="module")
def brain() -> Volume:
    return load(DEMO / "moving_t1_brain.nii.gz")


class Copies:
    """The same brain under five headers, and the pairs' true answers; two are wrong, one of which is called poor."""

    def __init__(self, brain: Volume):
        random = np.random.default_rng(1)
        self.moves = []
        for _ in range(5):
            turn = geometry.rotation_about(random.normal(size=3), 0.3)
            self.moves.append(geometry.about(turn, brain.center(), 10 * random.normal(size=3)))
        noise = random.normal(size=(5, *brain.shape)).astype(np.float32)
        self.volumes = [
            Volume(brain.data + one, move @ brain.voxel_to_ras, f"copy {index}")
            for index, (one, move) in enumerate(zip(noise, self.moves))
        ]

    def answer(self, i: int, j: int) -> PairAnswer:
        matrix = self.moves[j] @ geometry.inverse(self.moves[i])
        if {i, j} == {0, 3}:
            matrix = matrix @ geometry.from_parts(np.eye(3), [0, 25, 0])
        return PairAnswer(matrix, "good")


@pytest.fixture(scope="module")
def copies(brain) -> Copies:
    return Copies(brain)


def test_the_wrong_pair_is_dropped_and_the_copies_lie_on_each_other(copies):
    found = run_steps(group_steps(copies.volumes, known=copies.answer, modality="t1-brain", transform="rigid"), None)
    assert [set(pair) for pair in found.dropped] == [{0, 3}] and found.doubts == {}
    for i, j in combinations(range(5), 2):
        true = copies.moves[j] @ geometry.inverse(copies.moves[i])
        np.testing.assert_allclose(found.between(i, j), true, atol=1e-6)
    assert np.nanmax(found.cycle_error) < 1e-6
    sharp, blurred = found.mean().data, found.mean(aligned=False).data
    inside = sharp > 0.2
    assert np.corrcoef(sharp[inside], found.moved(0).data[inside])[0, 1] > 0.98
    assert sharp.std() > 1.05 * blurred.std()


def test_the_order_of_names_does_not_matter(copies):
    order = [3, 0, 4, 2, 1]
    first = run_steps(group_steps(copies.volumes, known=copies.answer, modality="t1-brain"), None)
    mixed = run_steps(
        group_steps(
            [copies.volumes[k] for k in order],
            known=lambda i, j: copies.answer(order[i], order[j]),
            modality="t1-brain",
        ),
        None,
    )
    for place, index in enumerate(order):
        np.testing.assert_allclose(mixed.matrices[place], first.matrices[index], atol=1e-6)
    assert mixed.grid.shape == first.grid.shape


def test_two_visits_are_registered_to_the_space_between_them(brain, tmp_path, capsys):
    turn = geometry.about(geometry.rotation_about([1, 2, 3], 0.2), brain.center(), [6, -4, 5])
    visit = Volume(brain.data, turn @ brain.voxel_to_ras, "visit 2")
    other = Volume(brain.data[2:], brain.voxel_to_ras @ geometry.from_parts(np.eye(3), [2, 0, 0]), "visit 1")
    found = register_group([visit, other], modality="t1-brain", transform="rigid", search=False)
    direct = register(visit, other, modality="t1-brain", transform="rigid", search=False).matrix
    cloud = Cloud(geometry.transform_points(turn, brain.center()[None])[0], HEAD)
    assert cloud.distance(found.between(0, 1), direct) < 1e-6
    assert cloud.distance(found.between(0, 1), geometry.inverse(turn)) < 0.3
    np.testing.assert_allclose(found.matrices[0] @ found.matrices[1], np.eye(4), atol=1e-6)
    assert np.isnan(found.cycle_error).all()


def test_the_shell_writes_a_group_and_takes_up_pairs_that_are_there(copies, tmp_path, monkeypatch, capsys):
    paths = [str(tmp_path / f"copy{index}.nii.gz") for index in range(3)]
    for path, volume in zip(paths, copies.volumes):
        save(volume, path)
    asked = []

    def registered(task):
        pair = paths.index(task.moving), paths.index(task.fixed)
        asked.append(pair)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return copies.answer(*pair)

    monkeypatch.setattr(group, "_register_pair", registered)
    out = tmp_path / "out"
    command = ["group", *paths, "-o", str(out), "--modality", "t1-brain", "--transform", "rigid"]
    assert main(command) == 130
    assert main(command) == 0
    assert len(asked) == 4 and asked[2] == asked[3]  # the two that were done are not done again
    matrices = [read_transform(out / f"copy{index}_to_group.tfm") for index in range(3)]
    between = geometry.inverse(matrices[1]) @ matrices[0]
    np.testing.assert_allclose(between, copies.moves[1] @ geometry.inverse(copies.moves[0]), atol=1e-5)
    assert (out / "group.tsv").read_text().splitlines()[0].startswith("volume\tcycle_error_mm")
    capsys.readouterr()
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out
    assert main([*command[:-1], "affine"]) == 1 and "another run" in capsys.readouterr().err


def test_a_group_of_two_modalities_is_refused(brain, data_folder):
    scan = next(iter(sorted((data_folder / "ct_head_neck").glob("*.nii.gz"))))
    with pytest.raises(InputError, match="mixes modalities: .* shows CT head and neck and .* shows T1 brain MRI"):
        next(group_steps([brain, load(scan)]))


def test_bad_groups_get_a_sentence(brain, tmp_path, capsys):
    mouse = Volume(brain.data, np.diag([0.1, 0.1, 0.1, 1]) @ brain.voxel_to_ras, "mouse")
    for volumes, options, words in (
        ([brain], {}, "two volumes at least"),
        ([brain, brain], {"modality": "any"}, "the same volume"),
        ([brain, mouse], {"modality": "any"}, "of one kind belong in a group"),
        ([brain, Volume(np.zeros((20, 20, 20)), np.eye(4), "flat")], {"modality": "any"}, "flat is constant"),
        ([brain, "missing.nii.gz"], {"modality": "any"}, "does not exist"),
        ([brain, brain], {"transform": "elastic"}, "Unknown transform"),
        ([brain, brain], {"init": np.eye(4)}, "no initial transform"),
        ([brain, brain], {"jobs": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            next(group_steps(volumes, **options))
    assert main(["group", str(DEMO / "moving_t1_brain.nii.gz"), "-o", str(tmp_path / "x")]) == 2


# Many, and names


def blobs(count, folder, names=None):
    """Files of small volumes of one blob under headers that are known; (paths, answer of a pair by their numbers)."""
    random = np.random.default_rng(0)
    grid = np.indices((20, 20, 20)).transpose(1, 2, 3, 0) - 9.5
    body = 100 * np.exp(-(grid**2 @ [1.0, 0.6, 0.4]) / 30) * (1 + 0.3 * (grid[..., 0] > 2))
    paths, moves = [], []
    for index in range(count):
        move = geometry.about(geometry.rotation_about(random.normal(size=3), 0.2), [0, 0, 0], random.normal(size=3))
        to_ras = move @ geometry.from_parts(4 * np.eye(3), 3 * [-38.0])
        name = f"v{index:03d}.nii" if names is None else names[index]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = Volume((body + random.normal(size=body.shape)).astype(np.float32), to_ras)
        save(volume, path)
        paths.append(str(path))
        moves.append(move)
    return paths, lambda i, j: PairAnswer(moves[j] @ geometry.inverse(moves[i]), "good")


def test_memory_is_linear_in_the_number_of_volumes(tmp_path):
    paths, answer = blobs(60, tmp_path)
    peaks = []
    for count in (20, 60):
        tracemalloc.start()
        found = run_steps(group_steps(paths[:count], known=answer, modality="any", transform="rigid"), None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found.pairs) <= 5 * count and found.dropped == () and found.doubts == {}
    assert peaks[1] < 3 * peaks[0] and peaks[1] < 60 * 20**3 * 4, peaks  # far less than all volumes take


def test_no_volume_of_a_group_overwrites_anothers_transform(tmp_path):
    names = ["ann/T1.nii", "bob/T1.nii", "bob/t1.NII", "ann/visit@2.nii.gz", "Größe 1.5.nrrd", "T1_1.nii", "脳.mha"]
    paths, answer = blobs(len(names), tmp_path, names)
    (tmp_path / "out").mkdir()
    for sources in (paths, [load(path) for path in paths]):
        found = run_steps(group_steps(sources, known=answer, modality="any", transform="rigid"), None)
        written = group.write_group(found, tmp_path / "out")
        transforms = [path for key, path in written.items() if key.startswith("transform")]
        assert len({path.name.lower() for path in transforms}) == len(names) == len(set(found.names))
        assert {path.name for path in transforms} >= {
            "visit@2_to_group.tfm",
            "Größe 1.5_to_group.tfm",
            "脳_to_group.tfm",
        }
        for index, path in enumerate(transforms):
            np.testing.assert_allclose(read_transform(path), found.matrices[index], atol=1e-6)
    frames = np.stack([load(path).data for path in paths[:2]], axis=-1)
    nibabel.save(nibabel.Nifti1Image(frames, load(paths[0]).voxel_to_ras), tmp_path / "run.nii")
    two = [f"{tmp_path / 'run.nii'}@{index}" for index in (0, 1)]
    found = run_steps(group_steps(two, known=lambda i, j: PairAnswer(np.eye(4), "good"), modality="any"), None)
    assert found.stems == ["run_0", "run_1"]


class LosesThe:
    """An executor of this process, whose item of a number (from 0) is lost as if its process had been killed."""

    def __init__(self, lost):
        self.lost = lost

    def run(self, function, items):
        for outcome in Here().run(function, items):
            self.lost -= 1
            yield outcome if self.lost + 1 else Outcome(outcome.index, error=WorkerLost("Its process was killed."))


def test_a_pair_whose_process_is_killed_is_said_and_made_up_for(copies, tmp_path, monkeypatch, capsys):
    paths = [str(tmp_path / f"copy{index}.nii.gz") for index in range(4)]
    for path, volume in zip(paths, copies.volumes):
        save(volume, path)
    monkeypatch.setattr(group, "_register_pair", lambda task: copies.answer(paths.index(task.moving),
                        paths.index(task.fixed)))  # fmt: skip
    monkeypatch.setattr(group, "executor", lambda jobs: LosesThe(1))
    command = ["group", *paths, "-o", str(tmp_path / "out"), "--modality", "t1-brain", "--transform", "rigid"]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "was killed" in said.err and "5 pairs" in said.out
    monkeypatch.setattr(group, "executor", lambda jobs: Here())
    assert main(command) == 0
    assert "6 pairs" in capsys.readouterr().out
    monkeypatch.setattr(group, "executor", lambda jobs: LosesThe(0))
    with pytest.raises(InputError, match="1 of 1 pairs were lost, and the others do not connect .* was killed"):
        register_group(paths[:2], modality="t1-brain")


def test_what_headers_contradict_is_heard_of_in_a_group(tmp_path, capsys):
    paths, answer = blobs(2, tmp_path)
    image = nibabel.load(paths[0])
    image.set_sform(geometry.from_parts(np.eye(3), (15.0, 0.0, 0.0)) @ image.affine, 4)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), None, image.header), paths[0])
    found = run_steps(group_steps(paths, known=answer, modality="any", transform="rigid"), None)
    assert len(found.warnings) == 1 and "v000.nii place it up to 15 mm apart" in found.warnings[0]


def test_a_page_is_written_though_the_group_is_there_already(tmp_path, capsys):
    paths, answer = blobs(2, tmp_path)
    out, page = tmp_path / "out", tmp_path / "page"
    command = ["group", *paths, "-o", str(out), "--modality", "any", "--transform", "rigid"]
    assert main(command) == 0
    assert main([*command, "--review", str(page)]) == 0 and (page / "data.js").is_file()
    capsys.readouterr()
    assert main([*command, "--review", str(page)]) == 0 and "nothing to do" in capsys.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert main([*command[:-1], "affine", "-o", str(tmp_path / "other"), "--review", str(tmp_path / "full")]) == 1
    assert "holds other files" in capsys.readouterr().err and not (tmp_path / "other").exists()
