"""Eyes: what phantoms look like, known transforms found again in micrometers, and the one real eye."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from SpatialDiffusionCore import register  # noqa: E402
from SpatialDiffusionCore.alignment import front_maps  # noqa: E402
from SpatialDiffusionCore.alignment.pair import Pair  # noqa: E402
from SpatialDiffusionCore.errors import InputError  # noqa: E402
from SpatialDiffusionCore.method.schedule import Schedule  # noqa: E402
from SpatialDiffusionCore.modelfile.card import ModelCard, ModelGrid, read_card  # noqa: E402
from SpatialDiffusionCore.modelfile.catalog import BUNDLED  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.modelfile.model_cube import model_cube  # noqa: E402
from SpatialDiffusionCore.modelfile.safetensors_file import save_model  # noqa: E402
from SpatialDiffusionCore.networks.build import build  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file  # noqa: E402
from SpatialDiffusionCore.strategies.registry import RETINA  # noqa: E402
from SpatialDiffusionTraining import retina  # noqa: E402
from SpatialDiffusionTraining.pair_lists import PARTNERS  # noqa: E402
from SpatialDiffusionTraining.retina import rendering  # noqa: E402

#: What is bundled for eyes: their grid, and no network yet.
MODEL = BUNDLED / "retina.safetensors"


@pytest.fixture(scope="module")
def eye():
    return retina.make_eye(7)


def error(matrix, truth, fixed, moving):
    """(median lateral, median axial) error in µm over the fixed tissue, of moving → fixed matrices."""
    points = np.argwhere(fixed.data[::4, ::4, ::4] > sampling.prepare(fixed).threshold) * 4.0
    points = geometry.transform_points(fixed.voxel_to_ras, points)
    there = geometry.transform_points(np.linalg.inv(truth), points)
    seen = geometry.transform_points(np.linalg.inv(moving.voxel_to_ras), there)
    inside = ((seen >= 0) & (seen <= np.array(moving.shape) - 1)).all(1)
    off = 1000 * (geometry.transform_points(matrix, there) - points)[inside]
    return np.median(np.hypot(off[:, 0], off[:, 1])), np.median(np.abs(off[:, 2]))


# ---------------------------------------------------------------------------------------------- what a phantom is
#: µm below Bruch's membrane → intensities of averaged scans of real eyes (lowest, highest), and what a phantom may add.
REAL = [
    (-240, -210, 137, 149, 15),
    (-190, -160, 112, 124, 12),
    (-130, -100, 74, 79, 12),
    (-55, -20, 185, 220, 12),
    (20, 60, 100, 136, 12),
    (116, 140, 48, 64, 8),
    (220, 240, 26, 34, 6),
]


def test_layers_speckle_and_noise_are_those_of_real_scans():
    """The figures measured on real volumes: means of the layers, variation and neighbor correlations of the speckle."""
    q = retina.Acquisition(extent=(5.7, 4.35), shape=(120, 40, 248), axial=0.00774, motion=0.0, banding=0.0, seed=3)
    x, y, down = rendering._positions(q, np.random.default_rng(0))
    a, b = np.nonzero(np.hypot(x, y) > 1.2)
    means = []
    for number in range(4):
        eye = replace(retina.make_eye(number), foci=np.zeros((0, 6)))
        data = retina.scan(replace(eye, vessels=np.zeros_like(eye.vessels)), q).data.astype(float)
        assert 3 < data[:, :, :40].mean() < 8 and 3 < data[:, :, :40].std() < 8  # the vitreous: 5 ± 6
        bruch = (eye.at(eye.bruch, x, y) + down)[a, b]
        rows = [
            [np.round((bruch + um / 1000) / q.axial).astype(int) for um in range(first, last + 1, 10)]
            for first, last, *_ in REAL
        ]
        means.append([np.mean([data[a, b, row].mean() for row in layer]) for layer in rows])
    for (first, last, low, high, more), mean in zip(REAL, np.mean(means, axis=0)):
        assert low - more <= mean <= high + more, (first, last, mean)
    noise = retina.speckle(np.random.default_rng(1), (120, 80, 120))
    assert noise.mean() == pytest.approx(1, abs=0.01) and noise.std() == pytest.approx(0.12, abs=0.01)
    for axis, wanted in enumerate((0.70, 0.16, 0.83)):
        n = noise.shape[axis]
        pair = [np.take(noise, np.arange(i, n - 1 + i), axis).ravel() for i in (0, 1)]
        assert np.corrcoef(*pair)[0, 1] == pytest.approx(wanted, abs=0.03)


def test_vessels_darken_oct_below_them_and_light_octa(eye):
    q = retina.Acquisition(shape=(180, 120, 160), axial=0.012, motion=0.0, banding=0.0, speckle=0.5, seed=1)
    x, y, down = rendering._positions(q, np.random.default_rng(0))
    radius = eye.at(eye.vessels, x, y)
    row = np.round((eye.at(eye.bruch, x, y) + down - 0.04) / q.axial).astype(int)  # the ellipsoid zone, below vessels
    structure, flow = (retina.scan(eye, q, kind).data.astype(float) for kind in ("oct", "octa"))
    large, none = (radius > 0.03) & (np.hypot(x, y) > 1), (radius == 0) & (np.hypot(x, y) > 1)
    assert large.sum() > 100
    bright = np.take_along_axis(structure, row[..., None], 2)[..., 0]
    assert bright[large].mean() < 0.75 * bright[none].mean()
    assert flow.max(2)[large].mean() > 1.5 * flow.max(2)[none].mean()


@pytest.mark.parametrize("turn", [0.0, 90.0, -140.0])
def test_the_transform_of_an_acquisition_says_where_the_fovea_is(eye, turn):
    """The pit, seen in the volume where the retina is thinnest, lies where to_eye() puts (0, 0)."""
    q = retina.Acquisition(
        extent=(6, 5),
        shape=(150, 120, 128),
        axial=0.015,
        turn=turn,
        shift=(0.5, -0.3),
        scale=(1.05, 0.97),
        shear=0.02,
        tilt=(2.0, -1.0),
        motion=0.0,
        banding=0.0,
        speckle=0.3,
    )
    clean = replace(eye, foci=np.zeros((0, 6)), vessels=np.zeros_like(eye.vessels))
    data = retina.scan(clean, q).data.astype(float)
    from scipy.ndimage import gaussian_filter

    inner = gaussian_filter(np.argmax(gaussian_filter(data, (1, 1, 0.5)) > 60, axis=2).astype(float), 2)
    outer = gaussian_filter(data.shape[2] - np.argmax(gaussian_filter(data, (1, 1, 0.5))[..., ::-1] > 120, axis=2), 2.0)
    thickness = outer - inner
    found = np.unravel_index(np.argmin(thickness[10:-10, 10:-10]), thickness[10:-10, 10:-10].shape)
    there = geometry.transform_points(q.to_eye() @ q.header, np.array([[found[0] + 10, found[1] + 10, 0.0]]))[0]
    assert np.hypot(*there[:2]) < 0.2


def test_the_shell_writes_pairs_that_training_reads(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "eyes"), "--kind", "octa", "--count", "1", "--seed", "5"]
    assert retina.main(arguments) == 0
    names = sorted(p.name for p in (tmp_path / "eyes").iterdir())
    assert names == ["octa00005_ses1.nii.gz", "octa00005_ses2.nii.gz", PARTNERS]
    written = (tmp_path / "eyes" / PARTNERS).read_text()
    first, second, matrix = retina.make_pair(5, "octa")
    assert np.allclose(np.array(written.split("\t")[2:], float).reshape(3, 4), matrix[:3], atol=1e-9)
    stored = volume_file.load(tmp_path / "eyes" / names[1])
    assert np.array_equal(stored.data, second.data) and np.allclose(stored.spacing, second.spacing, rtol=1e-6)
    made = (tmp_path / "eyes" / names[0]).stat().st_mtime_ns
    assert retina.main(arguments) == 0
    assert (tmp_path / "eyes" / names[0]).stat().st_mtime_ns == made
    assert (tmp_path / "eyes" / PARTNERS).read_text() == written
    assert retina.main([*arguments, "--graphs", str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
    with pytest.raises(InputError, match="oct or octa"):
        retina.scan(retina.make_eye(0), retina.Acquisition(), "mri")


# ------------------------------------------------------------------------------------------------ registration
def test_a_model_file_without_a_network_says_on_which_grid(tmp_path):
    network = build({"head": "none", "volume_size": [32, 24, 16]})
    path = tmp_path / "grid.safetensors"
    save_model(
        path,
        network,
        ModelCard(
            name="grid",
            architecture=network.architecture,
            schedule=Schedule(),
            modalities={"oct": 0},
            grid=ModelGrid((32, 24, 16), (0.2, 0.05, 0.3), "canonical"),
            steps=0,
        ),
    )
    loaded = load_model(path, "oct", "oct")
    assert loaded.card.grid.to_dict() == {"size": [32, 24, 16], "spacing": [0.2, 0.05, 0.3], "loading": "canonical"}
    cube = torch.zeros(2, 1, *loaded.size)
    assert torch.equal(loaded.denoiser("oct", "oct")(cube, cube, torch.tensor([3, 3])), torch.eye(3, 4).repeat(2, 1, 1))


def test_eyes_are_registered_without_a_network_by_default():
    chosen = load_model(None, "oct", "oct")
    assert chosen.name == "retina" and chosen.card.steps == 0 and not list(chosen.network.parameters())
    assert load_model(None, "octa", "octa") is chosen


FIXED = retina.Acquisition(
    extent=(5.6, 5.0), shape=(140, 90, 160), axial=0.012, tilt=(1.5, -1.0), speckle=1.5, motion=0.5, seed=11
)
MOVING = retina.Acquisition(
    extent=(5.2, 5.4),
    shape=(150, 80, 150),
    axial=0.0125,
    turn=112.0,
    shift=(0.4, -0.3),
    scale=(1.03, 0.98),
    shear=0.01,
    tilt=(-2.0, 0.5),
    offset=0.9,
    speckle=1.5,
    motion=0.5,
    seed=12,
)


@pytest.mark.parametrize("kind", ["oct", "octa"])
def test_two_scans_of_a_phantom_are_registered_within_micrometers(kind, eye):
    fixed, moving = retina.scan(eye, FIXED, kind), retina.scan(eye, MOVING, kind)
    truth = retina.true_transform(MOVING, FIXED)
    answer = register(moving, fixed, modality=kind, model=MODEL)
    lateral, axial = error(answer.matrix, truth, fixed, moving)
    assert lateral < 25 and axial < 12  # B-scans are 56 µm apart, axial pixels 12 µm
    assert answer.quality.confidence == "good" and answer.quality.spread_mm < 0.03
    back = register(fixed, moving, modality=kind, model=MODEL)
    assert np.allclose(back.matrix @ answer.matrix, np.eye(4), atol=1e-6)
    rigid = register(moving, fixed, modality=kind, model=MODEL, transform="rigid").matrix[:3, :3]
    assert np.allclose(rigid.T @ rigid, np.eye(3), atol=1e-10)


def test_the_array_order_does_not_matter(eye):
    """The same scan stored as (B-scan, depth, A-scan): the transform is as good."""
    fixed, moving = retina.scan(eye, FIXED), retina.scan(eye, MOVING)
    to_new = np.zeros((4, 4))
    to_new[[0, 1, 2, 3], [1, 2, 0, 3]] = 1  # (i, j, k) → (j, k, i), a rotation of the axes
    stored = volume.Volume(moving.data.transpose(1, 2, 0), moving.voxel_to_ras @ np.linalg.inv(to_new))
    truth = retina.true_transform(MOVING, FIXED)
    answer = register(stored, fixed, modality="oct", model=MODEL)
    lateral, axial = error(answer.matrix, truth, fixed, moving)
    assert lateral < 25 and axial < 12


def test_another_eye_and_a_mirrored_one_are_not_called_good(eye):
    fixed = retina.scan(eye, FIXED)
    for other in (
        retina.scan(retina.make_eye(8), MOVING),
        replace(retina.scan(eye, MOVING), data=retina.scan(eye, MOVING).data[::-1].copy()),
    ):
        assert register(other, fixed, modality="oct", model=MODEL).quality.confidence == "poor"


@pytest.mark.parametrize("kind", ["oct", "octa"])
def test_the_network_alone_lays_two_scans_of_an_eye_on_each_other(kind):
    """An eye it never saw, from where the tissues' centers meet, 0.7 to 1.1 mm off: no search, no refinement."""
    fixed, moving, truth = retina.make_pair(90_001 if kind == "octa" else 90_002, kind, turn=10, troubles=False)
    alone = dict(modality=kind, model="foundation", search=False, polish=False)
    rms = {}
    for steps in (0, 4):
        lateral, axial = error(
            register(moving, fixed, steps=steps, **alone).matrix, np.linalg.inv(truth), fixed, moving
        )
        rms[steps] = np.hypot(lateral, axial)
    assert rms[4] < 100 < 600 < rms[0]  # µm


def test_maps_and_depth_lead_back_a_turned_and_tilted_scan(eye):
    """Without refinement already: any turn to half a step, shifts to a pixel, depth by the surfaces."""
    fixed = model_cube(retina.scan(eye, FIXED), None, "oct", read_card(MODEL), "cpu")
    moving = model_cube(retina.scan(eye, MOVING), None, "oct", read_card(MODEL), "cpu")
    truth = np.linalg.inv(moving.frame) @ np.linalg.inv(retina.true_transform(MOVING, FIXED)) @ fixed.frame
    found = front_maps.poses(moving, fixed, 3)
    assert 1 <= len(found) <= 3
    difference = found[0] - truth
    assert np.abs(difference[[0, 2]][:, [0, 2]]).max() < 0.08 and np.abs(difference[[0, 2], 3]).max() < 0.15
    assert np.abs(difference[1, [0, 2]]).max() < 0.02 and abs(difference[1, 3]) < 0.04
    pair = Pair(moving, fixed)
    likeness = [RETINA.rank(pair, pair.to_world(matrix)) for matrix in (truth, found[0], np.eye(4))]
    assert likeness[0] > likeness[2] + 0.1 and likeness[1] > likeness[2] + 0.1


# ----------------------------------------------------------------------------------------------- the real eye
@pytest.mark.parametrize("number", [0, 1])
def test_the_real_eye_is_registered_within_a_b_scan_and_two_axial_pixels(number, data_folder, tmp_path):
    from Benchmark import retinas

    if not (data_folder / "oct").is_dir():
        pytest.skip("needs the OCT volumes of the development data")
    case = retinas.real(data_folder, number, 0, tmp_path)
    moving, fixed = volume_file.load(case.moving), volume_file.load(case.fixed)
    answer = register(moving, fixed, modality="oct", model=MODEL)
    found = retinas.measure(case, answer.matrix)
    assert found["success"] and found["lateral_lines"] < 0.5 and found["axial_pixels"] < 0.5
    assert answer.quality.confidence == "good"


def test_the_benchmark_measures_retinas_in_lines_and_pixels(tmp_path):
    from Benchmark import retinas

    case = retinas.phantom("octa", "crop", 1.0, 0, 0, tmp_path)
    fixed = volume_file.load(case.fixed)
    exact = retinas.measure(case, case.truth)
    assert exact["success"] and exact["error_mm"] == 0
    off = retinas.measure(case, geometry.from_parts(np.eye(3), (0.03, 0.04, -0.006)) @ case.truth)
    assert off["lateral_um"] == pytest.approx(50, abs=0.2) and off["axial_um"] == pytest.approx(6, abs=0.2)
    assert off["lateral_lines"] == pytest.approx(0.05 / max(fixed.spacing[:2]), abs=0.01)
    assert retinas.measure(case, None) == {"success": False}
    assert not retinas.measure(case, np.eye(4))["success"]


def test_the_picture_shows_b_scans_upright(eye, tmp_path):
    """Depth runs downwards: what lies above the retina is dark, what lies below it is not."""
    from SpatialDiffusionCore import picture

    fixed = retina.scan(eye, replace(FIXED, shape=(60, 40, 80), axial=0.024, tilt=(0, 0)))
    answer = register(fixed, fixed, modality="oct", model=MODEL, search=False, polish=False)
    drawn = np.asarray(picture.draw(answer, fixed, fixed)).astype(float)
    for left, top in (picture.tile(0, 0), picture.tile(0, 1)):
        tile = drawn[top : top + picture.SIZE, left : left + picture.SIZE, 1][:, 40:-40]
        rows = tile.mean(1)
        retina_at = int(rows.argmax())
        assert rows[retina_at - 100 : retina_at - 80].mean() < 0.5 * rows[retina_at + 20 : retina_at + 40].mean()
