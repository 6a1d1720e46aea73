"""Which side is left: mirrored volumes are told, of one person and of two, and what cannot be told is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from conftest import DEMO
from SpatialDiffusionCore import register  # noqa: E402
from SpatialDiffusionCore.errors import ModelError  # noqa: E402
from SpatialDiffusionCore.modelfile.card import read_card  # noqa: E402
from SpatialDiffusionCore.modelfile.catalog import BUNDLED  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.modelfile.model_cube import model_cube  # noqa: E402
from SpatialDiffusionCore.networks.symmetric_template import SymmetricTemplate  # noqa: E402
from SpatialDiffusionCore.pipeline import confidence  # noqa: E402
from SpatialDiffusionCore.pipeline.template_check import laterality  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, volume, volume_file  # noqa: E402
from SpatialDiffusionCore.strategies.head_template import HeadTemplate  # noqa: E402
from SpatialDiffusionTraining import focus as focus_training  # noqa: E402
from SpatialDiffusionTraining import sides as training  # noqa: E402

MODEL = BUNDLED / "t1-brain.safetensors"


def turned(scan, degrees):
    return scan.moved(geometry.from_parts(geometry.rotation_about([1, -2, 0.5], np.radians(degrees)), (12, -30, 8)))


@pytest.mark.parametrize("degrees", [0, 140])
def test_a_mirrored_brain_is_named_whichever_header_is_turned(brains, degrees):
    moving, fixed = brains
    for names, first, second in (
        ("", moving, fixed),
        ("moving volume looks", training.reflected(moving), fixed),
        ("fixed volume looks", moving, training.reflected(fixed)),
        ("Both volumes look", training.reflected(moving), training.reflected(fixed)),
    ):
        for pair in ((turned(first, degrees), second), (first, turned(second, degrees)))[: 2 if degrees else 1]:
            found = register(*pair, modality="t1-brain", device="cpu").quality
            said = " ".join(found.warnings)
            assert ("mirrored" in said) == bool(names) and names in said
            signs = tuple(np.sign(found.sides))
            assert signs == tuple(-1 if pair_is else 1 for pair_is in (first is not moving, second is not fixed))
            assert min(np.abs(found.sides)) > 0.3
            assert found.confidence == ("good" if not names else "fair" if "Both" in names else "poor")


def test_a_mirror_image_measures_the_opposite(brains):
    """Exactly, where it lies as in a mirror, too; and half a brain, or one of which the template shows nothing, is not
    measured.
    """
    model = load_model(MODEL, "t1-brain", "t1-brain")
    sides, scan = HeadTemplate.of(model.sides_of("t1-brain", "t1-brain")), brains[0]
    cube, image = (model_cube(v, None, "t1-brain", model.card, "cpu") for v in (scan, training.reflected(scan)))
    world = sides.lay(cube, [np.eye(4)])
    flip = np.diag([-1.0, 1, 1, 1])
    assert sides.measure(cube, world) > 0.3
    assert sides.measure(image, flip @ world @ flip) == pytest.approx(-sides.measure(cube, world), abs=1e-3)
    assert sides.measure(cube, geometry.from_parts(np.eye(3), (0, 0, 90)) @ world) is None
    assert laterality(sides, cube, cube, np.eye(4))[0] == pytest.approx(sides.measure(cube, world), abs=0.02)
    noise = volume.Volume(np.random.default_rng(0).random(scan.shape).astype(np.float32), scan.voxel_to_ras)
    noise = model_cube(noise, None, "t1-brain", model.card, "cpu")
    assert sides.lay(noise, [np.eye(4)]) is None and laterality(sides, cube, noise, np.eye(4)) is None


def test_bias_and_contrast_do_not_count(brains):
    """A field that brightens one side threefold changes the measure little."""
    model = load_model(MODEL, "t1-brain", "t1-brain")
    sides, scan = HeadTemplate.of(model.sides), brains[0]
    right = (scan.voxel_to_ras[0, :3] @ np.indices(scan.shape).reshape(3, -1) + scan.voxel_to_ras[0, 3]).reshape(
        scan.shape
    )
    bias = volume.Volume((scan.data * np.exp(right / 130)).astype(np.float32), scan.voxel_to_ras)
    found = []
    for changed in (scan, bias):
        cube = model_cube(changed, None, "t1-brain", model.card, "cpu")
        found.append(sides.measure(cube, sides.lay(cube, [np.eye(4)])))
    assert found[1] == pytest.approx(found[0], abs=0.2)


def test_another_contrast_is_not_measured(brains):
    """With dark and bright exchanged in the brain, the larger side would look like the smaller."""
    model = load_model(MODEL, "t1-brain", "t1-brain")
    scan = brains[0]
    inverted = volume.Volume(
        np.where(scan.data > 0, 1.2 * scan.data.max() - scan.data, 0).astype(np.float32), scan.voxel_to_ras
    )
    cube = model_cube(inverted, None, "t1-brain", model.card, "cpu")
    template = HeadTemplate.of(model.sides)
    world = template.lay(cube, [np.eye(4)])
    assert world is None or template.measure(cube, world) is None


def test_what_is_said_of_measures():
    parts = geometry.decompose(np.eye(4))

    def said(sides):
        return confidence.judge(confidence.Quality(0.3, 0.6, 1.0, 0.2, sides=sides, probability=0.999), parts)

    assert (said(None).warnings, said((0.05, -0.05)).warnings, said((0.9, 0.8)).warnings) == ([], [], [])
    assert said((0.9, -0.05)).confidence == "good"
    assert said((0.9, -0.5)).confidence == "poor" and said((-0.9, -0.5)).confidence == "fair"


def test_other_modalities_and_the_published_method_are_not_asked():
    model = load_model(MODEL, "t1-brain", "t1-brain")
    assert model.sides_of("t1-brain", "t1-brain") is not None
    assert (
        model.sides_of("any", "t1-brain") is None
        and replace(model, sides=None).sides_of("t1-brain", "t1-brain") is None
    )


def test_sides_that_cannot_be_are_refused(tmp_path):
    from test_model import with_card

    for entry, words in (
        ({"size": [45, 5, 5], "spacing": 3.5}, "first of them even"),
        ({"size": [4, 6, 6], "spacing": 3.5}, "sides|shape"),
        ({"size": [46, 58, 46], "spacing": 3.5, "modalities": ["pet"]}, "'pet', which is none of its"),
    ):
        copy = tmp_path / "t1.safetensors"
        copy.write_bytes(MODEL.read_bytes())
        with pytest.raises(ModelError, match=words):
            load_model(with_card(copy, lambda card, entry=entry: card.update(sides=entry)), "t1-brain", "t1-brain")


def test_a_model_is_taught_by_scans_alone(tmp_path, capsys, brains):
    """Copies of one brain with noise and sizes of their own, told from their mirror images by what the other copies
    teach.
    """
    random = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for number in range(24):
        scan = brains[0].moved(np.diag([*random.uniform(0.93, 1.07, 3), 1.0]))
        data = scan.data + random.normal(0, 0.05 * scan.data.max(), scan.shape) * (scan.data > 0)
        volume_file.save(
            volume.Volume(data.astype(np.float32), scan.voxel_to_ras), tmp_path / "scans" / f"s{number}.nii.gz"
        )
    output = tmp_path / "own.safetensors"
    arguments = [str(MODEL), "--template", str(next(DEMO.glob("fixed*.nii*"))), "-o", str(output), "--train"]
    assert training.main([*arguments, str(tmp_path / "scans"), "--dataset", "any"]) == 2
    assert "name one of them" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("scans/s0.nii.gz\n")
    assert training.main([*arguments, str(tmp_path / "list.txt")]) == 2
    assert "give 20 or more" in capsys.readouterr().err and not output.exists()
    assert training.main([*arguments, str(tmp_path / "scans")]) == 0
    figures = read_card(output).accuracy["sides"]
    assert all(figures[kind]["told"] == figures[kind]["of"] == 24 for kind in ("true", "mirrored"))
    loaded = load_model(output, "t1-brain", "t1-brain")
    assert loaded.focus is not None and isinstance(loaded.sides, SymmetricTemplate)
    # A new focus leaves the sides as they are.
    again = focus_training.attach(output, loaded.focus, tmp_path / "again.safetensors")
    assert torch.equal(load_model(again, "t1-brain", "t1-brain").sides.weights, loaded.sides.weights)
