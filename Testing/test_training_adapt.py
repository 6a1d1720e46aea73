"""`adapt` at small scale: it recognizes, trains from the nearest model, measures on people held out, and installs what
helps."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ema_pytorch")
pytest.importorskip("lightning_fabric")
from SpatialDiffusionCore.modelfile import card as card_module  # noqa: E402
from SpatialDiffusionCore.modelfile import catalog  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, volume_file  # noqa: E402
from SpatialDiffusionCore.spatial.volume import Volume  # noqa: E402
from SpatialDiffusionTraining import adapt, checkpoint, measure, train  # noqa: E402
from SpatialDiffusionTraining.settings import Settings  # noqa: E402
from training_fixtures import ROOT, write_phantoms  # noqa: E402

#: A fraction of a second per step.
SMALL = ["--minutes", "0.03", "--measure", "1", "--threads", "1", "--device", "cpu", "--set", "data.size=[24]", "--set",
         "data.spacing=9.3", "--set", "optimization.batch=1", "--set", "run.validate_draws=1", "--set",
         "run.validate_every=100000", "--set", "run.picture_every=0"]  # fmt: skip


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """Five "people": the bundled brain under headers and gammas of their own."""
    folder = tmp_path_factory.mktemp("brains")
    scan = volume_file.load(next((ROOT / "SpatialDiffusionCore" / "demo").glob("moving*.nii.gz")))
    for number in range(5):
        random = np.random.default_rng(number)
        linear = geometry.rotation_about(random.normal(size=3), 0.1) * random.uniform(0.95, 1.05)
        values = np.round(255 * (scan.data / scan.data.max()) ** random.uniform(0.8, 1.2)).astype(np.uint8)
        header = geometry.about(linear, scan.center()) @ scan.voxel_to_ras
        volume_file.save(Volume(values, header, "x"), folder / f"sub-{number:02d}_T1w.nii.gz")
    return folder


def test_a_folder_of_brains_is_recognized_adapted_to_and_measured(brains, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPATIAL_DIFFUSION_MODELS", str(tmp_path / "models"))
    assert train.main(["adapt", str(brains), "-o", str(tmp_path / "out"), "--no-install", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "5 scans of 5 people" in said and "they show t1-brain" in said and "goes on from t1-brain" in said
    assert "the whole registration" in said and ("It helps" in said or "It does not help" in said)
    card = card_module.read_card(tmp_path / "out" / "model.safetensors")
    before = card_module.read_card(catalog.BUNDLED / "t1-brain.safetensors")
    # It is for that modality alone, keeps where to look and which side is left, and what raises a probability is left
    # out.
    assert card.modalities == {"t1-brain": 0} and not card.agreement
    assert [(name, part.modalities) for name, part in card.parts.items()] == [
        ("focus", ("t1-brain",)),
        ("sides", ("t1-brain",)),
    ]
    mine = load_model(tmp_path / "out" / "model.safetensors", "t1-brain", "t1-brain")
    assert mine.focus_on("t1-brain") is not None and mine.sides_of("t1-brain") is not None
    # Training began with its weights: after a few gentle steps they are nearly the same, but not all of them.
    old = load_model("t1-brain", "t1-brain", "t1-brain").network.state_dict()
    new = mine.network.state_dict()
    moved = max((new[k] - old[k]).abs().max().item() for k in old)
    assert 0 < moved < 0.05 and before.architecture == {**card.architecture, "volume_size": [64, 64, 64]}
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "the whole registration" in page and page.count("data:image/png;base64,") >= 2 and "5 scans" not in page[:200]
    )
    assert not (tmp_path / "models").exists()
    state = checkpoint.load_checkpoint(checkpoint.checkpoints(tmp_path / "out" / "run")[-1])
    assert state["settings"]["optimization"]["lr"] == pytest.approx(adapt.RATE * 0.0004)


def test_what_nobody_knows_gets_a_name_and_a_grid_of_its_own(tmp_path):
    """A small thing of no known kind, about 1 cm large: the grid fits it, the model for anything is where it begins."""
    folder = write_phantoms(tmp_path / "Mouse knees", 4, spacing=(0.25, 0.2, 0.22))
    paths = sorted(folder.iterdir())
    assert adapt.recognize(paths) == "any" and adapt.own_name(folder.name) == "mouse-knees"
    base, size = adapt.nearest("any"), adapt.typical_size(paths)
    assert base.card.name == "anatomy" and base.key == "any" and 3 < size < 9
    chosen = adapt.parser().parse_args([str(folder), "-o", str(tmp_path / "out")])
    settings = adapt.settings_for(base, "mouse-knees", chosen, size)
    grid = settings.grid("mouse-knees")
    edge = grid["size"][0] * np.max(grid["spacing"])
    assert edge == pytest.approx(adapt.ROOM * size, rel=0.01) and settings.data.dataset == ["mouse-knees"]
    assert settings.network.head == "matches" and settings.optimization.max_minutes == 30


def test_eyes_begin_with_the_model_that_has_seen_eyes():
    base = adapt.nearest("oct")
    assert base.card.name == "foundation" and base.key == "oct"
    chosen = adapt.parser().parse_args(["scans", "-o", "out"])
    settings = adapt.settings_for(base, "oct", chosen, 3.0)
    assert settings.grid()["size"] == (96, 32, 96) and settings.augmentation.by_modality["oct"]["pose"]["tilt_degrees"]


def rows(part, **methods):
    return [measure.Row(part, name.replace("_", " "), errors, right, wrong)
            for name, (errors, right, wrong) in methods.items()]  # fmt: skip


@pytest.mark.parametrize("helps, mine, bundled", [
    (True, ([1.0, 1.0], 2, 0), ([2.0, 9.0], 1, 0)),  # more are right
    (True, ([1.0, 1.0], 2, 0), ([1.3, 1.3], 2, 0)),  # nearer
    (False, ([1.28, 1.28], 2, 0), ([1.3, 1.3], 2, 0)),  # hardly
    (False, ([0.5, 9.0], 1, 1), ([1.3, 1.3], 2, 0)),  # one is wrong now
    (False, ([0.5, 0.5], 2, 1), ([1.3, 1.3], 2, 0)),
])  # fmt: skip
def test_only_what_helps_and_harms_nothing_is_installed(helps, mine, bundled, tmp_path, monkeypatch):
    table = measure.Comparison("t1-brain", rows(measure.WHOLE, no_network=([3.0, 3.0], 0, 0), bundled_x=bundled,
                                                this_model=mine))  # fmt: skip
    assert table.helps == helps and table.sentence().startswith("It helps" if helps else "It does not help")
    assert "median" in table.text()


def test_pairs_for_measuring_are_undone_by_their_truth(brains, tmp_path):
    from SpatialDiffusionCore.spatial import volume
    from SpatialDiffusionTraining import datasets, scans

    files = scans.find_scans(brains)
    source = datasets.Source("t1-brain", 1, files[:3], files[3:])
    cache = datasets.build(tmp_path / "c", [source], {"size": [40] * 3, "spacing": 5.0}, report=lambda text: None)
    settings = Settings.from_dict(
        {
            "diffusion": {"translation_range": [0.1, 0.8]},
            "augmentation": {"artifacts": {"noise": {"probability": 1.0, "sigma": 0.01}}},
        }
    )
    pairs = measure.make_pairs(cache, settings, cache.rows("validation"), 2)
    for pair in pairs:
        back = geometry.inverse(pair.truth)
        moved = volume.resample(pair.moving, pair.fixed, back).data
        seen = volume.resample(Volume(np.ones_like(pair.moving.data), pair.moving.voxel_to_ras), pair.fixed, back).data
        inside = (seen > 0.99) & (pair.fixed.data > 10)  # what the affine took out of the moving volume is gone
        assert np.corrcoef(moved[inside], pair.fixed.data[inside])[0, 1] > 0.85
        assert np.corrcoef(pair.moving.data[inside], pair.fixed.data[inside])[0, 1] < 0.7
        assert pair.error(pair.truth) < 1e-9 and pair.error(np.eye(4)) > 3 and 80 < pair.size < 160
        assert pair.right_within == pytest.approx(max(0.01 * pair.size, 2.5))


def test_too_few_people_and_bad_times_are_named(tmp_path, capsys):
    folder = write_phantoms(tmp_path / "scans", 2)
    assert train.main(["adapt", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert "too few" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert train.main(["adapt", str(folder), "-o", str(tmp_path / "out"), "--minutes", "0"]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_the_user_may_keep_models_while_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIAL_DIFFUSION_MODELS", str(tmp_path / "mine"))
    with measure.installed():
        assert not any(str(tmp_path) in str(path) for path, _ in catalog.catalog().values())
    assert catalog.user_folder() == tmp_path / "mine"


def test_the_shell_hands_the_command_over(tmp_path):
    """Options in any order reach the training package's parser; its exit status comes back."""
    from SpatialDiffusionCore import cli

    folder = write_phantoms(tmp_path / "scans", 2)
    assert cli.main(["adapt", "-o", str(tmp_path / "out"), str(folder), "--minutes", "1"]) == 2  # too few people
    assert not (tmp_path / "out").exists()
